"""What the engines are compared with. hf_eager, bnb and upstream are scripts, each for a process of its own."""
