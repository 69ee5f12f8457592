"""File formats: a reader a file, from a path to a series or to ready-made windows."""
