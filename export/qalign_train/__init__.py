"""How the embedded mini model is trained. Not part of the distribution."""
