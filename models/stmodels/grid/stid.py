"""STID (Shao et al., CIKM 2022).

Legend: B batch, P history, Q horizon, C channels, N places (cells of a grid, or sensors), K further channels of sensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.grid.stid_config import STIDConfig
from stmodels.layers.calendar import slot_and_day
from stmodels.layers.linear import Linear
from stmodels.layers.places import from_places, history_at_places
from stmodels.types import Batch, Forecast, SeriesInfo


class Vectors(nn.Module):
    """A table of learned vectors, (count, width)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.table)


class ResidualLayer(nn.Module):
    """h + W₂ dropout(ReLU(W₁ h))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden, self.readout = Linear(width, width), Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.readout(self.dropout(self.hidden(h).relu()))


class STID(Forecaster):
    """h = embedded window ‖ vector of the place ‖ of the slot of the day ‖ of the weekday, then residual layers and one map to the horizon.

    No place sees the window of another. All channels of a place enter and leave together.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STIDConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.info, width = info, config.width
        self.slots_per_day = info.slots_per_day if config.calendar else None
        self.embed = Linear(info.history * (info.channels + info.inputs), width)
        self.place = Vectors(info.places, width)
        self.slot = Vectors(info.slots_per_day, width) if config.calendar and info.slots_per_day else None
        self.day = Vectors(7, width) if config.calendar else None
        hidden = width * (4 if config.calendar else 2)
        self.layers = nn.Sequential(*(ResidualLayer(hidden, config.dropout) for _ in range(config.layers)))
        self.readout = Linear(hidden, info.horizon * info.channels)

    def forward(self, batch: Batch) -> Forecast:
        ahead = self.readout(self.layers(self.embedded(batch)))  # (B, N, Q·C)
        return Forecast(from_places(ahead.unflatten(2, (self.info.horizon, self.info.channels)).transpose(1, 2), self.info))

    def embedded(self, batch: Batch) -> Tensor:
        """h, (B, N, hidden)."""
        window = history_at_places(batch, self.info).transpose(1, 2).flatten(2)  # (B, N, P·(C + K))
        b, n, _ = window.shape
        parts = [self.embed(window), self.place.table.expand(b, -1, -1)]
        if self.slots_per_day is not None and self.slot is not None and self.day is not None:
            assert batch.history_slot is not None
            slot, day = slot_and_day(batch.history_slot[:, -1], self.slots_per_day)
            parts += [vector[:, None].expand(-1, n, -1) for vector in (self.slot.table[slot], self.day.table[day])]
        return torch.cat(parts, dim=-1)
