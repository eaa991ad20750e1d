"""Answers in, figures out: runs, tables, plots and the facts that belong beside them."""
