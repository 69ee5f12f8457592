"""A data set as a trial sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from stlab.data.formats.content import CHANNEL_AXIS, SEGMENTS
from stlab.data.protocol.scaler import Scaler
from stlab.data.windows import Windows
from stmodels.types import SeriesInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


class WindowSource(Protocol):
    """Cuts, or has, the windows of each segment."""

    def windows(self, segment: str, device: torch.device) -> Windows: ...


@dataclass(frozen=True)
class TrainReadings:
    """What the train segment holds, for pictures and summaries; of ready-made windows, the first step of each."""

    values: NDArray[np.float32]
    """(n, *S), in the data's unit."""
    slots: NDArray[np.int64] | None
    """(n,) slot of the week, Monday 00:00 = 0."""
    timestamps: NDArray[np.datetime64] | None
    """(n,) datetime64[s]."""


@dataclass(frozen=True)
class Dataset:
    """One data set under one protocol: read, checked, split, scaled."""

    name: str
    synthetic: bool
    sha256: str
    """Hash of the content as used: shape, float32 values and timestamps; the same for any file format. Of sensors
    that is the channel that is forecast."""
    info: SeriesInfo
    scaler: Scaler
    nonnegative: bool
    """No train value is negative: forecasts are clamped at 0."""
    clamp: tuple[float, float] | None
    """The range forecasts are clamped to, in the data's unit (``protocol: unist``)."""
    leaks: bool
    """Something later than the forecast is seen: by UniST's scaler, or in gaps that were interpolated."""
    scale: float
    """Factor on reported errors."""
    protocol: dict[str, Any]
    """The fingerprint: rows with different ones do not belong in one table."""
    channel_names: tuple[str, ...]
    train: TrainReadings
    source: WindowSource
    node_names: tuple[str, ...] | None = None
    """Ids of the N sensors; "row,column" for a grid's cells as sensors; None where not known, and for a grid."""
    edges: NDArray[np.float64] | None = None
    """(E, 3) edges of the road network: index of the from node, of the to node, cost; None where not given."""

    def windows(self, segment: str, device: str | torch.device = "cpu") -> Windows:
        """The windows of ``train``, ``validation`` or ``test``, on a device. A series is copied there once."""
        if segment not in SEGMENTS:
            raise ValueError(f"no segment '{segment}'; there is {', '.join(SEGMENTS)}")
        return self.source.windows(segment, torch.device(device))


def fingerprint(
    spec: DataSpec,
    sha256: str,
    shape: tuple[int, ...],
    *,
    scaler: str,
    split: list[float] | str,
    missing: str,
    null: float | None,
) -> dict[str, Any]:
    """What has to agree before two results may stand in one table: kinds, no fitted values, no train ratio.

    ``missing`` belongs to it because the hash is of the data as read: the same file filled in two ways is two data
    sets. ``mask`` is the value that stands for "no reading", None where there is none (``data.null: auto`` resolved);
    ``channel`` is the one of a network's that is forecast, None for a grid, where all are.
    """
    return {
        "protocol": spec.protocol,
        "data_sha256": sha256,
        "family": spec.family,
        "channels": shape[CHANNEL_AXIS[spec.family]],
        "channel": spec.channel if spec.family == "sensors" else None,
        "history": spec.history,
        "horizon": spec.horizon,
        "split": split,
        "scaler": scaler,
        "mask": null,
        "scale": spec.scale,
        "missing": missing,
    }


def numbered_channels(family: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names for channels that have none."""
    return tuple(f"channel {i + 1}" for i in range(shape[CHANNEL_AXIS[family]]))


def resolved_null(spec: DataSpec, automatic: float | None) -> float | None:
    """The value that means "no reading"; ``automatic`` is what the data's kind says where the specification has
    ``auto``."""
    return automatic if spec.null == "auto" else spec.null
