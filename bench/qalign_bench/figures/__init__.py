"""Answers in, figures out: records, tables, plots, and the facts that belong beside them."""
