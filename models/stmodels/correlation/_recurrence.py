"""The pairs of a correlation volume in torch: pointwise over all N² pairs of nodes, so that a compiler can fuse it.

It uses no matrix products, since they would run in TF32 or bf16 if the caller allows that for the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.utils._triton import has_triton

# Each of the T² cells of the recurrence is a node of one fused kernel, which keeps them in registers. By default TorchInductor
# stops at 64 nodes and would write whole rows of cells to memory between kernels.
_INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"max_fusion_size": 100_000}


def _dtw(x: Tensor) -> Tensor:
    """D[s, t] = |x_i[s] - x_j[t]| + min(D[s-1, t], D[s, t-1], D[s-1, t-1]); returns the last cell: (B, N, T) → (B, N, N)."""
    steps = x.unbind(-1)
    row: list[Tensor] = []
    for s, x_i in enumerate(steps):
        above, row = row, []
        for t, x_j in enumerate(steps):
            cell = (x_i[:, :, None] - x_j[:, None, :]).abs()
            if s and t:
                cell = cell + torch.minimum(row[-1], torch.minimum(above[t], above[t - 1]))
            elif s or t:
                cell = cell + (above[0] if s else row[-1])
            row.append(cell)
    return row[-1]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Σ_t a_i[t] b_j[t]: two (B, N, T) → (B, N, N)."""
    terms = [a_i[:, :, None] * b_j[:, None, :] for a_i, b_j in zip(a.unbind(-1), b.unbind(-1), strict=True)]
    return sum(terms[1:], terms[0])


def _leading(unit: Tensor) -> Tensor:
    """The largest over lags τ ≥ 0 of Σ_t u_i[t] u_j[t+τ]: (B, N, T) → (B, N, N)."""
    steps = unit.shape[-1]
    largest = _product(unit, unit)
    for lag in range(1, steps):
        largest = torch.maximum(largest, _product(unit[..., : steps - lag], unit[..., lag:]))
    return largest.clamp(-1.0, 1.0)


def _channels(series: Tensor, unit: Tensor, spectrum: Tensor) -> Tensor:
    return torch.stack([_dtw(series), _leading(unit), _product(spectrum, spectrum).clamp(-1.0, 1.0)], dim=1)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_channels, dynamic=True, options=_INDUCTOR_OPTIONS)


def pairs(series: Tensor, unit: Tensor, spectrum: Tensor, *, symmetric: bool) -> Tensor:
    """The volume from what :func:`stmodels.correlation.volume._prepare` returns: (B, N, T), (B, N, T), (B, N, F) → (B, 3, N, N).

    It is compiled once for each T on devices that Triton supports, and runs op by op on others. A single window or node also runs op
    by op, since the compiler would treat a size of 1 as another shape and compile again.
    """
    worthwhile = series.device.type == "cuda" and min(series.shape[:2]) > 1 and has_triton()
    channels = _compiled() if worthwhile else _channels
    volume = channels(series, unit, spectrum)
    if symmetric:
        cross = volume[:, 1]
        volume[:, 1] = torch.maximum(cross, cross.mT)
    return volume
