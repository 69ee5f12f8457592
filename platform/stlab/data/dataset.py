"""A data set that is ready for a trial: read, checked, split and scaled."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from stlab.data.formats.content import CHANNEL_AXIS, SEGMENTS, content_hash
from stlab.data.inputs import Inputs
from stlab.data.joint import JointWindows
from stlab.data.protocol.scaler import Scaler
from stlab.data.windows import Windows
from stmodels.types import SeriesInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stlab.study.spec import DataSpec


class WindowSource(Protocol):
    """Gives the windows of each segment."""

    def windows(self, segment: str, device: torch.device, past: int) -> Windows: ...


@dataclass(frozen=True)
class TrainReadings:
    """The readings of the train segment, for figures and summaries. Of ready-made windows, only the first step is kept."""

    values: NDArray[np.float32]
    """(n, *S), in the unit of the data."""
    slots: NDArray[np.int64] | None
    """(n,) slots of the week, counted from Monday 00:00."""
    timestamps: NDArray[np.datetime64] | None
    """(n,) datetime64[s]."""


_IN_WORDS = {
    "network": "network's edges (data.distances, data.graph)",
    "inputs": "further channels (data.inputs)",
    "pretrain": "data sets of the pre-training (data.pretrain)",
}


@dataclass(frozen=True)
class Dataset:
    """One data set under one protocol."""

    name: str
    synthetic: bool
    sha256: str
    """Hash of the content that is used: shape, float32 values and timestamps. It does not depend on the file format. For sensors it covers
    only the channel that is forecast."""
    info: SeriesInfo
    scaler: Scaler
    nonnegative: bool
    """Whether no train value is negative. Forecasts are then clamped at 0."""
    clamp: tuple[float, float] | None
    """The range, in the unit of the data, to which forecasts are clamped (``protocol: unist``)."""
    leaks: bool
    """Whether something later than the forecast is seen, by UniST's scaler or in interpolated gaps."""
    scale: float
    """Reported errors are multiplied by this factor."""
    protocol: dict[str, Any]
    """The fingerprint of the protocol. One table holds only rows with the same fingerprint."""
    channel_names: tuple[str, ...]
    train: TrainReadings
    source: WindowSource
    node_names: tuple[str, ...] | None = None
    """Ids of the N sensors, or "row,column" for the cells of a grid that are used as sensors. None for a grid, or if they are not known."""
    edges: NDArray[np.float64] | None = None
    """(E, 3) edges of the road network: index of the node an edge leaves, of the node it enters, and its cost. None if not given."""

    season: torch.Tensor | None = None
    """(2, slots of the week, *S) scaled: the mean of the train readings at each slot, which forecasts are added to, and the profile that
    models read. None without one."""
    inputs: Inputs | None = None
    """Further channels of the sensors (``data.inputs``)."""
    pretrain: tuple[Dataset, ...] = ()
    """The data sets of ``data.pretrain``, each split and scaled by itself; the one that holds this may be among them."""

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """What only some models read of the data, by name (``PARTS``), with the hash of its content: the network's weights, and the further
        channels, and the data sets of a pre-training."""
        network = None if self.info.adjacency is None else content_hash(self.info.adjacency.numpy())
        inputs = None if self.inputs is None else self.inputs.sha256
        found = {"network": network, "inputs": inputs, "pretrain": _joint_hash(self.pretrain) if self.pretrain else None}
        return {part: sha256 for part, sha256 in found.items() if sha256 is not None}

    def changed_parts(self, recorded: Mapping[str, str]) -> list[str]:
        """Of parts with the hashes that a trial recorded, those that are others here, in words."""
        return [_IN_WORDS[part] for part, sha256 in recorded.items() if sha256 != self.parts.get(part)]

    def windows(self, segment: str, device: str | torch.device = "cpu", past: int = 0) -> Windows:
        """The windows of ``train``, ``validation`` or ``test``, on a device. The series is copied to each device once.

        Args:
            past: the number of steps before the history that a batch holds too. Windows of the train segment with fewer are left out,
                which may be all of them.
        """
        if segment not in SEGMENTS:
            raise ValueError(f"no segment '{segment}'; the segments are {', '.join(SEGMENTS)}")
        return self.source.windows(segment, torch.device(device), past)

    def pretrain_windows(self, device: str | torch.device = "cpu") -> Windows:
        """The train windows of the data sets of ``data.pretrain``, of which there is one at least."""
        members = [(other.windows("train", device), other.info.slots_per_day) for other in self.pretrain]
        return JointWindows(members, self.info.slots_per_day)


def _joint_hash(datasets: Sequence[Dataset]) -> str:
    """Hash of the contents of data sets, of how each is split and scaled, and of what part of it is trained on."""
    read = [{**other.protocol, "train_steps": other.info.train_steps} for other in datasets]
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


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
    """Everything that must agree before two results may share a table. It holds no fitted values and no train ratio.

    ``missing`` is part of it because the hash covers the data before gaps are filled: one file that is filled in two ways is two data
    sets. ``mask`` is the value that means "no reading", or None, with ``data.null: auto`` resolved. ``channel`` is the channel of a
    network that is forecast, and None for a grid, whose channels are forecast together.
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


def resolved_null(spec: DataSpec, automatic: float | None) -> float | None:
    """The value that means "no reading". ``automatic`` is the value for this kind of data, which ``auto`` stands for."""
    return automatic if spec.null == "auto" else spec.null
