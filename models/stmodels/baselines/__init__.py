"""Reference forecasts: what a trained model must beat before it is called good. They run in seconds; no hand tunes them."""
