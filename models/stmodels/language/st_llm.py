"""ST-LLM (Liu et al., MDM 2024).

Legend: B batch, P history, Q horizon, N nodes, which are sensors or the cells of a grid, C channels, D width of GPT-2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.language.st_llm_config import STLLMConfig
from stmodels.layers.calendar import calendar_numbers, slot_and_day
from stmodels.layers.gpt2 import Gpt2Trunk
from stmodels.layers.linear import Linear
from stmodels.layers.places import from_places, history_at_places
from stmodels.types import Batch, Forecast, SeriesInfo


class STLLM(Forecaster):
    """A token a node: its window, the calendar of the last step, and a vector of its own, of which N is fixed.

    Tuned are positions, all norms, and the attention of the last U blocks. The feed-forward networks stay as they are.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the weights are not available.
    """

    def __init__(self, config: STLLMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        width, self.info = config.width, info
        self.slots_per_day = info.slots_per_day if config.calendar else None
        self.window = Linear(info.history * (info.channels + info.inputs + 2), width)
        self.slot = nn.Embedding(info.slots_per_day or 0, width) if config.calendar else None
        self.day = nn.Embedding(7, width) if config.calendar else None
        self.node = nn.Embedding(info.places, width)
        self.trunk = Gpt2Trunk(config.backbone, config.weights, config.weights_seed, config.blocks, config.causal)
        self.trunk.tune_norms_and_positions()
        self.trunk.tune_attention(config.tuned)
        self.fuse = Linear(3 * width, self.trunk.width)
        self.readout = Linear(self.trunk.width, info.horizon * info.channels)

    def forward(self, batch: Batch) -> Forecast:
        states = self.trunk(self.fuse(self.tokens(batch)))
        ahead = self.readout(states).unflatten(2, (self.info.horizon, self.info.channels))
        return Forecast(from_places(ahead.transpose(1, 2), self.info))

    def tokens(self, batch: Batch) -> Tensor:
        """Window ‖ calendar ‖ node, (B, N, 3 width)."""
        readings = history_at_places(batch, self.info)
        b, p, n, _ = readings.shape
        numbers = readings.new_zeros(b, p, 2)
        calendar = readings.new_zeros(b, self.window.out_features)
        if self.slots_per_day is not None and self.slot is not None and self.day is not None:
            slot, day = slot_and_day(batch.history_slot, self.slots_per_day)
            numbers = calendar_numbers(batch.history_slot, self.slots_per_day, readings.dtype)
            calendar = self.slot(slot[:, -1]) + self.day(day[:, -1])
        window = torch.cat([readings, numbers[:, :, None].expand(-1, -1, n, -1)], dim=-1)
        embedded = self.window(window.transpose(1, 2).flatten(2))
        return torch.cat([embedded, calendar[:, None].expand(-1, n, -1), self.node.weight.expand(b, -1, -1)], dim=-1)
