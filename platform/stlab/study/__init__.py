"""A study file: what it says, where each field was written, and the trials that it makes."""
