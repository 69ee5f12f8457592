"""Hour and weekday from the slot of the week: as learned embeddings, as numbers, as zeros and ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def slot_and_day(slot_of_week: Tensor | None, slots_per_day: int) -> tuple[Tensor, Tensor]:
    """Slot of the week → slot of the day and day of the week, Monday 0."""
    assert slot_of_week is not None
    return slot_of_week % slots_per_day, slot_of_week // slots_per_day


def calendar_numbers(slot_of_week: Tensor | None, slots_per_day: int, dtype: torch.dtype) -> Tensor:
    """Slot of the week → fraction of the day, and day of the week as a number: (B, T) → (B, T, 2)."""
    slot, day = slot_and_day(slot_of_week, slots_per_day)
    return torch.stack([slot / slots_per_day, day.to(dtype)], dim=-1)


def one_hot_calendar(slot_of_week: Tensor | None, slots_per_day: int, dtype: torch.dtype) -> Tensor:
    """1 at the slot of the day and at the day of the week, 0 elsewhere: (B, T) → (B, T, slots_per_day + 7)."""
    slot, day = slot_and_day(slot_of_week, slots_per_day)
    return torch.cat([F.one_hot(slot, slots_per_day), F.one_hot(day, 7)], dim=-1).to(dtype)


class Calendar(nn.Module):
    """Slot of the week → embedding of the slot of the day plus embedding of the day: (B, T) → (B, T, D). ST-VFM's paper has neither."""

    def __init__(self, slots_per_day: int, width: int) -> None:
        super().__init__()
        self.slots_per_day = slots_per_day
        self.slot = nn.Parameter(torch.empty(slots_per_day, width))
        self.day = nn.Parameter(torch.empty(7, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.slot, std=0.02)
        nn.init.trunc_normal_(self.day, std=0.02)

    def forward(self, slot_of_week: Tensor) -> Tensor:
        slot, day = slot_and_day(slot_of_week, self.slots_per_day)
        return self.slot[slot] + self.day[day]


class CalendarTables(nn.Module):
    """Slot of the week → embedding of the slot of the day ‖ embedding of the day of the week: (B, T) → (B, T, width).

    Args:
        slots_per_day: None for zeros instead of tables, so that a network keeps its width without a calendar.
        slot_width, day_width: the widths of the two; ``width`` is their sum.
    """

    def __init__(self, slots_per_day: int | None, slot_width: int, day_width: int) -> None:
        super().__init__()
        self.width = slot_width + day_width
        self.slot = self.day = None
        if slots_per_day is not None:
            self.slot = nn.Embedding(slots_per_day, slot_width)
            self.day = nn.Embedding(7, day_width)

    def forward(self, slot_of_week: Tensor | None, history: Tensor) -> Tensor:
        """Zeros have the first two axes and the device of ``history``, (B, T, …)."""
        if self.slot is None or self.day is None:
            return history.new_zeros(*history.shape[:2], self.width)
        slot, day = slot_and_day(slot_of_week, self.slot.num_embeddings)
        return torch.cat([self.slot(slot), self.day(day)], dim=-1)
