"""The content of a file: a series, or windows that were cut elsewhere. Nothing is scaled or filled here.

Legend: T steps, P history, Q horizon, S the shape of one step: (C, H, W) for a grid and (N, C) for sensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_SECONDS = 86_400
SEGMENTS = ("train", "validation", "test")

# The axes of a family's array, time first, and the axis of one step that holds the channels.
FAMILY_AXES = {"grid": ("T", "C", "H", "W"), "sensors": ("T", "N", "C")}
CHANNEL_AXIS = {"grid": 0, "sensors": 1}


@dataclass(frozen=True)
class Series:
    """A series as it was read: shape, type and timestamps are checked, but values may be missing (non-finite)."""

    values: NDArray[np.float32]
    """(T, *S), in the unit of the data."""
    timestamps: NDArray[np.datetime64] | None
    """(T,) datetime64[s], evenly spaced by a divisor of a day. None if the file has none."""
    source: str
    """The path as the user gave it, for messages."""
    name: str
    synthetic: bool = False
    channel_names: tuple[str, ...] | None = None
    node_names: tuple[str, ...] | None = None
    """Ids of the N sensors if the file has them. None for a grid."""
    null: float | None = None
    """The value that means "no reading" (``data.null``), or None. A reader sets the value that ``auto`` stands for."""
    array: str = "data"
    """The name of the values in the file, for messages."""
    edges: NDArray[np.float64] | None = None
    """(E, 3) edges of the road network: index of the node an edge leaves, of the node it enters, and its cost. None if not given."""
    grid_shape: tuple[int, int] | None = None
    """(H, W) of the grid whose cells are used as sensors."""
    channels: tuple[int, ...] | None = None
    """Index in the file of each channel of this series, for messages; None if all are here."""
    left_out: str = ""
    """A sentence on the steps that the file leaves out and that count as missing here, for messages."""

    @property
    def step_seconds(self) -> int:
        """Length of a step in seconds. Raises ValueError without timestamps or with a single one."""
        if self.timestamps is None or len(self.timestamps) < 2:
            raise ValueError("a step has no length without two timestamps")
        return int((self.timestamps[1] - self.timestamps[0]).astype(np.int64))

    @property
    def slots_per_day(self) -> int:
        """Steps per day. Raises ValueError without timestamps or with a single one."""
        return DAY_SECONDS // self.step_seconds


@dataclass(frozen=True)
class ReadyWindows:
    """Windows as they were read, by segment. Their position in the series they were cut from is not known."""

    values: Mapping[str, NDArray[np.float32]]
    """Segment → (windows, P + Q, *S), in the unit of the data."""
    slots: Mapping[str, NDArray[np.int64]] | None
    """Segment → (windows, P + Q) slots of the week, counted from Monday 00:00."""
    slots_per_day: int | None
    timestamps: Mapping[str, NDArray[np.datetime64]] | None
    """Segment → (windows, P + Q) datetime64[s]. None if the file has no dates."""
    source: str
    name: str


def flattened(grid: Series) -> Series:
    """A grid (T, C, H, W) as a network of its H·W cells, row by row: (T, N, C). The nodes are named "row,column", and 0 is a reading."""
    steps, channels, height, width = grid.values.shape
    cells = np.moveaxis(grid.values.reshape(steps, channels, height * width), 1, 2)
    names = tuple(f"{row},{column}" for row in range(height) for column in range(width))
    return replace(grid, values=np.ascontiguousarray(cells), node_names=names, null=None, grid_shape=(height, width))


def channels_of(series: Series, chosen: Sequence[int], field: str = "data.channel") -> Series:
    """Some channels of a sensor series, (T, N, channels), with their names. ``field`` names the choice in messages.

    Raises:
        DataError: there is no such channel.
    """
    names = channel_names(series, "sensors")
    for channel in chosen:
        if channel >= len(names):
            raise DataError(
                f"{series.source}: array `{series.array}` has {len(names)} channels, and {field}={channel} is none of "
                f"them. Set {field} to {' or '.join(f'{i} ({name})' for i, name in enumerate(names))}."
            )
    return replace(
        series,
        values=np.ascontiguousarray(series.values[:, :, list(chosen)]),
        channel_names=tuple(names[channel] for channel in chosen),
        channels=tuple(chosen),
    )


def channel_names(series: Series, family: str) -> tuple[str, ...]:
    """The names of a series' channels; numbers if the file has no names."""
    return series.channel_names or numbered_channels(family, series.values.shape[1:])


def numbered_channels(family: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Numbers as names of the channels of a step of this shape."""
    return tuple(f"channel {i + 1}" for i in range(shape[CHANNEL_AXIS[family]]))


def content_hash(*arrays: NDArray[np.generic] | None) -> str:
    """SHA-256 of the shape and the content of arrays. It does not depend on the file format or the byte order.

    Floats are hashed as float32 (all NaNs are equal, and so are 0 and -0), times as seconds, and integers as int64.
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
    """``content_hash`` of ready-made windows and their slots, in the order of ``SEGMENTS``."""
    slots = content.slots or {}
    return content_hash(*(content.values[name] for name in SEGMENTS), *(slots.get(name) for name in SEGMENTS))
