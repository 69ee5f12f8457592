"""Convolution over time, in the layout (B, T, N, c): channels last, so that it is one product a step and node.

Legend: B batch, T steps, N nodes, c channels, k kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.layers.linear import Linear


class TimeConv(Linear):
    """Convolution without padding: (B, T, …, c) → (B, T − (k − 1)·dilation, …, c').

    Weights (c', k·c), the oldest step first. They are drawn as those of ``nn.Conv1d``.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(kernel * inputs, outputs)
        self.kernel, self.dilation = kernel, dilation

    @property
    def reach(self) -> int:
        """By how many steps the output is shorter."""
        return (self.kernel - 1) * self.dilation

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shifted(x, self.kernel, self.dilation))


def shifted(x: Tensor, kernel: int, dilation: int = 1) -> Tensor:
    """The steps that each output step sees, side by side: (B, T, …, c) → (B, T − (k − 1)·dilation, …, k·c)."""
    steps = x.shape[1] - (kernel - 1) * dilation
    return torch.cat([x[:, i * dilation : i * dilation + steps] for i in range(kernel)], dim=-1)


def pad_past(x: Tensor, steps: int) -> Tensor:
    """Zeros before the first step: (B, T, …) → (B, steps + T, …)."""
    return torch.cat([x.new_zeros(len(x), steps, *x.shape[2:]), x], dim=1) if steps > 0 else x


class SameTimeConv(nn.Module):
    """Convolution with as many zeros before as after, so that it keeps its length, for an odd kernel: (B, T, …, c) → (B, T, …, c')."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = TimeConv(inputs, outputs, kernel)

    def forward(self, x: Tensor) -> Tensor:
        half = self.conv.reach // 2
        after = x.new_zeros(len(x), half, *x.shape[2:])
        return self.conv(torch.cat([pad_past(x, half), after], dim=1))
