"""Windows on the device: batches are gathered by index from tensors that are already there.

The data is small enough to stay on the device, so that training needs no loader, no worker processes and no copies from the host.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stlab.errors import DataError
from stmodels.types import Batch, Readings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Windows(ABC):
    """The windows of one segment."""

    starts: Tensor
    """(windows,) int64 on the device: index in the series of each window's first history step. For ready-made windows it is the number of
    the window."""
    series: Tensor | None
    """(T, *S) the whole scaled series on the device. None for ready-made windows."""
    first_target: int
    """Index in the series of the earliest target step. P for ready-made windows."""

    def __len__(self) -> int:
        return len(self.starts)

    @abstractmethod
    def gather(self, index: Tensor) -> Batch:
        """The windows with these numbers, (B,) int64 on the device, as a batch. An index past the end raises IndexError."""

    def batches(self, order: Tensor, size: int) -> Sequence[Tensor]:
        """Windows by number, in the order of ``order``, as batches of at most ``size``."""
        return order.split(size)

    def batch_count(self, size: int) -> int:
        """The number of batches that it takes to see every window once."""
        return math.ceil(len(self) / size)

    def readings(self) -> Readings:
        """The readings of the segment, in order.

        Raises:
            DataError: the windows are ready-made, and the series that they were cut from is not known.
        """
        raise DataError("ready-made windows are no series, and what the model prepares is computed from one. Give a series as data.path.")

    @abstractmethod
    def times(self, index: Tensor) -> NDArray[np.datetime64] | None:
        """Times of the target steps, (B, Q) datetime64[s]. None if the data has no dates."""


@dataclass(frozen=True)
class SeriesTensors:
    """A series on one device: ``series`` and ``season`` (T, *S) scaled, ``slots`` (T,) int64, ``mask`` (T, *S) bool, ``inputs`` (T, N, K)
    and ``profile`` (slots of the week, *S) scaled. All but the first may be None."""

    series: Tensor
    slots: Tensor | None
    season: Tensor | None
    mask: Tensor | None
    inputs: Tensor | None = None
    profile: Tensor | None = None

    def to(self, device: torch.device) -> SeriesTensors:
        tensors = (self.slots, self.season, self.mask, self.inputs, self.profile)
        return SeriesTensors(self.series.to(device), *(None if tensor is None else tensor.to(device) for tensor in tensors))


class SeriesWindows(Windows):
    """Every window that lies completely in a segment [start, end) of a series, and has ``past`` steps of the series before it. One window
    starts at each step."""

    def __init__(
        self,
        tensors: SeriesTensors,
        segment: tuple[int, int],
        history: int,
        horizon: int,
        timestamps: NDArray[np.datetime64] | None,
        past: int = 0,
    ) -> None:
        start, end = max(segment[0], past), segment[1]
        device = tensors.series.device
        self._tensors, self._segment = tensors, segment
        self._timestamps = timestamps
        self.series = tensors.series
        # None has so many steps before it where the segment is short.
        self.starts = torch.arange(start, max(start, end - history - horizon + 1), device=device)
        self.first_target = start + history
        steps = self.starts[:, None] + torch.arange(history + horizon, device=device)
        self._past = torch.arange(-past, 0, device=device)
        self._history_steps, self._target_steps = steps[:, :history], steps[:, history:]  # (windows, P), (windows, Q)

    def gather(self, index: Tensor) -> Batch:
        data = self._tensors
        before, ahead = self._history_steps[index], self._target_steps[index]
        return Batch(
            history=_at(data.series, before),
            target=_at(data.series, ahead),
            start=self.starts[index],
            history_slot=None if data.slots is None else data.slots[before],
            target_slot=None if data.slots is None else data.slots[ahead],
            history_season=None if data.season is None else _at(data.season, before),
            target_season=None if data.season is None else _at(data.season, ahead),
            target_mask=None if data.mask is None else _at(data.mask, ahead),
            target_profile=None if data.profile is None or data.slots is None else _at(data.profile, data.slots[ahead]),
            history_inputs=None if data.inputs is None else _at(data.inputs, before),
            past=_at(data.series, before[:, :1] + self._past) if len(self._past) else None,
        )

    def readings(self) -> Readings:
        cut, data = slice(*self._segment), self._tensors
        further = (data.slots, data.mask, data.inputs)
        return Readings(data.series[cut], *(None if tensor is None else tensor[cut] for tensor in further))

    def times(self, index: Tensor) -> NDArray[np.datetime64] | None:
        return None if self._timestamps is None else self._timestamps[self._target_steps[index].cpu().numpy()]


def _at(values: Tensor, steps: Tensor) -> Tensor:
    """(T, *S) at steps (B, L) → (B, L, *S), contiguous. index_select copies whole steps, which is two to four times as fast as
    values[steps]."""
    return values.index_select(0, steps.flatten()).view(*steps.shape, *values.shape[1:])


class ReadyMadeWindows(Windows):
    """Windows that the file holds: scaled ``values`` (windows, P + Q, *S), ``slots`` and ``timestamps`` (windows, P + Q)."""

    series = None

    def __init__(
        self,
        values: Tensor,
        slots: Tensor | None,
        mask: Tensor | None,
        history: int,
        timestamps: NDArray[np.datetime64] | None,
    ) -> None:
        self._values = values
        self._slots = slots
        self._mask = mask
        self._history = history
        self._timestamps = timestamps
        self.starts = torch.arange(len(values), device=values.device)
        self.first_target = history

    def gather(self, index: Tensor) -> Batch:
        values, cut = self._values[index], self._history
        slots = None if self._slots is None else self._slots[index]
        return Batch(
            history=values[:, :cut].contiguous(),
            target=values[:, cut:].contiguous(),
            start=self.starts[index],
            history_slot=None if slots is None else slots[:, :cut],
            target_slot=None if slots is None else slots[:, cut:],
            target_mask=None if self._mask is None else self._mask[index, cut:],
        )

    def times(self, index: Tensor) -> NDArray[np.datetime64] | None:
        return None if self._timestamps is None else self._timestamps[index.cpu().numpy(), self._history :]
