"""Building blocks, one concept a file."""
