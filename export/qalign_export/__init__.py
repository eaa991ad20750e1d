"""Export tooling: an upstream checkpoint in, an artifact directory out; and the recipe of the embedded model."""
