"""ST-Norm (Deng et al., KDD 2021).

Legend: B batch, T steps, P history, Q horizon, C channels, N places (cells of a grid, or sensors), D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.grid.stnorm_config import STNormConfig
from stmodels.layers.linear import Linear
from stmodels.layers.places import from_places, history_at_places
from stmodels.layers.time_conv import TimeConv
from stmodels.types import Batch, Forecast, SeriesInfo

_EPSILON = 1e-5


class TimeNorm(nn.Module):
    """Each channel of each place in units of its own mean and deviation, over the steps of all windows of a batch; in eval over those that
    training has seen: (B, T, N, D) → same."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(places * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).flatten(0, 1)).view_as(x)


class SpaceNorm(nn.Module):
    """Each channel of each step of a window in units of its mean and deviation over the places: (B, T, N, D) → same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(2, keepdim=True)
        # Of one place the variance has no unbiased estimate, and is 0.
        variance = x.var(2, keepdim=True, unbiased=x.shape[2] > 1)
        return (x - mean) / (variance + _EPSILON).sqrt() * self.gain + self.shift


class Layer(nn.Module):
    """tanh(f) · σ(g) of convolutions over [x, TimeNorm x, SpaceNorm x]: (B, T, N, D) → (B, T − dilation, N, D)."""

    def __init__(self, config: STNormConfig, places: int, dilation: int) -> None:
        super().__init__()
        self.time = TimeNorm(places, config.width) if config.time_norm else None
        self.space = SpaceNorm(config.width) if config.space_norm else None
        views = 1 + config.time_norm + config.space_norm
        self.conv = TimeConv(views * config.width, 2 * config.width, 2, dilation)

    def forward(self, x: Tensor) -> Tensor:
        views = [x, *(norm(x) for norm in (self.time, self.space) if norm is not None)]
        f, g = self.conv(torch.cat(views, dim=-1)).chunk(2, dim=-1)
        return f.tanh() * g.sigmoid()


class STNorm(Forecaster):
    """Layers with dilations 1, 2, 4, …; each adds to the skip connection at the last step, which the head reads.

    The residual map of the last layer would be read by nobody, and is left out.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: STNormConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.info, self.pad = info, config.pad
        width, depth = config.width, config.depth(info)
        self.reach = 2**depth
        self.embed = Linear(info.channels + info.inputs, width)
        self.layers = nn.ModuleList(Layer(config, info.places, 2**level) for level in range(depth))
        self.skips = nn.ModuleList(Linear(width, width) for _ in range(depth))
        self.residuals = nn.ModuleList(Linear(width, width) for _ in range(depth - 1))
        self.hidden = Linear(width, width)
        self.readout = Linear(width, info.horizon * info.channels)

    def forward(self, batch: Batch) -> Forecast:
        x = self.embed(self._padded(history_at_places(batch, self.info)))
        skip = x.new_zeros(())
        for layer, to_skip, residual in zip(self.layers, self.skips, [*self.residuals, None], strict=True):
            h = layer(x)
            skip = skip + to_skip(h[:, -1])
            if residual is not None:
                x = residual(h) + x[:, -h.shape[1] :]
        ahead = self.readout(self.hidden(skip.relu()).relu())  # (B, N, Q·C)
        return Forecast(from_places(ahead.unflatten(2, (self.info.horizon, self.info.channels)).transpose(1, 2), self.info))

    def _padded(self, x: Tensor) -> Tensor:
        missing = max(0, self.reach - x.shape[1])
        before = x[:, :1].expand(-1, missing, -1, -1)
        return torch.cat([before if self.pad == "edge" else torch.zeros_like(before), x], dim=1)
