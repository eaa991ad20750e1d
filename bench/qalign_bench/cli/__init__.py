"""`qalign-fast bench`: its options, and a bench from these to its results."""
