"""Labels in, lists that Q-Align's training reads out; and what the published checkpoints were trained on."""
