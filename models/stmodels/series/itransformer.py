"""iTransformer (Liu et al., ICLR 2024): one token a series.

Legend: B batch, P history, Q horizon, M series (one a sensor, or one a cell and channel of a grid), D width, S the shape of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.layers.calendar import calendar_numbers
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.layers.window_norm import in_own_units
from stmodels.series.itransformer_config import ITransformerConfig
from stmodels.types import Batch, Forecast, SeriesInfo


class ITransformer(Forecaster):
    """A series' window is embedded whole; attention passes between series, and the feed-forward networks work on each. No series has an
    identity. With the calendar, the hours and the weekdays of the window are two further tokens, of which no forecast is made.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: ITransformerConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.window_norm, self.shape = config.window_norm, info.shape
        self.slots_per_day = info.slots_per_day if config.calendar else None
        self.embed = nn.Sequential(Linear(info.history, config.width), nn.Dropout(config.dropout))
        self.encoder = nn.Sequential(
            *(EncoderLayer(config.width, config.heads, config.feedforward, config.dropout, "gelu") for _ in range(config.layers)),
            nn.LayerNorm(config.width),
        )
        self.readout = Linear(config.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        ahead = in_own_units(lambda x: self._ahead(x, batch), batch.history.flatten(2), self.window_norm)
        return Forecast(ahead.unflatten(2, self.shape))

    def _ahead(self, x: Tensor, batch: Batch) -> Tensor:
        """(B, P, M) → (B, Q, M)."""
        series = x.shape[2]
        if self.slots_per_day is not None:  # each number in [−½, ½], as in the original
            numbers = calendar_numbers(batch.history_slot, self.slots_per_day, x.dtype)
            x = torch.cat([x, numbers / numbers.new_tensor([1.0, 6.0]) - 0.5], dim=2)
        tokens = self.encoder(self.embed(x.transpose(1, 2)))
        return self.readout(tokens[:, :series]).transpose(1, 2)
