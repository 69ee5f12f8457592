"""Grids whose sides a network cannot divide, made larger and cut again.

Legend: H×W grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor, multiple: int) -> Tensor:
    """The grid with its last rows and columns repeated until both sides are multiples: (…, H, W) → (…, H', W')."""
    down, right = (-side % multiple for side in x.shape[-2:])
    if not (down or right):
        return x
    flat = F.pad(x.flatten(0, -4), (0, right, 0, down), mode="replicate")
    return flat.unflatten(0, x.shape[:-3])


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """The inverse: the top left part of the size of another grid."""
    return x[..., : like.shape[-2], : like.shape[-1]]
