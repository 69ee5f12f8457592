"""Grids for tests of models: facts of a small one, and windows of it with some cells changed."""

from __future__ import annotations

import torch

from stmodels.types import Batch, SeriesInfo


def grid_info(shape: tuple[int, int, int] = (2, 8, 6), history: int = 6, horizon: int = 6, slots: int | None = 24) -> SeriesInfo:
    return SeriesInfo("grid", shape, history, horizon, slots, 0.1, 5, 0.1, -1.0, 900)


def with_history(batch: Batch, history: torch.Tensor) -> Batch:
    return batch._replace(history=history)


def impulse(batch: Batch, row: int, column: int) -> Batch:
    """The batch with another history of one cell."""
    history = batch.history.clone()
    history[..., row, column] += 1
    return with_history(batch, history)
