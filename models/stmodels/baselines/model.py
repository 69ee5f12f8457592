"""Reference forecasts with the interface of every model: they are fitted on the train windows and evaluated like the others.

Legend: B windows, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.base import Forecaster, TrainWindows
from stmodels.baselines.config import BaselineConfig
from stmodels.layers.ridge import Ridge
from stmodels.types import Batch, Forecast, SeriesInfo


class Baseline(Forecaster):
    """A forecast that needs no optimiser.

    Raises:
        ConfigError: the data does not allow this baseline.
    """

    def __init__(self, config: BaselineConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config = config
        self.info = info
        self.series: Tensor | None = None
        self.ridge: Ridge | None = Ridge(info) if config.name == "ridge" else None

    def fit(self, windows: TrainWindows) -> None:
        """Fit on the windows of the train segment in closed form, and keep the series from which past readings are copied."""
        self.series = windows.series
        if self.ridge is not None:
            self.ridge.fit(windows)

    def choose(self, validation: TrainWindows, by: str) -> dict[str, float]:
        return {} if self.ridge is None else {"penalty": self.ridge.choose(validation, by)}

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
        """The last Q steps of the history, which is repeated if the horizon is longer."""
        p, q = self.info.history, self.info.horizon
        return batch.history[:, -q:] if q <= p else batch.history[:, torch.arange(q) % p]

    def _ridge(self, batch: Batch) -> Tensor:
        return self.ridge(batch)
