"""MAU, the motion-aware unit (Chang et al., NeurIPS 2021).

Legend: B batch, C channels, H×W grid, D width, h×w encoded grid, τ earlier states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stmodels.types import SeriesInfo
from stmodels.video.recurrent import FrameByFrame
from stmodels.video.recurrent_config import MAUConfig


def _normed(width: int, outputs: int, kernel: int, size: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, outputs, kernel, padding=kernel // 2), nn.LayerNorm([outputs, *size]))


class MAUCell(nn.Module):
    """The temporal state T is fused with its own past. An earlier state weighs by how similar its spatial state is to the present one.

    T, S and every earlier state are (B, D, h, w); the earlier ones stand in (B, τ, D, h, w). Source: Chang et al. 2021, Equations 1 to 6.
    """

    def __init__(self, config: MAUConfig, size: tuple[int, ...]) -> None:
        super().__init__()
        width, kernel = config.width, config.kernel
        self.residual = config.residual
        self.query, self.gate = _normed(width, width, kernel, size), _normed(width, width, kernel, size)
        self.from_t, self.from_s = _normed(width, 3 * width, kernel, size), _normed(width, 3 * width, kernel, size)

    def similarities(self, s: Tensor, earlier_s: Tensor) -> Tensor:
        """a, the weights of the τ earlier states, which sum to 1: (B, τ)."""
        scores = (earlier_s * self.query(s)[:, None]).flatten(2).sum(2)
        return (scores / math.sqrt(s[0].numel())).softmax(dim=1)

    def forward(self, t: Tensor, s: Tensor, earlier_t: Tensor, earlier_s: Tensor) -> tuple[Tensor, Tensor]:
        """T', S'."""
        trend = (self.similarities(s, earlier_s)[..., None, None, None] * earlier_t).sum(1)
        u = self.gate(t).sigmoid()
        t_g, t_t, t_s = self.from_t(u * t + (1 - u) * trend).chunk(3, dim=1)
        s_g, s_t, s_s = self.from_s(s).chunk(3, dim=1)
        t_next = t_g.sigmoid() * t_t + (1 - t_g.sigmoid()) * s_t
        s_next = s_g.sigmoid() * s_s + (1 - s_g.sigmoid()) * t_s
        return t_next, s_next + s if self.residual else s_next


class MAU(FrameByFrame):
    """A frame is encoded, goes through the cells as their spatial state, and is decoded. States before the first frame are 0; they count.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: MAUConfig, info: SeriesInfo) -> None:
        super().__init__(config, info, config.downsampling)
        width = config.width
        self.tau, self.recall = config.tau, config.recall
        halvings = int(math.log2(config.downsampling))
        size = tuple(-(-side // config.downsampling) for side in info.shape[1:])
        down = [nn.Conv2d(info.channels, width, 1), *(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(halvings))]
        self.encoder = nn.ModuleList(nn.Sequential(conv, nn.LeakyReLU(0.2)) for conv in down)
        self.cells = nn.ModuleList(MAUCell(config, size) for _ in range(config.layers))
        up = [nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1) for _ in range(halvings)]
        # As in the original, the last one of the decoder has no nonlinearity behind it.
        self.decoder = nn.ModuleList(nn.Sequential(conv, nn.LeakyReLU(0.2)) if i < halvings - 1 else conv for i, conv in enumerate(up))
        self.readout = nn.Conv2d(width, info.channels, 1)

    def frame_by_frame(self, frame: Tensor, state: Any) -> tuple[Tensor, Any]:
        s, encoded = frame, []
        for layer in self.encoder:
            s = layer(s)
            encoded.append(s)
        nothing = torch.zeros_like(s)
        earlier = nothing[:, None].expand(-1, self.tau, -1, -1, -1)
        after = []
        for cell, (t, earlier_t, earlier_s) in zip(self.cells, state or [(nothing, earlier, earlier)] * len(self.cells), strict=True):
            read = s
            t, s = cell(t, s, earlier_t, earlier_s)
            after.append((t, _appended(earlier_t, t), _appended(earlier_s, read)))
        for layer, like in zip(self.decoder, reversed(encoded[:-1]), strict=True):
            s = layer(s) + like if self.recall else layer(s)
        return self.readout(s), after


def _appended(earlier: Tensor, state: Tensor) -> Tensor:
    """The last τ states."""
    return torch.cat([earlier[:, 1:], state[:, None]], dim=1)
