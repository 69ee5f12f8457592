"""The inputs and outputs of a forecaster.

Shape legend, used everywhere in this package: B batch, P history steps, Q horizon steps, C channels, H×W grid, N nodes or
spatial tokens, S the shape of one time step: (C, H, W) for a grid, (N, C) for sensors. Time is always axis 1. Values are
scaled (by the scaler fitted on the train segment) unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Windows of a series.

    Everything after the history is in ``target`` and in fields named ``target_*``. A model may read only ``target_slot`` and
    ``target_profile`` of these, because they are known at the moment of the forecast. It may add to ``target_season``, and that is all. On
    train windows this mean leaves the reading itself out. A model that has learnt the profile could take the difference between both,
    and so compute the reading.
    """

    history: Tensor  # (B, P, *S)
    target: Tensor  # (B, Q, *S)
    start: Tensor  # (B,) int64: index in the series of the first step of the history
    history_slot: Tensor | None = None  # (B, P) int64: slot of the week, Monday 00:00 = 0; None without timestamps
    target_slot: Tensor | None = None  # (B, Q)
    history_season: Tensor | None = None  # (B, P, *S): mean of the train segment at that slot of the week
    target_season: Tensor | None = None  # (B, Q, *S); on train windows both means leave the reading itself out
    target_profile: Tensor | None = None  # (B, Q, *S): the mean of all train readings at that slot, the same in every window
    target_mask: Tensor | None = None  # (B, Q, *S) bool: True where there is a reading; None means everywhere
    history_inputs: Tensor | None = None  # (B, P, N, K): further channels of the sensors, each scaled by itself; None without any
    past: Tensor | None = None  # (B, R, *S): the R steps before the history, for models that read so far back (config.past)


def with_inputs(batch: Batch) -> Tensor:
    """(B, P, N, C + K): the history of the sensors and that of their further channels."""
    return batch.history if batch.history_inputs is None else torch.cat([batch.history, batch.history_inputs], dim=-1)


class Readings(NamedTuple):
    """The train segment, in order, for what is computed from it once."""

    values: Tensor  # (n, *S)
    slot: Tensor | None = None  # (n,) int64: slot of the week; None without timestamps
    mask: Tensor | None = None  # (n, *S) bool: True where there is a reading; None means everywhere
    inputs: Tensor | None = None  # (n, N, K): further channels, each scaled by itself; None without any


class Forecast(NamedTuple):
    """A forecast in scaled space."""

    value: Tensor  # (B, Q, *S)
    aux: Mapping[str, Tensor] | None = None  # what the further terms of a model's loss need, by names of its own


class ModelInput(NamedTuple):
    """The image that a model sees of each window."""

    channels: tuple[str, ...]  # names of the C image channels
    image: Tensor  # (B, C, N, N) in [0, 1]


class SeriesInfo(NamedTuple):
    """The facts that a model knows about its data before it sees any reading."""

    family: str  # "grid" or "sensors"
    shape: tuple[int, ...]  # S
    history: int  # P
    horizon: int  # Q
    slots_per_day: int | None  # None without timestamps
    flow_std: float  # standard deviation of x_t - x_{t-1} over the train segment, scaled
    season_count: int = 0  # train steps at the rarest slot of the week; 0 if a slot is never seen or there are no timestamps
    residual_std: float | None = None  # standard deviation of x_t - season_t over the train segment (without the reading itself), scaled
    zero: float = 0.0  # a reading of 0, scaled
    lookback: int = 0  # series steps that precede the earliest target of a validation or test window
    adjacency: Tensor | None = None  # (N, N) float32 ≥ 0: weight of the edge from node i to node j at [i, j]; None without a network
    residual_flow_std: float | None = None  # standard deviation of the change of x_t - season_t from step to step, scaled
    inputs: int = 0  # K, the number of further channels that the model is given of the history
    train_steps: int = 0  # the length of the train segment; 0 where it is not known

    @property
    def places(self) -> int:
        """N, the number of sensors, or of cells of a grid."""
        return self.shape[1] * self.shape[2] if self.family == "grid" else self.shape[0]

    @property
    def channels(self) -> int:
        """C, the number of channels that are forecast at each place."""
        return self.shape[0] if self.family == "grid" else self.shape[1]

    @property
    def series(self) -> int:
        """The number of series: places times channels."""
        return self.places * self.channels


def ring(nodes: int) -> Tensor:
    """A network of which each node has an edge to the two beside it: (N, N), for references and checks."""
    return (torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(-1, 0)).clamp_max(1).fill_diagonal_(0)


REFERENCE = {
    "grid": SeriesInfo("grid", (2, 16, 8), 6, 6, 24, 0.1, 5, 0.1, -1.0, 900),
    "sensors": SeriesInfo("sensors", (207, 1), 12, 12, 288, 0.1, 5, 0.1, -1.0, 9000, ring(207)),
}
"""Family → the shape at which parameters are counted: that of bikes in New York for grids, METR-LA for sensors."""
