"""Reference forecasts in the interface of every model: fitted on the train windows, evaluated like the rest.

Legend: B windows, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.base import Forecaster, TrainWindows
from stmodels.baselines.config import BaselineConfig
from stmodels.baselines.ridge import Ridge
from stmodels.types import Batch, Forecast, SeriesInfo


class Baseline(Forecaster):
    """A forecast without an optimiser.

    Raises:
        ConfigError: the data does not allow it.
    """

    def __init__(self, config: BaselineConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config = config
        self.info = info
        self.series: Tensor | None = None
        self.ridge: Ridge | None = Ridge(info) if config.name == "ridge" else None

    def fit(self, windows: TrainWindows) -> None:
        """Closed-form fitting on the train segment's windows; keeps the series where past readings are copied from it."""
        self.series = windows.series
        if self.ridge is not None:
            self.ridge.fit(windows)

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(value=getattr(self, f"_{self.config.name}")(batch))

    def _slot_of_week_mean(self, batch: Batch) -> Tensor:
        return batch.target_season

    def _same_slot_last_week(self, batch: Batch) -> Tensor:
        return self._lagged(batch)

    def _same_slot_yesterday(self, batch: Batch) -> Tensor:
        return self._lagged(batch)

    def _lagged(self, batch: Batch) -> Tensor:
        steps = (
            torch.arange(self.info.horizon, device=batch.start.device) + self.info.history - self.config.lag(self.info)
        )
        return self.series[batch.start[:, None] + steps]

    def _last_value(self, batch: Batch) -> Tensor:
        return batch.history[:, -1:].expand_as(batch.target)

    def _last_window(self, batch: Batch) -> Tensor:
        """The history again, its last Q steps, or over and over where the horizon is longer."""
        p, q = self.info.history, self.info.horizon
        return batch.history[:, -q:] if q <= p else batch.history[:, torch.arange(q) % p]

    def _ridge(self, batch: Batch) -> Tensor:
        return self.ridge(batch)
