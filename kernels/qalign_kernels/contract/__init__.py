"""What every kernel computes: formula, precision, tolerance, and the same in plain torch."""
