"""The similarity of the nodes of a sensor network within one window, as an image with one channel per kind of similarity."""

from stmodels.correlation.image import correlation_image
from stmodels.correlation.profiles import dtw_distances
from stmodels.correlation.volume import CHANNELS, Lag, correlation_volume, correlation_volume_torch

__all__ = ["CHANNELS", "Lag", "correlation_image", "correlation_volume", "correlation_volume_torch", "dtw_distances"]
