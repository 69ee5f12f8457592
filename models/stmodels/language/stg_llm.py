"""STG-LLM (Liu et al., 2024), as we read its paper: its code is not public.

Legend: B batch, P history, Q horizon, N nodes, D width of GPT-2.
"""

from __future__ import annotations

import torch

from stmodels.base import Forecaster
from stmodels.language.stg_llm_config import STGLLMConfig
from stmodels.layers.calendar import CalendarTables
from stmodels.layers.gpt2 import Gpt2Trunk
from stmodels.layers.linear import Linear
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class STGLLM(Forecaster):
    """A token a node, of its window and the calendar of the last step. What GPT-2 makes of a token, and the token itself, are mapped to the
    horizon. Norms and positions of GPT-2 are tuned. The paper's prompt before the tokens is left out.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the weights are not available.
    """

    def __init__(self, config: STGLLMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.calendar = CalendarTables(info.slots_per_day if config.calendar else None, config.calendar_width, config.calendar_width)
        self.trunk = Gpt2Trunk(config.backbone, config.weights, config.weights_seed, config.blocks, config.causal)
        self.trunk.tune_norms_and_positions()
        self.encode = Linear(info.history * (1 + info.inputs) + self.calendar.width, self.trunk.width)
        self.decode = Linear(self.trunk.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        windows = with_inputs(batch).transpose(1, 2).flatten(2)  # (B, N, P·C)
        calendar = self.calendar(batch.history_slot, batch.history)[:, -1:].expand(-1, windows.shape[1], -1)
        tokens = self.encode(torch.cat([windows, calendar], dim=-1))
        return Forecast(self.decode(self.trunk(tokens) + tokens).transpose(1, 2)[..., None])
