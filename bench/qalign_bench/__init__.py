"""How a number is taken: each module is a measurement that prints a table and writes its JSON to bench/results."""
