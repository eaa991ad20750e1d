"""The work loop: items in, scores out. Reading on threads, batches, several of them under way."""
