"""What a reader returns: a series, or windows that somebody else has cut already. Nothing is scaled or filled here.

Shape legend as in ``stmodels.types``: T steps, P history, Q horizon, S the shape of one step, (C, H, W) for a grid
and (N, C) for sensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_SECONDS = 86_400
SEGMENTS = ("train", "validation", "test")

# The axes of a family's array, time first, and which axis of one step holds the channels.
FAMILY_AXES = {"grid": ("T", "C", "H", "W"), "sensors": ("T", "N", "C")}
CHANNEL_AXIS = {"grid": 0, "sensors": 1}


@dataclass(frozen=True)
class Series:
    """A series as read: checked for shape, type and timestamps; values may still be missing (non-finite)."""

    values: NDArray[np.float32]
    """(T, *S), in the data's own unit."""
    timestamps: NDArray[np.datetime64] | None
    """(T,) datetime64[s], evenly spaced by a divisor of a day; None where the file has none."""
    source: str
    """The path as it was given, for messages."""
    name: str
    synthetic: bool = False
    channel_names: tuple[str, ...] | None = None
    node_names: tuple[str, ...] | None = None
    """Ids of the N sensors, where the file tells them; None for a grid."""
    null: float | None = None
    """The value that stands for "no reading" (``data.null``), None where there is none. A reader says what ``auto``
    means for its file."""
    array: str = "data"
    """What the file calls the values, for messages."""
    edges: NDArray[np.float64] | None = None
    """(E, 3) edges of the road network: from node, to node (indices), cost; None where not given."""
    first_channel: int = 0
    """Number, in the file, of the first channel held here, for messages."""
    left_out: str = ""
    """Which steps the file leaves out, which stand here as missing; for messages."""

    @property
    def step_seconds(self) -> int:
        """Length of a step in seconds. Raises ValueError without timestamps or with a single one."""
        if self.timestamps is None or len(self.timestamps) < 2:
            raise ValueError("a step has no length without two timestamps")
        return int((self.timestamps[1] - self.timestamps[0]).astype(np.int64))

    @property
    def slots_per_day(self) -> int:
        """Steps a day. Raises ValueError without timestamps or with a single one."""
        return DAY_SECONDS // self.step_seconds


@dataclass(frozen=True)
class ReadyWindows:
    """Windows as read, by segment. Where a window lies in the series it was cut from is not known."""

    values: Mapping[str, NDArray[np.float32]]
    """Segment → (windows, P + Q, *S), in the data's own unit."""
    slots: Mapping[str, NDArray[np.int64]] | None
    """Segment → (windows, P + Q), slot of the week, Monday 00:00 = 0."""
    slots_per_day: int | None
    timestamps: Mapping[str, NDArray[np.datetime64]] | None
    """Segment → (windows, P + Q) datetime64[s]; None where the file tells no dates."""
    source: str
    name: str


def content_hash(*arrays: NDArray[np.generic] | None) -> str:
    """SHA-256 of arrays by shape and content, so that it does not depend on the file format or the byte order they
    came in.

    Floats count as float32 (one NaN, one zero), times as seconds, integers as int64.
    """
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        if array.dtype.kind == "f":
            plain = array.astype("<f4") + np.float32(0)  # -0.0 becomes 0.0
            plain[np.isnan(plain)] = np.nan
        elif array.dtype.kind == "M":
            plain = array.astype("datetime64[s]").astype("<i8")
        else:
            plain = array.astype("<i8")
        digest.update(f"{plain.dtype.str}{plain.shape};".encode())
        digest.update(np.ascontiguousarray(plain).tobytes())
    return digest.hexdigest()


def windows_hash(content: ReadyWindows) -> str:
    """``content_hash`` of ready-made windows and their slots, train first."""
    slots = content.slots or {}
    return content_hash(*(content.values[name] for name in SEGMENTS), *(slots.get(name) for name in SEGMENTS))
