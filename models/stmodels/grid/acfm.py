"""ACFM (Liu et al., TPAMI 2020), the model of its one-step forecasts.

Legend: B batch, L frames, C channels, H×W grid, D width, q steps that one pass forecasts (Q, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.grid.acfm_config import ACFMConfig
from stmodels.grid.frames import FramesForecaster, frame_slots, season_frames
from stmodels.layers.conv_lstm import PeepholeLSTM
from stmodels.layers.linear import Linear
from stmodels.layers.residual import ResidualUnit, conv3x3
from stmodels.types import Batch, SeriesInfo


class Features(nn.Module):
    """A frame, and its hour and weekday if they are read → F: (M, C, H, W), (M, slots + 7) → (M, D, H, W)."""

    def __init__(self, config: ACFMConfig, info: SeriesInfo) -> None:
        super().__init__()
        width, self.shape = config.width, (config.width, *info.shape[1:])
        units = (ResidualUnit(width, "norm selu") for _ in range(config.units))
        self.frame = nn.Sequential(conv3x3(info.channels, width), *units, nn.SELU(), conv3x3(width, width))
        self.calendar: nn.Module | None = None
        if config.inputs != "window" and info.slots_per_day is not None:
            cells = torch.Size(self.shape).numel()
            self.calendar = nn.Sequential(
                Linear(info.slots_per_day + 7, config.calendar_width), nn.SELU(), Linear(config.calendar_width, cells),
                nn.Dropout(config.dropout),
            )  # fmt: skip

    def forward(self, frames: Tensor, calendar: Tensor | None) -> Tensor:
        features: Tensor = self.frame(frames)
        if self.calendar is not None and calendar is not None:
            features = features + self.calendar(calendar).unflatten(1, self.shape)
        return features


class Stream(nn.Module):
    """Attention and the second ConvLSTM: F and H of L frames, (B, L, D, H, W) each → the forecast of this stream, (B, q·C, H, W)."""

    def __init__(self, config: ACFMConfig, info: SeriesInfo, frames: int, outputs: int) -> None:
        super().__init__()
        width, sets = config.width, frames if config.attention == "per_step" else 1
        self.attention = nn.ModuleList(
            nn.Sequential(conv3x3(2 * width, width), nn.SELU(), conv3x3(width, width)) for _ in range(sets)
        )
        self.recurrent = PeepholeLSTM(width, width, 3, info.shape[1:], forget_bias=None)
        self.dropout = nn.Dropout2d(config.dropout)
        self.readout = conv3x3(width, outputs)

    def weights(self, features: Tensor, states: Tensor) -> Tensor:
        """A, how much more than once each feature counts, (B, L, D, H, W)."""
        both = torch.cat([features, states], dim=2)
        return torch.stack([self.attention[t % len(self.attention)](both[:, t]) for t in range(both.shape[1])], dim=1)

    def forward(self, features: Tensor, states: Tensor) -> Tensor:
        weighed = features * (1 + self.weights(features, states))
        ahead: Tensor = self.readout(_read(self.recurrent, weighed, self.dropout)[:, -1])
        return ahead


def _read(cell: PeepholeLSTM, frames: Tensor, dropout: nn.Module) -> Tensor:
    """The hidden states after each frame, the oldest first: (B, L, D, H, W) → same."""
    h = c = torch.zeros_like(frames[:, 0])
    states = []
    for frame in frames.unbind(1):
        h, c = cell(dropout(frame), h, c)
        states.append(h)
    return torch.stack(states, dim=1)


class ACFM(FramesForecaster):
    """A stream reads the window; with ``inputs: period`` another reads the season, and a gate weighs both by the time of the step ahead.

    Features and the first ConvLSTM are shared by both. Unlike public code, attention sees all features of its own frame.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: ACFMConfig, info: SeriesInfo) -> None:
        super().__init__(config, info)
        outputs = self.steps * info.channels
        self.features = Features(config, info)
        self.recurrent = PeepholeLSTM(config.width, config.width, 3, info.shape[1:], forget_bias=None)
        self.dropout = nn.Dropout2d(config.dropout)
        self.closeness = Stream(config, info, info.history, outputs)
        self.period = self.gate = None
        if config.inputs == "period" and self.slots_per_day is not None:
            self.period = Stream(config, info, info.history + self.steps, outputs)
            hidden = Linear(self.slots_per_day + 7, config.gate_width)
            self.gate = nn.Sequential(hidden, nn.SELU(), Linear(config.gate_width, 1), nn.Sigmoid())

    def ahead(self, history: Tensor, known: int, batch: Batch) -> Tensor:
        slots = frame_slots(batch, known, self.steps)
        past = None if slots is None else slots[:, : history.shape[1]]
        ahead = self._stream(self.closeness, history, past)
        if self.period is not None and self.gate is not None:
            season = self._stream(self.period, season_frames(batch, known, self.steps), slots)
            g = self.gate(self.calendar_of(slots, history)[:, history.shape[1] :])[..., None, None]  # (B, q, 1, 1, 1)
            ahead = g * ahead + (1 - g) * season
        return ahead

    def _stream(self, stream: Stream, frames: Tensor, slots: Tensor | None) -> Tensor:
        calendar = None if self.slots_per_day is None else self.calendar_of(slots, frames).flatten(0, 1)
        features = self.features(frames.flatten(0, 1), calendar).unflatten(0, frames.shape[:2])
        ahead = stream(features, _read(self.recurrent, features, self.dropout))
        return ahead.unflatten(1, (self.steps, -1))
