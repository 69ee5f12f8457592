"""A data set from ready-made windows by the protocol of UniST: one scaler covers all segments, and forecasts are clamped to its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from stlab.data.dataset import Dataset, TrainReadings, fingerprint, resolved_null
from stlab.data.formats.content import SEGMENTS, ReadyWindows, numbered_channels, windows_hash
from stlab.data.from_series import scaled_tensor
from stlab.data.protocol.scaler import fit_min_max
from stlab.data.protocol.split import share_of
from stlab.data.windows import ReadyMadeWindows, Windows
from stlab.errors import DataError
from stmodels.types import SeriesInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


@dataclass(frozen=True)
class ReadySource:
    """Holds the ready-made windows of each segment. The fields are keyed by segment."""

    values: Mapping[str, torch.Tensor]
    slots: Mapping[str, NDArray[np.int64]] | None
    timestamps: Mapping[str, NDArray[np.datetime64]] | None
    masks: Mapping[str, torch.Tensor] | None
    history: int

    def windows(self, segment: str, device: torch.device, past: int) -> Windows:
        if past:
            raise DataError(f"ready-made windows are no series, and the model reads {past} steps before each. Give a series as data.path.")
        return ReadyMadeWindows(
            self.values[segment].to(device),
            None if self.slots is None else torch.from_numpy(self.slots[segment]).to(device),
            None if self.masks is None else self.masks[segment].to(device),
            self.history,
            None if self.timestamps is None else self.timestamps[segment],
        )


def dataset_from_windows(content: ReadyWindows, spec: DataSpec) -> Dataset:
    """Scale ready-made windows. Few-shot uses the first train windows, while the scaler is that of the whole file.

    There is no mean by slot of the week. It would have to leave out the window's own readings, and the file does not say which windows
    share a reading.

    Raises:
        DataError: the protocol is not ``unist``, the windows have another length, or values are missing or do not vary.
    """
    problem = unfit_message(content, spec)
    if problem:
        raise DataError(problem)
    every, filled = _fill(content, spec.missing)
    low, high = (float(limit) for limit in (min(v.min() for v in every.values()), max(v.max() for v in every.values())))
    scaler = fit_min_max(low, high, content.source, "all three segments")
    few = share_of(spec.train_ratio, len(every["train"]))
    values, slots, times = (
        _first_train(every, few),
        _first_train(content.slots, few),
        _first_train(content.timestamps, few),
    )
    assert values is not None
    train = values["train"]
    flow_std = float(np.diff(train.astype(np.float64), axis=1).std() / scaler.spread)
    if flow_std == 0:
        raise DataError(f"{content.source}: no train window changes in time; nothing to learn. Give data that vary.")
    shape, sha256, null = train.shape[2:], windows_hash(content), resolved_null(spec, None)
    return Dataset(
        name=content.name,
        synthetic=False,
        sha256=sha256,
        info=SeriesInfo(
            family=spec.family,
            shape=shape,
            history=spec.history,
            horizon=spec.horizon,
            slots_per_day=content.slots_per_day,
            flow_std=flow_std,
            zero=scaler.zero,
            lookback=spec.history,
        ),
        scaler=scaler,
        nonnegative=bool(train.min() >= 0),
        clamp=(low, high),
        leaks=True,
        scale=spec.scale,
        protocol=fingerprint(
            spec,
            sha256,
            shape,
            scaler=f"{scaler.kind} over all segments",
            split="ready-made",
            missing=filled,
            null=null,
        ),
        channel_names=numbered_channels(spec.family, shape),
        train=TrainReadings(
            train[:, 0],
            None if slots is None else slots["train"][:, 0],
            None if times is None else times["train"][:, 0],
        ),
        source=ReadySource(
            {name: scaled_tensor(array, scaler) for name, array in values.items()},
            slots,
            times,
            None
            if null is None
            else {name: torch.from_numpy(array != np.float32(null)) for name, array in values.items()},
            spec.history,
        ),
    )


def unfit_message(content: ReadyWindows, spec: DataSpec) -> str | None:
    """The reason why these windows do not fit the specification, or None."""
    if spec.protocol != "unist":
        return (
            f"{content.source}: UniST's ready-made windows. Their scaler is fitted on the test segment too, so "
            "figures made with them leak: say that you want this with data.protocol: unist."
        )
    length = content.values["train"].shape[1]
    if length != spec.history + spec.horizon:
        return (
            f"{content.source}: the windows have {length} steps; data.history {spec.history} and data.horizon "
            f"{spec.horizon} must add up to that."
        )
    if share_of(spec.train_ratio, len(content.values["train"])) == 0:
        return (
            f"{content.source}: train_ratio {spec.train_ratio:g} of {len(content.values['train'])} train windows is "
            "none. Raise data.train_ratio."
        )
    for segment in SEGMENTS:
        missing = ~np.isfinite(content.values[segment])
        if missing.any() and spec.missing != "zero":
            first = [int(i) for i in np.argwhere(missing)[0]]
            return (
                f"{content.source}: {int(missing.sum())} values of the {segment} windows are not finite, the first "
                f"at [window, step, C, H, W] = {first}. Ready-made windows can only be filled with data.missing: zero."
            )
    return None


def _fill(content: ReadyWindows, method: str) -> tuple[dict[str, NDArray[np.float32]], str]:
    if all(np.isfinite(array).all() for array in content.values.values()):
        return dict(content.values), "none"
    return {name: np.where(np.isfinite(a), a, np.float32(0)) for name, a in content.values.items()}, method


def _first_train(arrays: Mapping[str, np.ndarray] | None, few: int) -> dict[str, np.ndarray] | None:
    return None if arrays is None else {**arrays, "train": arrays["train"][:few]}
