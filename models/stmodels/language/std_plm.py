"""STD-PLM (Huang et al., AAAI 2025), from the description of its paper.

Legend: B batch, P history, Q horizon, N nodes, M regions, D width of GPT-2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.language.std_plm_config import STDPLMConfig
from stmodels.layers.calendar import CalendarTables
from stmodels.layers.gpt2 import Gpt2Trunk
from stmodels.layers.graph import symmetric, widest_eigenvectors
from stmodels.layers.linear import Linear
from stmodels.layers.positions import sinusoid
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class CrossAttention(nn.Module):
    """Attention of queries to keys and values of other widths, with a map to the width of GPT-2 and a LayerNorm."""

    def __init__(self, queries: int, keys: int, values: int, outputs: int, config: STDPLMConfig) -> None:
        super().__init__()
        self.heads, width = config.region_heads, config.region_width
        self.query, self.key, self.value = (Linear(inputs, width) for inputs in (queries, keys, values))
        self.output = Linear(width, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, X, ·), (B, Y, ·), (B, Y, ·) → (B, X, outputs), and the mean weights of the heads, (B, X, Y)."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), self.key(keys), self.value(values))
        )
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.norm(self.output((weights @ v).transpose(1, 2).flatten(2))), weights.mean(1)


class NodesAndTime(NamedTuple):
    """The tokens before the regions are made."""

    nodes: Tensor  # (B, N, D)
    time: Tensor  # (B, 2, D): state and trend


class STDPLM(Forecaster):
    """Nodes are gathered into regions by attention, GPT-2 reads state, trend and regions, and the nodes ask the regions back.

    GPT-2's norms and positions are tuned, and its attention by LoRA. The number of its tokens does not depend on N, which is free.

    Raises:
        ConfigError: the configuration does not fit the data.
        WeightsError: the weights are not available.
    """

    def __init__(self, config: STDPLMConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        assert info.adjacency is not None
        self.has_region_loss = bool(config.region_weight or config.coverage_weight)
        self.register_buffer("network", symmetric(info.adjacency).float(), persistent=False)
        self.register_buffer("places", widest_eigenvectors(info.adjacency, config.eigenvectors), persistent=False)
        self.trunk = Gpt2Trunk(config.backbone, config.weights, config.weights_seed, config.blocks, config.causal)
        self.trunk.add_lora(config.lora_rank, config.lora_alpha)
        self.trunk.tune_norms_and_positions()
        self.register_buffer("order", sinusoid(info.shape[0], self.trunk.width), persistent=False)
        width, steps = self.trunk.width, info.history * (1 + info.inputs)
        change = (info.history - 1) * (1 + info.inputs)
        self.calendar = CalendarTables(info.slots_per_day if config.calendar else None, config.calendar_width, config.calendar_width)
        self.place = Linear(config.eigenvectors, config.eigenvectors)
        self.window, self.seen = Linear(2 * steps, width), Linear(steps, width)
        self.where = _mlp(self.calendar.width + config.eigenvectors, width, config.dropout, hidden=config.eigenvectors)
        self.state = _mlp(2 * steps + self.calendar.width, width, config.dropout)
        self.trend = _mlp(2 * change + self.calendar.width, width, config.dropout)
        self.node_norm, self.state_norm, self.trend_norm, self.last_norm = (nn.LayerNorm(width) for _ in range(4))
        self.regions = nn.Parameter(torch.empty(config.regions, config.region_width))
        self.gather = CrossAttention(config.region_width, width, width, width, config)
        self.spread = CrossAttention(width, config.region_width, width, width, config)
        self.readout = _mlp(width, info.horizon, config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.regions)

    def forward(self, batch: Batch) -> Forecast:
        nodes, time = self.tokens(batch)
        asking = self.regions.expand(len(nodes), -1, -1)
        told = nodes + self.order
        regions, weights = self.gather(asking, told, told)
        states = self.trunk(torch.cat([time, regions], dim=1))
        decoded, _ = self.spread(nodes, asking, states[:, 2:])
        trend = states[:, 1:2] + time[:, 1:2]
        ahead = self.readout(self.last_norm(decoded + nodes + trend))
        return Forecast(ahead.transpose(1, 2)[..., None], {"regions": weights})

    def tokens(self, batch: Batch) -> NodesAndTime:
        """Those of the nodes, and those of time, which are made from the mean of all nodes."""
        x = with_inputs(batch).transpose(1, 2)  # (B, N, P, C)
        mask = torch.ones_like(x)  # all readings of a window count as seen
        calendar = self.calendar(batch.history_slot, batch.history)[:, -1]  # (B, ·)
        here = self.place(self.places).expand(len(x), -1, -1)
        where = self.where(torch.cat([calendar[:, None].expand(-1, x.shape[1], -1), here], dim=-1))
        window = torch.cat([x.flatten(2), mask.flatten(2)], dim=-1)
        nodes = self.node_norm(self.window(window) + where + self.seen(mask.flatten(2)))
        mean = torch.cat([x, mask], dim=-1).mean(1)  # (B, P, 2C)
        state = self.state_norm(self.state(torch.cat([mean.flatten(1), calendar], dim=-1)))
        trend = self.trend_norm(self.trend(torch.cat([mean.diff(dim=1).flatten(1), calendar], dim=-1)))
        return NodesAndTime(nodes, torch.stack([state, trend], dim=1))

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        """The error of the forecast, and with their weights the two losses on the regions."""
        terms = super().loss_terms(forecast, batch)
        if self.has_region_loss and forecast.aux is not None:
            weights = forecast.aux["regions"].float()  # (B, M, N), rows sum to 1
            terms["regions"] = -((weights @ self.network - weights) * weights).sum(2).mean()
            terms["coverage"] = -self._log_density(weights.sum(1).softmax(-1)).mean()
        return terms

    def _log_density(self, shares: Tensor) -> Tensor:
        """That of a Dirichlet distribution which wants more of nodes with many neighbours: (B, N) → (B,)."""
        wanted = 1.05 + 5 * self.network.sum(1).softmax(0)
        constant = torch.lgamma(wanted.sum()) - torch.lgamma(wanted).sum()
        return constant + ((wanted - 1) * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum(-1)


def _mlp(inputs: int, outputs: int, dropout: float, hidden: int | None = None) -> nn.Sequential:
    """Two layers. Unless it is given, the width between them is two thirds of those of both ends together."""
    hidden = hidden or 2 * (inputs + outputs) // 3
    return nn.Sequential(Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), Linear(hidden, outputs))
