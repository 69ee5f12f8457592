"""Models that are older than networks: each series by itself, fitted in closed form or by likelihood."""
