"""Models of each series by itself, and iTransformer, which mixes them without a network."""
