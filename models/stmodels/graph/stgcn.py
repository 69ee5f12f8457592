"""STGCN (Yu et al., IJCAI 2018), all steps of the horizon at once.

Legend: B batch, T steps, P history, Q horizon, N nodes, c channels, K polynomials.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.stgcn_config import STGCNConfig
from stmodels.layers.graph import chebyshev, mix, normalised_laplacian, rescaled
from stmodels.layers.linear import Linear
from stmodels.layers.time_conv import TimeConv
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class GatedTimeConv(nn.Module):
    """(p + x) · σ(q), where a convolution gives p and q, and x is cut to its last steps: (B, T, N, c) → (B, T − k + 1, N, c').

    If x has fewer channels than the output, it is filled up with zeros; if it has more, it is projected.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = TimeConv(inputs, 2 * outputs, kernel)
        self.missing = max(outputs - inputs, 0)
        self.project = Linear(inputs, outputs) if inputs > outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.conv(x).chunk(2, dim=-1)
        residual = F.pad(self.project(x[:, self.conv.reach :]), (0, self.missing))
        return (p + residual) * q.sigmoid()


class ChebyshevConv(nn.Module):
    """ReLU(Σ_k T_k(L̃) x W_k + b + x), with x the input, projected or filled up as in :class:`GatedTimeConv`: (B, T, N, c) →
    (B, T, N, c')."""

    def __init__(self, inputs: int, outputs: int, polynomials: Tensor) -> None:
        super().__init__()
        self.align = Linear(inputs, outputs) if inputs > outputs else nn.Identity()
        self.missing = max(outputs - inputs, 0)
        self.weigh = Linear(len(polynomials) * outputs, outputs)
        self.register_buffer("polynomials", polynomials, persistent=False)  # (K, N, N)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.align(x), (0, self.missing))
        terms = [x, *(mix(polynomial, x) for polynomial in self.polynomials[1:])]  # T_0 is the identity
        return (self.weigh(torch.cat(terms, dim=-1)) + x).relu()


class Block(nn.Module):
    """Time, graph, time: (B, T, N, c) → (B, T − 2(k − 1), N, width)."""

    def __init__(self, inputs: int, config: STGCNConfig, polynomials: Tensor) -> None:
        super().__init__()
        self.before = GatedTimeConv(inputs, config.width, config.kernel)
        self.graph = ChebyshevConv(config.width, config.graph_width, polynomials)
        self.after = GatedTimeConv(config.graph_width, config.width, config.kernel)
        self.norm = _norm(config, polynomials.shape[-1], config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.after(self.graph(self.before(x)))))


class STGCN(Forecaster):
    """Two blocks, and an output block that takes the steps left together. LayerNorm has a row for each node, so N is fixed.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STGCNConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        assert info.adjacency is not None
        polynomials = chebyshev(rescaled(normalised_laplacian(info.adjacency)), config.polynomials).float()
        widths = [1 + info.inputs] + [config.width] * (config.blocks - 1)
        self.blocks = nn.Sequential(*(Block(inputs, config, polynomials) for inputs in widths))
        self.last = GatedTimeConv(config.width, config.output_width, config.steps_left(info.history))
        self.norm = _norm(config, info.shape[0], config.output_width)
        self.hidden = Linear(config.output_width, config.output_width)
        self.dropout = nn.Dropout(config.output_dropout)
        self.readout = Linear(config.output_width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        x = self.norm(self.last(self.blocks(with_inputs(batch))))  # (B, 1, N, c)
        ahead = self.readout(self.dropout(self.hidden(x).relu()))[:, 0]  # (B, N, Q)
        return Forecast(ahead.transpose(1, 2)[..., None])


def _norm(config: STGCNConfig, nodes: int, width: int) -> nn.Module:
    return nn.LayerNorm((nodes, width)) if config.layer_norm else nn.Identity()
