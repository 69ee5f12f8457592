"""Grids and sensors in one layout: a row for each place, which is a sensor or a cell, with its channels last.

Legend: B batch, T steps, C channels, N places, H×W grid, S the shape of a step, K further channels.
"""

from __future__ import annotations

from torch import Tensor

from stmodels.types import Batch, SeriesInfo, with_inputs


def as_places(x: Tensor, info: SeriesInfo) -> Tensor:
    """(B, T, *S) → (B, T, N, C). Cells stand in rows, from the top left."""
    return x.flatten(3).transpose(2, 3) if info.family == "grid" else x


def from_places(x: Tensor, info: SeriesInfo) -> Tensor:
    """The inverse: (B, T, N, C) → (B, T, *S)."""
    return x.transpose(2, 3).unflatten(3, info.shape[1:]) if info.family == "grid" else x


def history_at_places(batch: Batch, info: SeriesInfo) -> Tensor:
    """The history with the further channels of sensors, (B, P, N, C + K)."""
    return as_places(batch.history, info) if info.family == "grid" else with_inputs(batch)
