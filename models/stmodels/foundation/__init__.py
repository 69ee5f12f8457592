"""Models that are trained on one task over much data, and tuned for another."""
