"""What every kernel computes, one file for each: formula, precision, tolerance, and the same in plain torch."""
