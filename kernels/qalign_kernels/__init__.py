"""The model's operations as fast kernels, and the contracts in plain torch that they are tested against."""
