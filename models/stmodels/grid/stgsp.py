"""STGSP (Zhao et al., TKDE 2022), its forecasting network.

Legend: B batch, L frames, C channels, H×W grid, D width, q steps that one pass forecasts (Q, or 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.grid.frames import frame_slots, season_frames
from stmodels.grid.stgsp_config import STGSPConfig
from stmodels.layers.calendar import one_hot_calendar
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.layers.losses import mean_squared
from stmodels.layers.multi_step import fed_back
from stmodels.layers.residual import ResidualUnit, conv3x3
from stmodels.types import Batch, Forecast, SeriesInfo


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


class STGSP(Forecaster):
    """Tokens of the frames of the window and, with ``inputs: period``, of the season. Each place in their order has weights of its own, so
    that the encoder needs no positions. All its outputs side by side are mapped to the forecast, and what the calendar of the first step
    ahead says is added.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: STGSPConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config, self.info, self.steps = config, info, config.steps(info)
        frames = info.history + (info.history + self.steps if config.inputs == "period" else 0)
        outputs = self.steps * torch.Size(info.shape).numel()
        self.frames = nn.ModuleList(FrameToken(config, info) for _ in range(frames))
        self.query = Query(config.width)
        self.encoder = nn.Sequential(
            *(EncoderLayer(config.width, config.heads, config.feedforward, config.dropout, "relu") for _ in range(config.layers))
        )
        self.readout = Linear((frames + 1) * config.width, outputs)
        self.calendar = self.calendar_ahead = None
        if config.inputs != "window" and info.slots_per_day is not None:
            slots, hidden = info.slots_per_day + 7, config.calendar_width
            cells = config.channels * info.places
            drop = nn.Dropout(config.calendar_dropout)
            self.calendar = nn.Sequential(Linear(slots, hidden), drop, nn.SELU(), Linear(hidden, cells), nn.SELU())
            self.calendar_ahead = nn.Sequential(Linear(slots, hidden), nn.SELU(), Linear(hidden, outputs), nn.SELU())

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(fed_back(lambda history, known: self._ahead(history, known, batch), batch.history, self.info.horizon))

    def _ahead(self, history: Tensor, known: int, batch: Batch) -> Tensor:
        """(B, P, C, H, W) and the number of steps forecast before → (B, q, C, H, W)."""
        frames, slots = history, frame_slots(batch, known, self.steps)
        of_frames = None if slots is None else slots[:, : history.shape[1]]
        if self.config.inputs == "period":
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
            ahead = ahead + self.calendar_ahead(self._one_hot(slots)[:, history.shape[1]])  # of the first step ahead
        ahead = ahead.unflatten(1, (self.steps, *self.info.shape))
        return ahead.tanh() if self.config.output == "tanh" else ahead

    def _calendars(self, slots: Tensor | None, frames: Tensor) -> list[Tensor] | list[None]:
        """What hour and weekday add to each frame's channels, (B, channels, H, W) each."""
        if self.calendar is None:
            return [None] * frames.shape[1]
        cells = self.calendar(self._one_hot(slots)).unflatten(2, (self.config.channels, *self.info.shape[1:]))
        return list(cells.unbind(1))

    def _one_hot(self, slots: Tensor | None) -> Tensor:
        assert self.info.slots_per_day is not None
        return one_hot_calendar(slots, self.info.slots_per_day, self.query.token.dtype)
