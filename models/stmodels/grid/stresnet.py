"""ST-ResNet (Zhang et al., AAAI 2017).

Legend: B batch, L frames of a branch, C channels, H×W grid, q steps that one pass forecasts (Q, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.grid.frames import FramesForecaster, season_frames
from stmodels.grid.stresnet_config import STResNetConfig
from stmodels.layers.linear import Linear
from stmodels.layers.residual import ResidualUnit, conv3x3
from stmodels.types import Batch, SeriesInfo


class Branch(nn.Sequential):
    """Frames side by side as channels → residual units → the forecast of this branch: (B, L·C, H, W) → (B, q·C, H, W)."""

    def __init__(self, inputs: int, width: int, units: int, outputs: int) -> None:
        between = (ResidualUnit(width) for _ in range(units))
        super().__init__(conv3x3(inputs, width), *between, nn.ReLU(), conv3x3(width, outputs))


class Fusion(nn.Module):
    """Σ_b W_b ∘ branch_b, with a weight for each step, channel and cell. They start at 1."""

    def __init__(self, branches: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(branches, *shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weights)

    def forward(self, branches: list[Tensor]) -> Tensor:
        return (torch.stack(branches, dim=1) * self.weights).sum(1)


class External(nn.Module):
    """Hour and weekday of the steps ahead → a frame each: (B, q, slots + 7) → (B, q, C, H, W)."""

    def __init__(self, slots_per_day: int, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = Linear(slots_per_day + 7, width)
        self.readout = Linear(width, torch.Size(shape).numel())
        self.shape = shape

    def forward(self, calendar: Tensor) -> Tensor:
        return self.readout(self.hidden(calendar).relu()).relu().unflatten(-1, self.shape)


class STResNet(FramesForecaster):
    """A branch for the window, one for the season with ``inputs: period``, merged cell by cell; the calendar is added.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STResNetConfig, info: SeriesInfo) -> None:
        super().__init__(config, info)
        width, units, outputs = config.width, config.depth(info), self.steps * info.channels
        self.closeness = Branch(info.history * info.channels, width, units, outputs)
        is_period = config.inputs == "period"
        self.period = Branch((info.history + self.steps) * info.channels, width, units, outputs) if is_period else None
        self.fusion = Fusion(1 + is_period, (outputs, *info.shape[1:]))
        slots = self.slots_per_day
        self.external = None if slots is None else External(slots, config.calendar_width, info.shape)

    def ahead(self, history: Tensor, known: int, batch: Batch) -> Tensor:
        branches = [self.closeness(history.flatten(1, 2))]
        if self.period is not None:
            branches.append(self.period(season_frames(batch, known, self.steps).flatten(1, 2)))
        ahead = self.fusion(branches).unflatten(1, (self.steps, -1))
        if self.external is not None:
            calendar = self.calendar_of(batch.target_slot, history)
            ahead = ahead + self.external(calendar[:, known : known + self.steps])
        return ahead
