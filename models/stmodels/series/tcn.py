"""The temporal convolutional network of Bai et al. (2018), on each node by itself.

Legend: B batch, P history, Q horizon, N nodes, C channels, D width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from stmodels.base import Forecaster
from stmodels.layers.linear import Linear
from stmodels.layers.time_conv import TimeConv, pad_past
from stmodels.series.tcn_config import TCNConfig
from stmodels.types import Batch, Forecast, SeriesInfo, with_inputs


class Level(nn.Module):
    """ReLU(x + F(x)); F is twice a weight-normed causal convolution, ReLU and dropout: (B, P, N, c) → (B, P, N, D)."""

    def __init__(self, inputs: int, config: TCNConfig, dilation: int) -> None:
        super().__init__()
        self.init = config.init
        width, kernel = config.width, config.kernel
        self.convs = nn.ModuleList(weight_norm(TimeConv(c, width, kernel, dilation)) for c in (inputs, width))
        self.dropout = nn.Dropout(config.dropout)
        self.project = Linear(inputs, width) if inputs != width else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        is_original = self.init == "original"
        if is_original and isinstance(self.project, Linear):
            nn.init.normal_(self.project.weight, std=0.01)
        for conv in self.convs:
            # Weight norm computes the weight from a length and a direction, which an assignment sets.
            weight = conv.weight.detach().clone()
            conv.weight = nn.init.normal_(weight, std=0.01) if is_original else nn.init.kaiming_uniform_(weight, math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = self.dropout(conv(pad_past(h, conv.reach)).relu())
        return (self.project(x) + h).relu()


class TCN(Forecaster):
    """Levels of dilated causal convolutions; the last step of the last level is mapped to the horizon. Nodes share all weights.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: TCNConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        widths = [1 + info.inputs] + [config.width] * (config.levels - 1)
        self.levels = nn.Sequential(*(Level(inputs, config, 2**i) for i, inputs in enumerate(widths)))
        self.readout = Linear(config.width, info.horizon)

    def forward(self, batch: Batch) -> Forecast:
        states = self.levels(with_inputs(batch))  # (B, P, N, D)
        return Forecast(self.readout(states[:, -1]).transpose(1, 2)[..., None])
