"""Ridge regression of the readings ahead, with one set of coefficients for all cells of a grid or nodes of a network.

It forecasts the difference from the season, or from the last reading if there is no season. A missing reading of the history keeps its
value in the data (mostly 0), since a batch has no mask of the history. Missing readings ahead are left out.

Legend: B windows, P history, Q horizon, S the shape of a step; F features, the constant included; R = B·|S| rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stmodels.base import TrainWindows
from stmodels.layers.season import season_levels
from stmodels.types import Batch, SeriesInfo


class Features(nn.Module):
    """The features of the regression, and the reference from which it forecasts the difference."""

    def __init__(self, info: SeriesInfo) -> None:
        super().__init__()
        self.info = info
        self.space = (-2, -1) if info.family == "grid" else (-2,)

    def forward(self, batch: Batch) -> Tensor:
        """(B, *S, F) float64. The last feature is constant."""
        constant = torch.ones_like(batch.history[:, :1], dtype=torch.float64)
        return torch.cat([*self._columns(batch), constant], dim=1).movedim(1, -1)

    def count(self) -> int:
        """F, the number of features."""
        raise NotImplementedError

    def reference(self, batch: Batch) -> Tensor:
        """(B, Q, *S) float64, the reference, which is known before the forecast."""
        raise NotImplementedError

    def _columns(self, batch: Batch) -> list[Tensor]:
        """Features (B, ·, *S) float64."""
        raise NotImplementedError


class SeasonalFeatures(Features):
    """The last P seasonal residuals of a cell and of the city (their mean over space), and the profile ahead multiplied by three relative
    deviations from the season: of the cell's history, of the city's history, and of the city's last reading."""

    def count(self) -> int:
        return 2 * self.info.history + 3 * self.info.horizon + 1

    def reference(self, batch: Batch) -> Tensor:
        assert batch.target_season is not None
        return batch.target_season.double()

    def _columns(self, batch: Batch) -> list[Tensor]:
        assert batch.history_season is not None
        assert batch.target_profile is not None
        history, season, ahead = (x.double() for x in (batch.history, batch.history_season, batch.target_profile))
        residual = history - season
        levels = season_levels(batch._replace(history=history, history_season=season, target_profile=ahead), self.info)
        return [residual, residual.mean(self.space, keepdim=True).expand_as(residual), *levels]


class DifferenceFeatures(Features):
    """The differences between the last reading of a cell and the P - 1 readings before it, and their mean over space."""

    def count(self) -> int:
        return 2 * (self.info.history - 1) + 1

    def reference(self, batch: Batch) -> Tensor:
        last = batch.history[:, -1:].double()
        return last.expand(-1, self.info.horizon, *last.shape[2:])

    def _columns(self, batch: Batch) -> list[Tensor]:
        history = batch.history.double()
        own = history[:, :-1] - history[:, -1:]
        return [own, own.mean(self.space, keepdim=True).expand_as(own)]


class Moments(NamedTuple):
    """Sums over rows: xᵀx (F, F) and xᵀy (F, Q); or over separate rows for each horizon step, (Q, F, F) and (Q, F, 1)."""

    gram: Tensor
    moment: Tensor

    def coefficients(self, penalties: Tensor) -> Tensor:
        """The solutions for K penalties, (K, …, F, Q), from one eigendecomposition of the features' correlations.

        A penalty is in units of each feature's variance, and the constant has none.
        """
        count = self.gram[..., -1:, -1:].clamp_min(1)
        mean_x, mean_y = self.gram[..., :-1, -1:] / count, self.moment[..., -1:, :] / count
        around = self.gram[..., :-1, :-1] - count * mean_x @ mean_x.mT
        deviation = (around.diagonal(dim1=-2, dim2=-1) / count[..., 0]).clamp_min(0).sqrt()
        weight = torch.where(deviation > 0, 1 / deviation, 0)[..., None]  # a feature that stands still explains nothing
        values, vectors = torch.linalg.eigh(around * weight * weight.mT)
        moment = vectors.mT @ (weight * (self.moment[..., :-1, :] - count * mean_x @ mean_y))
        shares = 1 / (values.clamp_min(0)[..., None] + penalties.view(-1, *[1] * self.gram.dim()))
        slopes = weight * (vectors @ (shares * moment))
        return torch.cat([slopes, mean_y - mean_x.mT @ slopes], dim=-2)


