"""Folded tensors in, ONNX graphs out."""
