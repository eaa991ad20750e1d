"""OneAlign and Q-Align: LLaMA-2 7B with a CLIP-like tower and an abstractor (mPLUG-Owl2)."""
