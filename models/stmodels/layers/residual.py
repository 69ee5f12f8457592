"""Residual units of convolutions over a grid.

Legend: M images, D channels, H×W grid.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that sees a cell and its eight neighbours, and keeps the size; beyond the border it sees 0."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU x))), or with SELU and a BatchNorm before each: (M, D, H, W) → same. Source: He et al. 2016."""

    def __init__(self, width: int, form: Literal["relu", "norm selu"] = "relu") -> None:
        super().__init__()
        halves = []
        for _ in range(2):
            before: list[nn.Module] = [nn.ReLU()] if form == "relu" else [nn.BatchNorm2d(width), nn.SELU()]
            halves += [*before, conv3x3(width, width)]
        self.change = nn.Sequential(*halves)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)
