"""The correlation volume as an image."""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.correlation._memory import empty


# A custom operator, like the volume, since torch.compile cannot trace the in-place writes.
@torch.library.custom_op("stmodels::correlation_image", mutates_args=())
def _image(volume: Tensor) -> Tensor:
    image = empty(volume.shape, volume.device)
    cost, scaled = volume[:, :1], image[:, :1]
    low, high = cost.amin((-2, -1), keepdim=True), cost.amax((-2, -1), keepdim=True)
    torch.sub(cost, low, out=scaled).div_(torch.where(high == low, 1.0, high - low))
    torch.add(volume[:, 1:], 1.0, out=image[:, 1:]).mul_(0.5)
    return image


@_image.register_fake
def _(volume: Tensor) -> Tensor:
    return volume.new_empty(volume.shape)


def correlation_image(volume: Tensor) -> Tensor:
    """The channels of a correlation volume in [0, 1]: (B, 3, N, N) float32 → (B, 3, N, N) float32, without gradients.

    DTW is min-max scaled within each image, and is 0 if all costs are equal. The correlations become (r + 1) / 2. The
    volume is not changed.
    """
    return _image(volume.detach())
