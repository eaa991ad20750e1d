"""A model in, an engine out: the ways to run it, and the choice among them."""
