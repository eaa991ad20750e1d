"""The contracts in Triton, for NVIDIA GPUs. A file here has the functions of the contract's file of the same name."""
