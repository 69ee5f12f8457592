"""Graph WaveNet (Wu et al., IJCAI 2019).

Legend: B batch, T steps, P history, Q horizon, N nodes, c channels, s supports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.graph.graph_wavenet_config import GraphWaveNetFields
from stmodels.layers.calendar import slot_and_day
from stmodels.layers.graph import mix, walks
from stmodels.layers.linear import Linear
from stmodels.layers.time_conv import TimeConv, pad_past
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class LearntNetwork(nn.Module):
    """softmax over rows of ReLU(E₁ E₂), (N, N), as it is given to :func:`~stmodels.layers.graph.mix`."""

    def __init__(self, nodes: int, rank: int, side: str) -> None:
        super().__init__()
        self.sources = nn.Parameter(torch.empty(nodes, rank))
        self.targets = nn.Parameter(torch.empty(rank, nodes))
        self.is_transposed = side == "original"
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.sources)
        nn.init.normal_(self.targets)

    def forward(self) -> Tensor:
        weights = (self.sources @ self.targets).relu().softmax(dim=1)
        return weights.T if self.is_transposed else weights


class Diffusion(nn.Module):
    """A map of [h, A_s h, A_s² h, … for each support s]: (B, T, N, c) → same."""

    def __init__(self, width: int, supports: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.weigh = Linear((1 + supports * order) * width, width)

    def forward(self, h: Tensor, supports: list[Tensor]) -> Tensor:
        terms = [h]
        for support in supports:
            walked = h
            for _ in range(self.order):
                walked = mix(support, walked)
                terms.append(walked)
        return self.weigh(torch.cat(terms, dim=-1))


class Gate(nn.Module):
    """tanh(f) · σ(g) of two convolutions that see two steps: (B, T, N, c) → (B, T − dilation, N, c)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = TimeConv(width, 2 * width, 2, dilation)

    def forward(self, x: Tensor) -> Tensor:
        f, g = self.conv(x).chunk(2, dim=-1)
        return f.tanh() * g.sigmoid()


class Spread(nn.Module):
    """BatchNorm(graph convolution + the last steps of the layer's input)."""

    def __init__(self, config: GraphWaveNetFields, supports: int) -> None:
        super().__init__()
        self.diffusion = Diffusion(config.width, supports, config.order)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.BatchNorm1d(config.width)

    def forward(self, h: Tensor, x: Tensor, supports: list[Tensor]) -> Tensor:
        y = self.dropout(self.diffusion(h, supports)) + x[:, -h.shape[1] :]
        return self.norm(y.flatten(0, -2)).view_as(y)


class GraphWaveNet(Forecaster):
    """Layers of a gate over time and a diffusion over the networks; each adds to the skip connection, which the head reads.

    The history is filled up to the steps that the last layer sees with zeros: readings of the mean, at midnight. The graph convolution of
    that layer would be read by nobody, and is left out.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: GraphWaveNetFields, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.reach = config.reach
        self.slots_per_day = info.slots_per_day if config.time_of_day else None
        given, nodes = config.networks != "learnt", info.shape[0]
        self.learnt = LearntNetwork(nodes, config.rank, config.adaptive_side) if config.networks != "given" else None
        self.register_buffer("given", walks(info.adjacency) if given and info.adjacency is not None else None, persistent=False)
        supports = 2 * given + (self.learnt is not None)
        width = config.width
        self.embed = Linear(1 + info.inputs + config.time_of_day, width)
        self.gates = nn.ModuleList(Gate(width, dilation) for dilation in config.dilations)
        self.skips = nn.ModuleList(Linear(width, config.skip_width) for _ in config.dilations)
        self.spreads = nn.ModuleList(Spread(config, supports) for _ in config.dilations[1:])
        self.hidden = Linear(config.skip_width, config.output_width)
        self.readout = Linear(config.output_width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(self.head(self.skip(batch)))

    def head(self, skip: Tensor) -> Tensor:
        """(B, N, skip_width) → (B, Q, N, 1)."""
        return self.readout(self.hidden(skip.relu()).relu()).transpose(1, 2)[..., None]

    def skip(self, batch: Batch) -> Tensor:
        """The sum of the skip connections at the last step, (B, N, skip_width)."""
        readings = with_inputs(batch)
        if self.slots_per_day is not None:
            fraction = slot_and_day(batch.history_slot, self.slots_per_day)[0] / self.slots_per_day
            readings = torch.cat([readings, fraction[..., None, None].expand(*readings.shape[:-1], 1)], dim=-1)
        x = self.embed(pad_past(readings, self.reach - readings.shape[1]))
        supports = [*(self.given if self.given is not None else ()), *([self.learnt()] if self.learnt is not None else ())]
        skip = x.new_zeros(())
        for gate, to_skip, spread in zip(self.gates, self.skips, [*self.spreads, None], strict=True):
            h = gate(x)
            skip = skip + to_skip(h[:, -1])  # the head reads the last step alone
            if spread is not None:
                x = spread(h, x, supports)
        return skip
