"""Searches by Optuna, which no other package imports. An Optuna study is rebuilt from the trial directories."""
