"""BatchNorm whose running statistics can be held still.

Legend: M rows, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from stmodels.layers.linear import Linear


class NormedLinear(nn.Module):
    """Linear, BatchNorm over all rows, and ReLU: (…, c) → (…, c')."""

    def __init__(self, inputs: int, outputs: int, has_relu: bool = True) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)
        self.has_relu = has_relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x).flatten(0, -2)).unflatten(0, x.shape[:-1])
        return y.relu() if self.has_relu else y


@contextmanager
def held_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, BatchNorms in training use the statistics of their batch and do not add them to the running ones."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
