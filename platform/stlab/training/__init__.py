"""Training one trial, from its specification to its directory, in plain PyTorch."""

from stlab.training.trial import run_trial

__all__ = ["run_trial"]
