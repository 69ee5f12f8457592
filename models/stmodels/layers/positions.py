"""Fixed positions of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoid(count: int, width: int) -> Tensor:
    """sin and cos of position / 10000^(2i / width), in turns: (count, width). Source: Vaswani et al. 2017, section 3.5."""
    place = torch.arange(count, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.stack([(place * rate).sin(), (place * rate).cos()], dim=-1).flatten(1)
    return table[:, :width].float()
