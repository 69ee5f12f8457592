"""Windows of several data sets, for a training that goes over all of them (``data.pretrain``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stlab.data.windows import Windows
from stmodels.types import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray


class JointWindows(Windows):
    """The windows of several data sets, one set after the other. A batch holds windows of one set alone, since their grids may differ.

    Slots of the week are those of a week of ``slots_per_day`` a day, since a model has one table of them: a set with shorter steps gives
    the slot in which a step begins, and one with longer steps leaves slots out.
    """

    series = None

    def __init__(self, members: Sequence[tuple[Windows, int | None]], slots_per_day: int | None) -> None:
        """``members``: the windows of each set and its own slots per day; ``slots_per_day``: those of the batches. None: no timestamps."""
        self._members, self._slots_per_day = list(members), slots_per_day
        self.starts = torch.cat([windows.starts for windows, _ in members])
        self.first_target = min(windows.first_target for windows, _ in members)
        self._ends = np.cumsum([len(windows) for windows, _ in members])

    def gather(self, index: Tensor) -> Batch:
        """The windows with these numbers, all of one set.

        Raises:
            ValueError: they are of several sets.
        """
        first, last = (int(number) for number in index.aminmax())
        number = int(np.searchsorted(self._ends, first, side="right"))
        if last >= self._ends[number]:
            raise ValueError(f"windows {first} to {last} are of several data sets; a batch holds those of one")
        windows, slots_per_day = self._members[number]
        batch = windows.gather(index - int(self._ends[number]) + len(windows))
        return batch._replace(
            history_slot=_with_slots(batch.history_slot, slots_per_day, self._slots_per_day),
            target_slot=_with_slots(batch.target_slot, slots_per_day, self._slots_per_day),
        )

    def batches(self, order: Tensor, size: int) -> Sequence[Tensor]:
        """Batches of each set, in the order of their first windows in ``order``. Each set takes part by its number of windows."""
        owner = torch.bucketize(order, torch.as_tensor(self._ends, device=order.device), right=True)
        found = []
        for number in range(len(self._members)):
            places = (owner == number).nonzero().flatten()
            found += list(zip(places[::size].tolist(), order[places].split(size), strict=True))
        return [batch for _, batch in sorted(found, key=lambda pair: pair[0])]

    def batch_count(self, size: int) -> int:
        return sum(math.ceil(len(windows) / size) for windows, _ in self._members)

    def times(self, index: Tensor) -> NDArray[np.datetime64] | None:
        return None


def _with_slots(slots: Tensor | None, own: int | None, wanted: int | None) -> Tensor | None:
    """Slots of a week with ``own`` slots per day as those of a week with ``wanted``."""
    if slots is None or own is None or wanted is None or own == wanted:
        return slots
    return slots // own * wanted + slots % own * wanted // own
