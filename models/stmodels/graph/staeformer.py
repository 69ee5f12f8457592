"""STAEformer (Liu et al., CIKM 2023).

Legend: B batch, P history, Q horizon, N nodes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.staeformer_config import STAEformerConfig
from stmodels.layers.calendar import CalendarTables, calendar_numbers
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class AdaptiveEmbedding(nn.Module):
    """A free vector for each step of the window and each node, (P, N, width). It stands in for all positions."""

    def __init__(self, steps: int, nodes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(steps, nodes, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.vectors)

    def forward(self) -> Tensor:
        return self.vectors


class STAEformer(Forecaster):
    """Layers over time for each node, then layers over nodes at each step; all steps of a node together are mapped to its horizon. N and P
    are fixed by the adaptive embedding.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STAEformerConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.slots_per_day = info.slots_per_day if config.reads_calendar else None
        self.embed = Linear(1 + info.inputs + 2 * config.reads_calendar, config.input_width)
        self.calendar = CalendarTables(info.slots_per_day if config.calendar else None, config.calendar_width, config.calendar_width)
        width = config.adaptive_width
        self.adaptive = AdaptiveEmbedding(info.history, info.shape[0], width) if width else None

        def layers() -> nn.Sequential:
            return nn.Sequential(
                *(
                    EncoderLayer(config.width, config.heads, config.feedforward, config.dropout, "relu", hidden_dropout=0.0)
                    for _ in range(config.layers)
                )
            )

        self.over_time = layers()
        self.over_nodes = layers() if config.spatial else nn.Identity()
        self.readout = Linear(info.history * config.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        tokens = self.tokens(batch)  # (B, P, N, D)
        b, p, n, _ = tokens.shape
        tokens = self.over_time(tokens.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, n))
        tokens = self.over_nodes(tokens.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, p))
        return Forecast(self.readout(tokens.transpose(1, 2).flatten(2)).transpose(1, 2)[..., None])

    def tokens(self, batch: Batch) -> Tensor:
        """Reading ‖ calendar ‖ adaptive embedding, (B, P, N, D)."""
        readings = with_inputs(batch)
        if self.slots_per_day is not None:
            numbers = calendar_numbers(batch.history_slot, self.slots_per_day, readings.dtype)
            readings = torch.cat([readings, numbers[:, :, None].expand(*readings.shape[:-1], 2)], dim=-1)
        calendar = self.calendar(batch.history_slot, batch.history)[:, :, None]
        parts = [self.embed(readings), calendar.expand(*readings.shape[:-1], -1)]
        if self.adaptive is not None:
            parts.append(self.adaptive().expand(len(readings), -1, -1, -1))
        return torch.cat(parts, dim=-1)
