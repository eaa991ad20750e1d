"""The model families: what each one fixes."""
