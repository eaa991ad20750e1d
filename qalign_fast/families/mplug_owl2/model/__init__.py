"""OneAlign's model in torch: the reference, and the folded form that engines run."""
