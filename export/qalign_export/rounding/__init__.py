"""A model's parameters in, folded tensors in a precision out."""
