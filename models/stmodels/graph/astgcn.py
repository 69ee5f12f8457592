"""ASTGCN (Guo et al., AAAI 2019), the branch that reads the last steps. The paper's other two read those of yesterday and last week.

Legend: B batch, T steps, Q horizon, N nodes, F channels, K polynomials.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.astgcn_config import ASTGCNConfig
from stmodels.layers.graph import chebyshev, combinatorial_laplacian, rescaled
from stmodels.layers.linear import Linear
from stmodels.layers.time_conv import SameTimeConv
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class BilinearAttention(nn.Module):
    """softmax over axis 1 of V σ(L R + b), (B, M, M), between the M entries of one axis, which are compared over another of O entries.

    L = ((xᵀ u₁) U₂) and R = (u₃ x), with x (B, M, O, F): u₁ weighs the other axis and u₃ the channels.
    """

    def __init__(self, entries: int, others: int, channels: int) -> None:
        super().__init__()
        self.over_others = nn.Parameter(torch.empty(others))
        self.between = nn.Parameter(torch.empty(channels, others))
        self.over_channels = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(entries, entries))
        self.outer = nn.Parameter(torch.empty(entries, entries))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The original draws vectors from (0, 1), so that the sigmoid starts far from 0.
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.dim() > 1 else nn.init.uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.einsum("bmof,o->bmf", x, self.over_others) @ self.between  # (B, M, O)
        right = x @ self.over_channels  # (B, M, O)
        return (self.outer @ (left @ right.mT + self.bias).sigmoid()).softmax(dim=1)


class AttendedChebyshev(nn.Module):
    """ReLU(Σ_k (T_k ∘ S)ᵀ x Θ_k): x (B, T, N, F) and attention S (B, N, N) → (B, T, N, F')."""

    def __init__(self, inputs: int, outputs: int, polynomials: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(len(polynomials), inputs, outputs))
        self.register_buffer("polynomials", polynomials, persistent=False)  # (K, N, N)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.weights.unbind():
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        total = x.new_zeros(())
        for polynomial, weight in zip(self.polynomials, self.weights, strict=True):
            modulated = (polynomial * attention).mT  # (B, N, N)
            # The narrower of both is mixed among nodes.
            if weight.shape[0] <= weight.shape[1]:
                total = total + torch.einsum("bij,btjf->btif", modulated, x) @ weight
            else:
                total = total + torch.einsum("bij,btjf->btif", modulated, x @ weight)
        return total.relu()


class Block(nn.Module):
    """Attention over time and over nodes, graph convolution, convolution over time, residual: (B, T, N, F) → (B, T, N, width)."""

    def __init__(self, inputs: int, steps: int, config: ASTGCNConfig, polynomials: Tensor) -> None:
        super().__init__()
        nodes = polynomials.shape[-1]
        self.over_time = BilinearAttention(steps, nodes, inputs)
        self.over_nodes = BilinearAttention(nodes, steps, inputs)
        self.graph = AttendedChebyshev(inputs, config.graph_width, polynomials)
        self.time = SameTimeConv(config.graph_width, config.width, 3)
        self.project = Linear(inputs, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        attended = torch.einsum("btnf,bts->bsnf", x, self.over_time(x))
        attention = self.over_nodes(attended.transpose(1, 2))
        return self.norm((self.time(self.graph(x, attention)) + self.project(x)).relu())


class ASTGCN(Forecaster):
    """Blocks, and a map of all steps and channels of a node to its horizon. The attentions have parameters for each node, so N is fixed.

    The network is made symmetric. The published one has one direction of each edge, and eigenvalues that are complex.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: ASTGCNConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        assert info.adjacency is not None
        polynomials = chebyshev(rescaled(combinatorial_laplacian(info.adjacency)), config.polynomials).float()
        inputs = [1 + info.inputs] + [config.width] * (config.blocks - 1)
        self.blocks = nn.Sequential(*(Block(width, info.history, config, polynomials) for width in inputs))
        self.readout = Linear(info.history * config.width, info.horizon)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The original draws all vectors, biases and the gains of LayerNorms among them, from (0, 1), and all matrices as below. Its
        # convolutions count the size of their kernel in both fans.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 and name.endswith(("weight", "bias")):
                nn.init.uniform_(parameter)
        for block in self.blocks:
            conv = block.time.conv
            nn.init.xavier_uniform_(conv.weight.unflatten(1, (conv.kernel, -1)).transpose(1, 2))
            nn.init.xavier_uniform_(block.project.weight)
        width = self.blocks[-1].norm.normalized_shape[0]
        nn.init.xavier_uniform_(self.readout.weight.unflatten(1, (-1, width)))

    def forward(self, batch: Batch) -> Forecast:
        states = self.blocks(with_inputs(batch))  # (B, T, N, F)
        return Forecast(self.readout(states.transpose(1, 2).flatten(2)).transpose(1, 2)[..., None])
