"""Readings of earlier days at the time of a forecast.

Legend: B batch, Q horizon, K days, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.types import Batch


def earlier_days(batch: Batch, days: int, slots_per_day: int, horizon: int) -> Tensor:
    """(B, K, Q, *S): the readings at the steps ahead, one day before, two days before, … They are known if a day has Q steps or more."""
    known = batch.history if batch.past is None else torch.cat([batch.past, batch.history], dim=1)
    firsts = [known.shape[1] - day * slots_per_day for day in range(1, days + 1)]
    return torch.stack([known[:, first : first + horizon] for first in firsts], dim=1)
