"""Compare2Score: OneAlign's trunk, which compares a picture with five anchors; a score follows from the comparisons."""
