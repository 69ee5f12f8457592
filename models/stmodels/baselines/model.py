"""Reference forecasts in the interface of every model: fitted on the train windows, evaluated like the rest.

Legend: B windows, P history, Q horizon, S the shape of a step; R residuals (reading minus season), F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.baselines.config import BaselineConfig
from stmodels.forecaster import Forecaster, TrainWindows
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
        return (
            batch.history[:, torch.arange(max(p, q)) % p][:, -q:] if q <= p else batch.history[:, torch.arange(q) % p]
        )

    def _ridge(self, batch: Batch) -> Tensor:
        return self.ridge(batch)


class Ridge(nn.Module):
    """Ridge regression of a cell's next Q seasonal residuals, one set of coefficients for all cells.

    On its own last P residuals, on the city's (their mean over space), and on the season ahead times how the readings of
    the history, the cell's own and the city's, and the city's last one, ran against their season.
    """

    PENALTY = (
        1.0  # in units of each feature's variance; anything from 1e-3 to 1e3 gives the same third decimal on NYC bikes
    )
    CHUNK = 256  # windows at a time

    def __init__(self, info: SeriesInfo) -> None:
        super().__init__()
        self.info = info
        self.space = (-2, -1) if info.family == "grid" else (-2,)
        features = 2 * info.history + 3 * info.horizon
        self.register_buffer("coefficients", torch.zeros(features + 1, info.horizon, dtype=torch.float64))

    def features(self, batch: Batch) -> Tensor:
        """(B, *S, F + 1) float64, the last one constant."""
        history, season = batch.history.double() - self.info.zero, batch.history_season.double() - self.info.zero
        ahead = batch.target_season.double() - self.info.zero
        residual = history - season
        city = residual.mean(self.space, keepdim=True).expand_as(residual)
        columns = [residual, city]
        for x, s in (
            (history.sum(1, keepdim=True), season.sum(1, keepdim=True)),
            (history.sum((1, *self.space), keepdim=True), season.sum((1, *self.space), keepdim=True)),
            (history[:, -1:].sum(self.space, keepdim=True), season[:, -1:].sum(self.space, keepdim=True)),
        ):
            # One standard deviation of the residual on both sides keeps the ratio of a quiet cell near 1.
            ratio = (x + self.info.residual_std) / (s + self.info.residual_std)
            columns.append(ahead * (ratio - 1).clamp(-1, 2))
        stacked = torch.cat([*columns, torch.ones_like(ahead[:, :1])], dim=1)
        return stacked.movedim(1, -1)

    def fit(self, windows: TrainWindows) -> None:
        size, horizon = self.coefficients.shape
        gram = self.coefficients.new_zeros(size, size)
        moment = self.coefficients.new_zeros(size, horizon)
        count = 0
        for index in torch.arange(len(windows), device=gram.device).split(self.CHUNK):
            batch = windows.gather(index)
            x = self.features(batch).flatten(0, -2)
            y = (batch.target.double() - batch.target_season.double()).movedim(1, -1).flatten(0, -2)
            gram += x.T @ x
            moment += x.T @ y
            count += len(x)
        variance = gram.diagonal() / count - (gram[-1] / count) ** 2
        self.coefficients.copy_(torch.linalg.solve(gram + torch.diag(self.PENALTY * variance), moment))

    def forward(self, batch: Batch) -> Tensor:
        residual = (self.features(batch) @ self.coefficients).movedim(-1, 1)
        return (batch.target_season.double() + residual).to(batch.history.dtype)
