"""Other servers' protocols, a file for each; `foreign.py` has what they share."""
