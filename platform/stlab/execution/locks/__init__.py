"""Locks: one driver runs a study at a time, and one worker group trains a trial at a time."""
