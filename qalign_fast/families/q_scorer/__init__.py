"""Q-Scorer: OneAlign's trunk, tokens that are scores, and an MLP that reads the row after the one it answers."""
