"""Hour and weekday as learned embeddings. They go beyond the paper, whose inputs contain neither."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Calendar(nn.Module):
    """Slot of the week → embedding of the slot of the day plus embedding of the day: (B, T) → (B, T, D)."""

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
        return self.slot[slot_of_week % self.slots_per_day] + self.day[slot_of_week // self.slots_per_day]
