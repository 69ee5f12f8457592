"""The version of stlab."""

__version__ = "0.1.0"
