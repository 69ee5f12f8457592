"""Inspection: the cost of a study, its progress, the replay of a trial, and whether a machine can run studies."""
