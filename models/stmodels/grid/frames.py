"""The frames that models of closeness and period read beside the window.

Legend: B batch, P history, Q horizon, q steps that one pass forecasts, C channels, H×W grid, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.base import Forecaster
from stmodels.grids import FramesConfig
from stmodels.layers.calendar import one_hot_calendar
from stmodels.layers.losses import mean_squared
from stmodels.layers.multi_step import fed_back
from stmodels.types import Batch, Forecast, SeriesInfo


class FramesForecaster(Forecaster):
    """Forecasts all steps in one pass, or one step a pass, as ``config.multi_step`` says.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: FramesConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.info, self.steps = info, config.steps(info)
        self.inputs, self.output = config.inputs, config.output
        self.slots_per_day = None if config.inputs == "window" else info.slots_per_day

    def ahead(self, history: Tensor, known: int, batch: Batch) -> Tensor:
        """One pass: the last P readings or forecasts (B, P, C, H, W), and the number of steps forecast before → (B, q, C, H, W)."""
        raise TypeError(f"{type(self).__name__} does not say how it forecasts")

    def forward(self, batch: Batch) -> Forecast:
        def one_pass(history: Tensor, known: int) -> Tensor:
            ahead = self.ahead(history, known, batch)
            return ahead.tanh() if self.output == "tanh" else ahead

        return Forecast(fed_back(one_pass, batch.history, self.info.horizon))

    def calendar_of(self, slots: Tensor | None, like: Tensor) -> Tensor:
        """Slots of the week (B, T) → (B, T, slots_per_day + 7), of the type of another tensor."""
        assert self.slots_per_day is not None
        return one_hot_calendar(slots, self.slots_per_day, like.dtype)


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
