"""Ways in from the tools that people already use: a file for each. None is imported unless it is asked for."""
