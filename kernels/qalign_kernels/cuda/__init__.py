"""The contracts in Triton, for NVIDIA GPUs."""
