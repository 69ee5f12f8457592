"""OFA, or GPT4TS (Zhou et al., NeurIPS 2023).

Legend: B batch, P history, Q horizon, N nodes, L patches, p steps of a patch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stmodels.base import Forecaster
from stmodels.language.ofa_config import OFAConfig
from stmodels.layers.gpt2 import Gpt2Trunk
from stmodels.layers.linear import Linear
from stmodels.layers.window_norm import in_own_units
from stmodels.types import Batch, Forecast, SeriesInfo


class OFA(Forecaster):
    """Each node's window by itself: normalised, cut into patches, through GPT-2, and all patches together to the horizon.

    Norms and positions of GPT-2 are tuned, attention and feed-forward networks are not.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the weights are not available.
    """

    def __init__(self, config: OFAConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.patch, self.stride = config.patch, config.stride
        self.trunk = Gpt2Trunk(config.backbone, config.weights, config.weights_seed, config.blocks, config.causal)
        self.trunk.tune_norms_and_positions()
        self.embed = Linear(config.patch, self.trunk.width)
        self.readout = Linear(config.tokens(info) * self.trunk.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(in_own_units(self._ahead, batch.history[..., 0])[..., None])

    def _ahead(self, x: Tensor) -> Tensor:
        """(B, P, N) → (B, Q, N)."""
        x = torch.cat([x, x[:, -1:].expand(-1, self.stride, -1)], dim=1)  # the last reading, for one more patch
        patches = x.transpose(1, 2).unfold(2, self.patch, self.stride)  # (B, N, L, p)
        states = self.trunk(self.embed(patches).flatten(0, 1)).unflatten(0, patches.shape[:2])
        ahead: Tensor = self.readout(states.flatten(2)).transpose(1, 2)
        return ahead
