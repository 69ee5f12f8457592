"""What can be wrong with a model before it is trained."""


class ConfigError(ValueError):
    """A configuration that cannot be built, or does not fit its data: says which field, why, and what to do."""


class WeightsError(RuntimeError):
    """Pretrained weights that cannot be had: says which, why, how to get them, and that `random` exists."""
