"""HA, the historical average.

Legend: B batch, P history, Q horizon, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.base import Forecaster, TrainWindows
from stmodels.classic.ha_config import HAConfig
from stmodels.layers.earlier_days import earlier_days
from stmodels.types import Batch, Forecast, Readings, SeriesInfo


class HA(Forecaster):
    """A mean of earlier readings; ``config.over`` says of which. Missing readings of the train segment do not count.

    A slot of the week that the train segment lacks is forecast by the mean at that slot of the day, and one that it lacks too by the mean
    of the series.

    Raises:
        ConfigError: the data do not allow it.
    """

    def __init__(self, config: HAConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config, self.info = config, info
        slots = 7 * (info.slots_per_day or 0) if config.over in ("week", "day") else 0
        self.register_buffer("means", torch.zeros(slots, *info.shape))  # by slot of the week

    def fit(self, windows: TrainWindows) -> None:
        if len(self.means):
            self.means.copy_(self._means(windows.readings()))

    def forward(self, batch: Batch) -> Forecast:
        if self.config.over == "window":
            return Forecast(batch.history.mean(1, keepdim=True).expand(-1, self.info.horizon, *batch.history.shape[2:]))
        if self.config.over == "days":
            return Forecast(self._days(batch))
        assert batch.target_slot is not None
        return Forecast(self.means[batch.target_slot])

    def _days(self, batch: Batch) -> Tensor:
        return earlier_days(batch, self.config.days, self.info.slots_per_day or 0, self.info.horizon).mean(1)

    def _means(self, train: Readings) -> Tensor:
        """(slots of the week, *S)."""
        assert train.slot is not None
        slots = self.info.slots_per_day or 1
        whole = _mean_by(torch.zeros_like(train.slot), 1, train)[0]
        of_day = _mean_by(train.slot % slots, slots, train, whole.expand(slots, *whole.shape)).repeat(7, *[1] * whole.dim())
        return of_day if self.config.over == "day" else _mean_by(train.slot, 7 * slots, train, of_day)


def _mean_by(group: Tensor, count: int, train: Readings, otherwise: Tensor | None = None) -> Tensor:
    """Means of the readings of each group, (count, *S); ``otherwise`` where a group has none."""
    seen = torch.ones_like(train.values) if train.mask is None else train.mask.to(train.values.dtype)
    zeros = train.values.new_zeros((count, *train.values.shape[1:]), dtype=torch.float64)
    sums, counts = (zeros.index_add(0, group, x.double()) for x in (train.values * seen, seen))
    means = (sums / counts.clamp_min(1)).to(train.values.dtype)
    return means if otherwise is None else torch.where(counts > 0, means, otherwise)
