"""A data set from a series: it is split by time, and scaler and season are fitted on the train segment (protocol: "Split", "Scaling")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from stlab.data.adjacency import adjacency
from stlab.data.dataset import Dataset, TrainReadings, fingerprint
from stlab.data.formats.content import Series, channel_names, channels_of, content_hash
from stlab.data.inputs import Inputs, make_inputs
from stlab.data.protocol.missing import fill_missing
from stlab.data.protocol.scaler import Scaler, fit_min_max, fit_z_score
from stlab.data.protocol.season import Season, season_by_slot, slot_of_week
from stlab.data.protocol.split import split_series, used_steps
from stlab.data.windows import SeriesTensors, SeriesWindows, Windows
from stlab.errors import DataError
from stmodels.types import SeriesInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


@dataclass(frozen=True)
class SeriesSource:
    """Cuts windows out of a series."""

    tensors: SeriesTensors
    segments: Mapping[str, tuple[int, int]]
    history: int
    horizon: int
    timestamps: NDArray[np.datetime64] | None
    on_device: dict[torch.device, SeriesTensors] = field(default_factory=dict)

    def windows(self, segment: str, device: torch.device, past: int) -> Windows:
        if device not in self.on_device:
            self.on_device[device] = self.tensors.to(device)
        tensors = self.on_device[device]
        start, end = self.segments[segment]
        return SeriesWindows(tensors, (start, end), self.history, self.horizon, self.timestamps, past)


def dataset_from_series(series: Series, spec: DataSpec) -> Dataset:
    """Split, fill and scale a series. The scaler of a grid is min-max, and that of a network is the z-score of its readings.

    Missing readings (``data.null``) keep their value in the history, and everything that is fitted leaves them out.

    Args:
        series: the content of the file, with all its channels. Of a network, ``data.channel`` is forecast.

    Raises:
        DataError: there is no such channel, there are too few steps, values are missing and ``data.missing`` is ``error``, the train
            segment does not change, or the protocol is that of ready-made windows.
    """
    if spec.protocol != "forecast":
        raise DataError(
            f"{series.source}: data.protocol: {spec.protocol} is for UniST's ready-made windows (.json). For a "
            "series, leave it at forecast."
        )
    segments = split_series(len(series.values), spec, series.source)
    (_, train_end), (validation_start, validation_end), (_, end) = segments.values()
    ends = (train_end, validation_start, validation_end, end)
    inputs = make_inputs(series, spec, train_end, ends)
    if spec.family == "sensors":
        series = channels_of(series, [spec.channel])
    values, filled = fill_missing(series, spec.missing, spec.family, ends)
    train, times = values[:train_end], series.timestamps
    seen = None if series.null is None else values != np.float32(series.null)
    if seen is not None:
        _check_readings(seen, segments, series)
    readings = train if seen is None else train[seen[:train_end]]
    if spec.family == "sensors":
        scaler = fit_z_score(readings, series.source)
    else:
        scaler = fit_min_max(float(train.min()), float(train.max()), series.source)
    slots = None if times is None else slot_of_week(times, series.step_seconds)
    season = None
    if slots is not None:
        season = season_by_slot(values, slots, series.slots_per_day, train_end, used_steps(segments), seen)
    info = _info(series, spec, train, seen, scaler, season, lookback=validation_start + spec.history)
    if spec.family == "sensors":
        matrix = adjacency(series, spec, train, None if seen is None else seen[:train_end])
        info = info._replace(adjacency=None if matrix is None else torch.from_numpy(matrix))
    if inputs is not None:
        info = info._replace(inputs=inputs.values.shape[-1])
    sha256 = content_hash(series.values, times)
    return Dataset(
        name=series.name,
        synthetic=series.synthetic,
        sha256=sha256,
        info=info,
        scaler=scaler,
        nonnegative=bool(readings.min(initial=0) >= 0),
        clamp=None,
        leaks=filled == "interpolate",
        scale=spec.scale,
        protocol=fingerprint(
            spec,
            sha256,
            info.shape,
            scaler=scaler.kind,
            split=[float(share) for share in spec.split],
            missing=filled,
            null=series.null,
        ),
        channel_names=channel_names(series, spec.family),
        train=TrainReadings(
            train, None if slots is None else slots[:train_end], None if times is None else times[:train_end]
        ),
        source=SeriesSource(
            _tensors(values, scaler, slots, season, seen, inputs), segments, spec.history, spec.horizon, times
        ),
        node_names=series.node_names,
        edges=series.edges,
        inputs=inputs,
        season=None if season is None else torch.stack([scaled_tensor(one, scaler) for one in (season.table, season.profile)]),
    )


def _check_readings(seen: NDArray[np.bool_], segments: Mapping[str, tuple[int, int]], series: Series) -> None:
    """Raise DataError if a segment has no reading, since no error can be computed on it."""
    for name, (start, end) in segments.items():
        if not seen[start:end].any():
            raise DataError(
                f"{series.source}: no reading in the {name} segment, steps {start} to {end - 1}: all are {series.null:g}, which stands for "
                "a missing one. Set data.null: none if it is a reading, or change data.split."
            )


def _info(
    series: Series,
    spec: DataSpec,
    train: NDArray[np.float32],
    seen: NDArray[np.bool_] | None,
    scaler: Scaler,
    season: Season | None,
    lookback: int,
) -> SeriesInfo:
    """The facts for the model. Standard deviations are of readings, and a change counts if both of its steps have one."""
    seen = None if seen is None else seen[: len(train)]
    change = _changes(train, seen)
    flow_std = float(change.std() / scaler.spread) if change.size else 0.0
    if flow_std == 0:
        raise DataError(
            f"{series.source}: no value of array `{series.array}` changes within the train segment ({len(train)} steps); "
            "there is nothing to learn. Give data that vary in time."
        )
    residual_std = residual_flow_std = None
    if season is not None:
        residual = train - season.values[: len(train)]
        residual_std = float((residual if seen is None else residual[seen]).std() / scaler.spread)
        residual_flow_std = float(_changes(residual, seen).std() / scaler.spread)
    return SeriesInfo(
        family=spec.family,
        shape=train.shape[1:],
        history=spec.history,
        horizon=spec.horizon,
        slots_per_day=None if series.timestamps is None else series.slots_per_day,
        flow_std=flow_std,
        season_count=0 if season is None else season.rarest,
        residual_std=residual_std,
        residual_flow_std=residual_flow_std,
        zero=scaler.zero,
        lookback=lookback,
        train_steps=len(train),
    )


def _changes(values: NDArray[np.floating], seen: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """x_t − x_{t−1} where both have a reading."""
    change = np.diff(values.astype(np.float64), axis=0)
    return change if seen is None else change[seen[1:] & seen[:-1]]


def _tensors(
    values: NDArray[np.float32],
    scaler: Scaler,
    slots: NDArray[np.int64] | None,
    season: Season | None,
    seen: NDArray[np.bool_] | None,
    inputs: Inputs | None,
) -> SeriesTensors:
    return SeriesTensors(
        series=scaled_tensor(values, scaler),
        slots=None if slots is None else torch.from_numpy(slots),
        season=None if season is None else scaled_tensor(season.values, scaler),
        mask=None if seen is None else torch.from_numpy(seen),
        inputs=None if inputs is None else inputs.values,
        profile=None if season is None else scaled_tensor(season.profile, scaler),
    )


def scaled_tensor(values: NDArray[np.floating], scaler: Scaler) -> torch.Tensor:
    """Readings in scaled space as float32, computed in float64."""
    return torch.from_numpy(scaler.transform(values.astype(np.float64)).astype(np.float32))
