"""A study: its file and its fields, where each field was written, and the trials that follow from it."""
