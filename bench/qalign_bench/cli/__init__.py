"""`qalign-fast bench`: its command line, its options and a bench from its options to its results."""
