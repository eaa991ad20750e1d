"""An upstream checkpoint in, an artifact directory out."""
