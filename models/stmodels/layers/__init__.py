"""Building blocks of the models, one concept per file."""
