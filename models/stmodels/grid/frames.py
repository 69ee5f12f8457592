"""The frames that models of closeness and period read beside the window.

Legend: B batch, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.types import Batch


def season_frames(batch: Batch, known: int, steps: int) -> Tensor:
    """The train segment's means by slot of the week at P steps before a forecast and at its steps: (B, P + steps, *S).

    They stand for the frames of earlier days and weeks, which reach further back than a window. On train windows the means at the history
    leave its own readings out; those at the steps ahead do not, since a model that knew both kinds could compute the reading.

    Of a history that ends at 10 o'clock, P = 3 and Q = 3, the frames for the steps one by one (``steps`` = 1) are those of 8 to 11 o'clock
    with ``known`` = 0, and those of 9 to 12 with ``known`` = 1.

    Args:
        known: the number of steps forecast before, by which the frames are shifted.
        steps: the number of steps that are forecast now.
    """
    assert batch.history_season is not None
    assert batch.target_profile is not None
    season = torch.cat([batch.history_season, batch.target_profile], dim=1)
    return season[:, known : known + batch.history_season.shape[1] + steps]


def frame_slots(batch: Batch, known: int, steps: int) -> Tensor | None:
    """The slots of the week of these frames, (B, P + steps); the first P are those of a history that ends ``known`` steps later."""
    if batch.history_slot is None or batch.target_slot is None:
        return None
    slots = torch.cat([batch.history_slot, batch.target_slot], dim=1)
    return slots[:, known : known + batch.history_slot.shape[1] + steps]
