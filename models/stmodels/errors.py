"""Errors of a model before it is trained."""


class ConfigError(ValueError):
    """A configuration cannot be built, or does not fit its data. The message gives the field, the reason and the remedy."""


class WeightsError(RuntimeError):
    """Pretrained weights are not available. The message says which, why, how to get them, and that `random` exists."""
