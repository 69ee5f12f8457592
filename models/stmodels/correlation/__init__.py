"""How alike the nodes of a sensor network are within one window, as an image with a channel for each kind of likeness."""

from stmodels.correlation.image import correlation_image
from stmodels.correlation.volume import CHANNELS, Lag, correlation_volume, correlation_volume_torch

__all__ = ["CHANNELS", "Lag", "correlation_image", "correlation_volume", "correlation_volume_torch"]
