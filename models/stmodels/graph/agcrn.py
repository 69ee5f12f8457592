"""AGCRN (Bai et al., NeurIPS 2020).

Nodes are the first axis inside, so that their own weights are one batched product.

Legend: B batch, P history, Q horizon, N nodes, H hidden units, K supports, c inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.agcrn_config import AGCRNConfig
from stmodels.layers.graph import chebyshev
from stmodels.layers.linear import Linear
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class NodeWeights(nn.Module):
    """W_n = Σ_d E_nd W_d, the weights that a node composes from a pool: (N, d) → (N, K, c, c') and the biases (N, c')."""

    def __init__(self, rank: int, supports: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.empty(rank, supports, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(rank, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # As the original, which draws the pool as if it were one convolution.
        nn.init.xavier_uniform_(self.pool)
        nn.init.xavier_uniform_(self.bias)

    def forward(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("nd,dkio->nkio", nodes, self.pool), nodes @ self.bias


class Cell(nn.Module):
    """A layer of the GRU over all steps. Its candidate and its gates are graph convolutions:

    (z, r) = σ(gc([x ‖ h])), h̃ = tanh(gc([x ‖ z h])), h ← r h + (1 − r) h̃, with z and r in each other's usual place.
    """

    def __init__(self, inputs: int, config: AGCRNConfig) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, config.hidden
        self.gates = NodeWeights(config.rank, config.supports, inputs + config.hidden, 2 * config.hidden)
        self.candidate = NodeWeights(config.rank, config.supports, inputs + config.hidden, config.hidden)

    def forward(self, x: Tensor, nodes: Tensor, supports: Tensor) -> Tensor:
        """The states of all steps: x (N, P, B, c), nodes (N, d), supports (K − 1, N, N) beside the identity → (N, P, B, H)."""
        (gate, gate_bias), (candidate, candidate_bias) = self.gates(nodes), self.candidate(nodes)
        # The inputs do not wait for the states, so that their part is one product for all steps.
        both = torch.cat([gate[:, :, : self.inputs], candidate[:, :, : self.inputs]], dim=-1)
        bias = torch.cat([gate_bias, candidate_bias], dim=-1)[:, None]
        driven = (_convolve(x.flatten(1, 2), both, supports) + bias).unflatten(1, x.shape[1:3])
        gate_of_state, candidate_of_state = gate[:, :, self.inputs :], candidate[:, :, self.inputs :]
        h = x.new_zeros(len(x), x.shape[2], self.hidden)
        states = []
        for step in driven.unbind(1):
            from_gate, from_candidate = step.split([2 * self.hidden, self.hidden], dim=-1)
            z, r = (from_gate + _convolve(h, gate_of_state, supports)).sigmoid().chunk(2, dim=-1)
            proposed = (from_candidate + _convolve(z * h, candidate_of_state, supports)).tanh()
            h = r * h + (1 - r) * proposed
            states.append(h)
        return torch.stack(states, dim=1)


def _convolve(x: Tensor, weights: Tensor, supports: Tensor) -> Tensor:
    """y_n = Σ_k (T_k x)_n W_nk: (N, M, c), (N, K, c, c') → (N, M, c'). The supports are T_1 …, and T_0 is the identity."""
    terms = [x, *((support @ x.flatten(1)).view_as(x) for support in supports)]
    return torch.bmm(torch.cat(terms, dim=-1), weights.flatten(1, 2))


class AGCRN(Forecaster):
    """Recurrent layers over the history; the last state is mapped to the horizon. One node embedding is the source of the network and of
    all weights, so N is fixed.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: AGCRNConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.supports = config.supports
        self.nodes = nn.Parameter(torch.empty(info.shape[0], config.rank))
        inputs = [1 + info.inputs] + [config.hidden] * (config.layers - 1)
        self.cells = nn.ModuleList(Cell(c, config) for c in inputs)
        self.readout = Linear(config.hidden, info.horizon)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.nodes)
        # The original reads out by a convolution with the kernel (1, H), whose size counts in both fans.
        nn.init.xavier_uniform_(self.readout.weight.view(-1, 1, 1, self.readout.in_features))
        nn.init.uniform_(self.readout.bias)

    def polynomials(self) -> Tensor:
        """T_1 … T_(K − 1) of Ã = softmax over rows of ReLU(E Eᵀ): (K − 1, N, N)."""
        return chebyshev((self.nodes @ self.nodes.T).relu().softmax(dim=1), self.supports)[1:]

    def forward(self, batch: Batch) -> Forecast:
        supports = self.polynomials()
        states = with_inputs(batch).permute(2, 1, 0, 3)  # (N, P, B, c)
        for cell in self.cells:
            states = cell(states, self.nodes, supports)
        return Forecast(self.readout(states[:, -1]).permute(1, 2, 0)[..., None])  # (N, B, Q) → (B, Q, N, 1)
