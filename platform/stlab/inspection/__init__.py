"""Looking on: the cost of a study before it runs, how far it is, whether a trial repeats, whether a machine can run it."""
