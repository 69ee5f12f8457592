"""STGSP (Zhao et al., TKDE 2022), its forecasting network.

Legend: B batch, L frames, C channels, H×W grid, D width, q steps that one pass forecasts (Q, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.grid.frames import FramesForecaster, frame_slots, season_frames
from stmodels.grid.stgsp_config import STGSPConfig
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.layers.residual import ResidualUnit, conv3x3
from stmodels.types import Batch, SeriesInfo


class FrameToken(nn.Module):
    """The network of one place in the sequence of frames: (B, C, H, W), with what the calendar adds → (B, D)."""

    def __init__(self, config: STGSPConfig, info: SeriesInfo) -> None:
        super().__init__()
        width = config.channels
        units = (ResidualUnit(width, "norm selu") for _ in range(config.units))
        self.begin = conv3x3(info.channels, width)
        self.units = nn.Sequential(*units, nn.SELU(), conv3x3(width, info.channels))
        self.embed = Linear(torch.Size(info.shape).numel(), config.width)

    def forward(self, frame: Tensor, calendar: Tensor | float) -> Tensor:
        return self.embed(self.units(self.begin(frame) + calendar).flatten(1))


class Query(nn.Module):
    """The learned token in front of the frames, (1, 1, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token)


class STGSP(FramesForecaster):
    """Tokens of the frames of the window and, with ``inputs: period``, of the season. Each place in their order has weights of its own, so
    that the encoder needs no positions. All its outputs side by side are mapped to the forecast, and what the calendar of the first step
    ahead says is added.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STGSPConfig, info: SeriesInfo) -> None:
        super().__init__(config, info)
        frames = info.history + (info.history + self.steps if config.inputs == "period" else 0)
        outputs = self.steps * torch.Size(info.shape).numel()
        self.frames = nn.ModuleList(FrameToken(config, info) for _ in range(frames))
        self.query = Query(config.width)
        self.encoder = nn.Sequential(
            *(EncoderLayer(config.width, config.heads, config.feedforward, config.dropout, "relu") for _ in range(config.layers))
        )
        self.readout = Linear((frames + 1) * config.width, outputs)
        self.calendar = self.calendar_ahead = None
        if self.slots_per_day is not None:
            slots, hidden = self.slots_per_day + 7, config.calendar_width
            cells = config.channels * info.places
            drop = nn.Dropout(config.calendar_dropout)
            self.calendar = nn.Sequential(Linear(slots, hidden), drop, nn.SELU(), Linear(hidden, cells), nn.SELU())
            self.calendar_ahead = nn.Sequential(Linear(slots, hidden), nn.SELU(), Linear(hidden, outputs), nn.SELU())

    def ahead(self, history: Tensor, known: int, batch: Batch) -> Tensor:
        frames, slots = history, frame_slots(batch, known, self.steps)
        of_frames = None if slots is None else slots[:, : history.shape[1]]
        if self.inputs == "period":
            assert of_frames is not None
            frames = torch.cat([history, season_frames(batch, known, self.steps)], dim=1)
            of_frames = torch.cat([of_frames, slots], dim=1)
        tokens = [
            token(frames[:, i], 0.0 if calendar is None else calendar)
            for i, (token, calendar) in enumerate(zip(self.frames, self._calendars(of_frames, frames), strict=True))
        ]
        encoded = self.encoder(torch.cat([self.query.token.expand(len(history), -1, -1), torch.stack(tokens, dim=1)], dim=1))
        ahead = self.readout(encoded.flatten(1))
        if self.calendar_ahead is not None:
            ahead = ahead + self.calendar_ahead(self.calendar_of(slots, history)[:, history.shape[1]])  # of the first step ahead
        ahead = ahead.unflatten(1, (self.steps, *self.info.shape))
        return ahead

    def _calendars(self, slots: Tensor | None, frames: Tensor) -> list[Tensor] | list[None]:
        """What hour and weekday add to each frame's channels, (B, channels, H, W) each."""
        if self.calendar is None:
            return [None] * frames.shape[1]
        cells = self.calendar(self.calendar_of(slots, frames)).unflatten(2, (-1, *self.info.shape[1:]))
        return list(cells.unbind(1))