class Ridge(nn.Module):
    """The regression, which is fitted on the train windows and then forecasts any window."""

    # In units of each feature's variance. The sums are over all rows, of which few-shot data have few, so that no one value suits.
    PENALTIES = tuple(10.0**power for power in range(9))
    CHUNK = 256  # windows at a time

    def __init__(self, info: SeriesInfo) -> None:
        super().__init__()
        # A slot that occurs once in the train segment has no leave-one-out mean.
        self.features = SeasonalFeatures(info) if info.season_count >= 2 else DifferenceFeatures(info)
        self.register_buffer("coefficients", torch.zeros(self.features.count(), info.horizon, dtype=torch.float64))
        self._solutions: Tensor | None = None  # (K, F, Q), one for each penalty

    def forward(self, batch: Batch) -> Tensor:
        ahead = (self.features(batch) @ self.coefficients).movedim(-1, 1)
        return (self.features.reference(batch) + ahead).to(batch.history.dtype)

    def fit(self, windows: TrainWindows) -> None:
        """Solve for every penalty, and take the smallest until :meth:`choose` is called."""
        penalties = self.coefficients.new_tensor(self.PENALTIES)
        whole, gaps = self._sums(windows)
        if gaps is None:
            self._solutions = whole.coefficients(penalties)
        else:
            moments = Moments(whole.gram + gaps.gram, whole.moment.T[..., None] + gaps.moment)
            self._solutions = moments.coefficients(penalties)[..., 0].mT
        self.coefficients.copy_(self._solutions[0])

    def choose(self, windows: TrainWindows, by: str) -> float:
        """Take the penalty with the smallest error over the readings of these windows, ``rmse`` or ``mae``, and return it.

        Raises:
            ValueError: nothing is fitted.
        """
        if self._solutions is None:
            raise ValueError("the ridge is not fitted")
        errors = self.coefficients.new_zeros(len(self.PENALTIES))
        for index in torch.arange(len(windows), device=self.coefficients.device).split(self.CHUNK):
            batch = windows.gather(index)
            x, y = self.features(batch), (batch.target.double() - self.features.reference(batch)).movedim(1, -1)
            seen = None if batch.target_mask is None else batch.target_mask.movedim(1, -1)
            for number, solution in enumerate(self._solutions):
                error = x @ solution - y
                error = error.square() if by == "rmse" else error.abs()
                errors[number] += (error if seen is None else error[seen]).sum()
        best = int(errors.argmin())
        self.coefficients.copy_(self._solutions[best])
        return self.PENALTIES[best]

    def _sums(self, windows: TrainWindows) -> tuple[Moments, Moments | None]:
        """The sums over the rows with all Q readings ahead, and those by horizon step over the rows with some of them, or None."""
        size, horizon = self.coefficients.shape
        zeros = self.coefficients.new_zeros
        whole, gaps = Moments(zeros(size, size), zeros(size, horizon)), None
        for index in torch.arange(len(windows), device=self.coefficients.device).split(self.CHUNK):
            batch = windows.gather(index)
            x = self.features(batch).flatten(0, -2)
            y = (batch.target.double() - self.features.reference(batch)).movedim(1, -1).flatten(0, -2)
            if batch.target_mask is not None:
                seen = batch.target_mask.movedim(1, -1).flatten(0, -2)
                complete = seen.all(1)
                some = seen.any(1) & ~complete
                if bool(some.any()):
                    gaps = gaps or Moments(zeros(horizon, size, size), zeros(horizon, size, 1))
                    for step in range(horizon):
                        rows = some & seen[:, step]
                        gaps.gram[step] += x[rows].T @ x[rows]
                        gaps.moment[step] += x[rows].T @ y[rows, step, None]
                x, y = x[complete], y[complete]
            whole.gram.add_(x.T @ x)
            whole.moment.add_(x.T @ y)
        return whole, gaps
