"""SimVP (Gao et al., CVPR 2022; Tan et al. 2022) and TAU (Tan et al., CVPR 2023).

Legend: B batch, P history, Q horizon, C channels, H×W grid, S channels of an encoded frame, h×w encoded grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.layers.losses import mean_squared
from stmodels.layers.multi_step import fed_back
from stmodels.layers.padding import cropped, padded
from stmodels.types import Batch, Forecast, SeriesInfo
from stmodels.video.blocks import GatedAttention, InceptionUNet, TemporalAttention, translator
from stmodels.video.simvp_config import SimVPConfig, SimVPFields, TAUConfig

_TEMPERATURE, _EPSILON = 0.1, 1e-12


def _normed(conv: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(2, width), nn.SiLU())


def _down(inputs: int, width: int, stride: int) -> nn.Sequential:
    return _normed(nn.Conv2d(inputs, width, 3, stride=stride, padding=1), width)


def _up(width: int, factor: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width * factor**2, 3, padding=1)
    return _normed(conv if factor == 1 else nn.Sequential(conv, nn.PixelShuffle(factor)), width)


class SimVPShell(Forecaster):
    """Encoder of a frame, translator of all frames side by side, decoder of a frame, which is given the first layer of the encoder too.

    It makes as many frames as it reads. The first Q of them are the forecast; for a longer one they are read again.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: SimVPFields, info: SeriesInfo, middle: nn.Module) -> None:
        super().__init__()
        config.check(info)
        self.divisor, self.horizon = config.divisor, info.horizon
        width = config.width
        strides = [1 + level % 2 for level in range(config.depth)]
        self.encoder = nn.ModuleList(_down(width if level else info.channels, width, stride) for level, stride in enumerate(strides))
        self.translator = middle
        self.decoder = nn.ModuleList(_up(width, stride) for stride in reversed(strides))
        self.readout = nn.Conv2d(width, info.channels, 1)

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(fed_back(lambda history, _: self.next_frames(history), batch.history, self.horizon))

    def next_frames(self, history: Tensor) -> Tensor:
        """(B, P, C, H, W) → the P frames that follow."""
        b, p = history.shape[:2]
        x = padded(history, self.divisor).flatten(0, 1)  # (B·P, C, H', W')
        first = x = self.encoder[0](x)
        for layer in self.encoder[1:]:
            x = layer(x)
        x = self.translator(x.unflatten(0, (b, p)).flatten(1, 2)).unflatten(1, (p, -1)).flatten(0, 1)
        for layer in self.decoder[:-1]:
            x = layer(x)
        x = self.readout(self.decoder[-1](x + first))
        return cropped(x.unflatten(0, (b, p)), history)


class SimVP(SimVPShell):
    """SimVP, with the translator of its first or its second version."""

    def __init__(self, config: SimVPConfig, info: SeriesInfo) -> None:
        width, hidden = info.history * config.width, config.hidden_width
        middle = (
            InceptionUNet(width, hidden, config.layers)
            if config.translator == "incepu"
            else translator(width, hidden, config.layers, GatedAttention, config.drop_path)
        )
        super().__init__(config, info, middle)


class TAU(SimVPShell):
    """TAU. The loss on the changes needs more than two steps ahead, and is left out where there are fewer."""

    def __init__(self, config: TAUConfig, info: SeriesInfo) -> None:
        width = info.history * config.width
        super().__init__(config, info, translator(width, config.hidden_width, config.layers, TemporalAttention, config.drop_path))

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        terms = super().loss_terms(forecast, batch)
        if self.horizon > 2:
            truth = batch.target
            if batch.target_mask is not None:  # where there is no reading the forecast stands for it, and both agree
                truth = torch.where(batch.target_mask, truth, forecast.value)
            terms["diff"] = change_divergence(forecast.value, truth)
        return terms


def change_divergence(forecast: Tensor, truth: Tensor) -> Tensor:
    """mean of p log(p / (q + ε) + ε), with p and q the softmax over a frame's changes from the one before, of forecast and truth.

    Source: Equation 8 of TAU, as its code has it: a mean over all elements, not a sum over a frame's.
    """
    p, q = ((x.float().diff(dim=1).flatten(2) / _TEMPERATURE).softmax(-1) for x in (forecast, truth))
    return (p * (p / (q + _EPSILON) + _EPSILON).log()).mean()
