"""The engines that run a model, and the choice among them."""
