"""The LSTM encoder-decoder.

Legend: B batch, P history, Q horizon, N nodes, M = B·N sequences, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.layers.linear import Linear
from stmodels.layers.lstm import LSTM
from stmodels.series.lstm_config import LSTMConfig
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class TimeOfDay(nn.Module):
    """Slot of the week → learned embedding of the slot of the day, the same for every node: (B, T) → (T, B·N, H)."""

    def __init__(self, slots_per_day: int, width: int) -> None:
        super().__init__()
        self.slot = nn.Parameter(torch.empty(slots_per_day, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.slot, std=0.02)

    def forward(self, slot_of_week: Tensor, nodes: int) -> Tensor:
        embedded = self.slot[slot_of_week.T % len(self.slot)]  # (T, B, H)
        return embedded[:, :, None].expand(-1, -1, nodes, -1).flatten(1, 2)


class LSTMForecaster(Forecaster):
    """The last hidden state of the encoder is the input of every step of the decoder, whose states are mapped to readings.

    The nodes are sequences of one batch. They share the weights, and nothing passes between them.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: LSTMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.config = config
        self.info = info
        channels = info.shape[-1]
        seen = channels + info.inputs
        width = config.hidden
        self.time_of_day = TimeOfDay(info.slots_per_day or 0, width) if config.time_of_day else None
        # The embedding is added to a token of the same width. Without it the encoder reads the readings themselves.
        self.embed = Linear(seen, width) if config.time_of_day else None
        self.encoder = LSTM(width if config.time_of_day else seen, width, config.layers)
        self.decoder = LSTM(width, width, config.layers)
        self.readout = Linear(width, channels)

    def forward(self, batch: Batch) -> Forecast:
        b, p, n, c = batch.history.shape
        readings = with_inputs(batch).transpose(0, 1).reshape(p, b * n, -1)
        if self.time_of_day is None or self.embed is None:
            _, (hidden, _) = self.encoder(readings)
            states, _ = self.decoder.repeat(hidden[-1], self.info.horizon)
        else:
            _, (hidden, _) = self.encoder(self.embed(readings) + self.time_of_day(batch.history_slot, n))
            states, _ = self.decoder(hidden[-1] + self.time_of_day(batch.target_slot, n))
        return Forecast(self.readout(states).view(-1, b, n, c).transpose(0, 1))
