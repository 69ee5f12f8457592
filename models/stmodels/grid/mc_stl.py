"""MC-STL (Zhang et al., CIKM 2023), its two forecasting branches.

Legend: B batch, L frames, C channels, H×W grid, N patches, d width of a token of the contrast branch, D of one of the mask branch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.base import Forecaster
from stmodels.grid.frames import season_frames
from stmodels.grid.mc_stl_config import MCSTLConfig
from stmodels.layers.linear import Linear
from stmodels.layers.losses import mean_squared
from stmodels.layers.padding import cropped, padded
from stmodels.layers.positions import sinusoid
from stmodels.layers.residual import ResidualUnit, conv3x3
from stmodels.types import Batch, Forecast, SeriesInfo


class ResidualNetwork(nn.Sequential):
    """Convolution, residual units, dropout, ReLU, convolution: (B, inputs, H, W) → (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, config: MCSTLConfig) -> None:
        units = (ResidualUnit(config.width) for _ in range(config.units))
        super().__init__(
            conv3x3(inputs, config.width), *units, nn.Dropout(config.dropout), nn.ReLU(), conv3x3(config.width, outputs)
        )


class CrossBlock(nn.Module):
    """Each stream's attention weighs the other's values; what comes of it and both streams are three planes for convolutions: two of
    (B, N, d) → (B, N, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.ModuleList(Linear(width, 3 * width) for _ in range(2))
        self.project = Linear(width, width)
        # A ReLU behind the last one would leave nothing of the tokens for one seed in three.
        self.planes = nn.Sequential(conv3x3(3, 2), nn.ReLU(), conv3x3(2, 1))

    def forward(self, spatial: Tensor, channel: Tensor) -> Tensor:
        map_s, v_s = self._attention(0, spatial)
        map_c, v_c = self._attention(1, channel)
        crossed = self.project((map_s @ v_c + map_c @ v_s).softmax(-1))
        pair = torch.stack([spatial, channel], dim=1).softmax(1)
        planes: Tensor = self.planes(torch.cat([crossed[:, None], pair], dim=1))
        return planes[:, 0]

    def _attention(self, stream: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The attention map of a stream, (B, N, N), and its values."""
        q, k, v = self.qkv[stream](self.norms[stream](x)).chunk(3, dim=-1)
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1), v


class ContrastBranch(nn.Module):
    """Tokens of places and of channels, crossed, give a change of the frames; a GRU over the frames so changed gives the state that the
    convolutional network reads: (B, L·C, H, W) → (B, Q·C, H, W)."""

    def __init__(self, config: MCSTLConfig, frames: int, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        (c, h, w), width = shape, config.token_width
        self.shape, patches = shape, h * w // config.patch**2
        self.spatial = nn.Conv2d(frames * c, width, config.patch, stride=config.patch)
        self.channel = nn.Conv2d(frames * c, patches, 1)
        self.embed = Linear(h * w, width)
        self.register_buffer("positions", sinusoid(patches, width), persistent=False)
        self.block = CrossBlock(width)
        self.unembed = Linear(patches * width, c * h * w)
        self.to_frames = conv3x3(c, frames * c)
        self.recurrent = nn.GRU(c * h * w, c * h * w, num_layers=2, batch_first=True)
        self.network = ResidualNetwork(c, outputs, config)

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.spatial(x).flatten(2).mT + self.positions
        channel = self.embed(self.channel(x).flatten(2)) + self.positions
        change = self.unembed(self.block(spatial, channel).flatten(1)).unflatten(1, self.shape)
        frames = (self.to_frames(change) + x).unflatten(1, (-1, self.shape[0])).flatten(2)  # (B, L, C·H·W)
        state = self.recurrent(frames)[0][:, -1]
        ahead: Tensor = self.network(state.unflatten(1, self.shape))
        return ahead


class MaskBranch(nn.Module):
    """An encoder block over the patches of all frames; its attention map is also the graph over which each frame is convolved:
    (B, L·C, H, W) → (B, Q·C, H, W)."""

    def __init__(self, config: MCSTLConfig, frames: int, shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        (c, h, w), width = shape, config.width
        self.shape, self.frames, self.patch, self.heads, self.beta = shape, frames, config.patch, config.heads, config.beta
        patches = h * w // config.patch**2
        self.embed = nn.Conv2d(frames * c, width, config.patch, stride=config.patch)
        self.register_buffer("positions", sinusoid(patches, width), persistent=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        self.feedforward = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.to_frames = conv3x3(1, frames)
        self.graph1, self.graph2 = Linear(c, 4 * width), Linear(4 * width, width)
        self.unembed = Linear(patches * width, c * h * w)
        self.network = ResidualNetwork(frames * c, outputs, config)

    def forward(self, x: Tensor) -> Tensor:
        tokens, maps = self.encode(self.embed(x).flatten(2).mT + self.positions)
        planes = self.to_frames(tokens[:, None])  # (B, L, N, D)
        graph = attention_graph(maps, self.beta)[:, None]
        pooled = F.max_pool2d(x, self.patch).unflatten(1, (self.frames, -1)).flatten(3).mT  # (B, L, N, C)
        planes = planes + graph @ self.graph2((graph @ self.graph1(pooled)).relu())
        frames = self.unembed(planes.flatten(2)).unflatten(2, self.shape).flatten(1, 2)
        ahead: Tensor = self.network(frames)
        return ahead

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) → the same, and the attention maps (B, heads, N, N)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        maps = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.project((maps @ v).transpose(1, 2).flatten(2))
        return x + self.feedforward(self.norm2(x)), maps


def attention_graph(maps: Tensor, beta: float) -> Tensor:
    """Attention maps of a window → the graph of its patches, of which each column sums to 1: (B, heads, N, N) → (B, N, N).

    Heads are summed, the diagonal is raised to the largest entry, entries below 1 + β times the mean are cut. No gradient goes through it.
    """
    graph = maps.detach().sum(1)
    largest, mean = graph.amax((1, 2), keepdim=True), graph.mean((1, 2), keepdim=True)
    is_diagonal = torch.eye(graph.shape[-1], dtype=torch.bool, device=graph.device)
    kept = (graph >= (1 + beta) * mean) | is_diagonal
    graph = torch.where(is_diagonal, largest, graph) * kept
    return graph / graph.sum(1, keepdim=True)


class MCSTL(Forecaster):
    """The sum of both branches' forecasts. Their pre-training, by masks and by contrast, is not public, and is left out.

    Unlike public code, the graph is that of the window and not of its batch, frames stand in one order, oldest first, and a grid is not
    padded to a square. With ``inputs: period`` the frames of the season stand before those of the window, which the GRU then reads last.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    criterion = staticmethod(mean_squared)

    def __init__(self, config: MCSTLConfig, info: SeriesInfo) -> None:
        super().__init__()
        config.check(info)
        self.info, self.patch, self.is_period = info, config.patch, config.inputs == "period"
        frames = info.history + (info.history + info.horizon if self.is_period else 0)
        c, h, w = info.shape
        shape = (c, h + -h % config.patch, w + -w % config.patch)
        outputs = info.horizon * c
        self.contrast = ContrastBranch(config, frames, shape, outputs)
        self.mask = MaskBranch(config, frames, shape, outputs)

    def forward(self, batch: Batch) -> Forecast:
        frames = batch.history
        if self.is_period:
            frames = torch.cat([season_frames(batch, 0, self.info.horizon), frames], dim=1)
        x = padded(frames, self.patch).flatten(1, 2)
        ahead = self.contrast(x) + self.mask(x)
        return Forecast(cropped(ahead, batch.history).unflatten(1, (self.info.horizon, -1)))
