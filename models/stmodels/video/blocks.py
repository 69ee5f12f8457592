"""The translators of SimVP and TAU: blocks of convolutions over all frames of a window, side by side as channels.

Legend: B batch, D channels, H×W grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from stmodels.layers.linear import Linear


def depthwise(width: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """A convolution of each channel by itself, which keeps the size."""
    return nn.Conv2d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=width)


def grouped(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Sequential:
    """A convolution in groups of channels where they divide, GroupNorm, LeakyReLU."""
    parts = groups if inputs % groups == 0 and outputs % groups == 0 else 1
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=parts)
    return nn.Sequential(conv, nn.GroupNorm(parts, outputs), nn.LeakyReLU(0.2))


class GatedAttention(nn.Module):
    """SimVP's: f · σ(g), with f and g from kernels of 5 and 7 (dilation 3) cells: (B, D, H, W) → same. Source: Tan et al. 2022, gSTA."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.far = depthwise(width, 5), depthwise(width, 7, dilation=3)
        self.mix = nn.Conv2d(width, 2 * width, 1)

    def forward(self, u: Tensor) -> Tensor:
        f, g = self.mix(self.far(self.near(u))).chunk(2, dim=1)
        return f * g.sigmoid()


class TemporalAttention(nn.Module):
    """TAU's: K · V · u, with K for each cell from the same kernels and V for each channel from its mean: (B, D, H, W) → same.

    Source: Tan et al. 2023, Equation 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.far = depthwise(width, 5), depthwise(width, 7, dilation=3)
        self.mix = nn.Conv2d(width, width, 1)
        narrow = max(1, width // max(width // 16, 4))
        self.squeeze, self.excite = Linear(width, narrow, bias=False), Linear(narrow, width, bias=False)

    def channel_weights(self, u: Tensor) -> Tensor:
        """V, (B, D) in (0, 1)."""
        return self.excite(self.squeeze(u.mean((2, 3))).relu()).sigmoid()

    def forward(self, u: Tensor) -> Tensor:
        return self.mix(self.far(self.near(u))) * self.channel_weights(u)[..., None, None] * u


class Attended(nn.Module):
    """x + 1×1(attention(GELU(1×1 x)))."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attention = attention
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.attention(self.activation(self.inner(x))))


class Block(nn.Module):
    """x + λ₁·A(BatchNorm x), then x + λ₂·M(BatchNorm x), each skipped at times, then 1×1 where the widths differ."""

    def __init__(self, inputs: int, outputs: int, attention: Callable[[int], nn.Module], drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(inputs)
        self.attention = Attended(inputs, attention(inputs))
        hidden = 8 * inputs
        self.feedforward = nn.Sequential(nn.Conv2d(inputs, hidden, 1), depthwise(hidden, 3), nn.GELU(), nn.Conv2d(hidden, inputs, 1))
        self.scale1, self.scale2 = nn.Parameter(torch.empty(inputs, 1, 1)), nn.Parameter(torch.empty(inputs, 1, 1))
        self.drop = DropPath(drop_path)
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for scale in (self.scale1, self.scale2):
            nn.init.constant_(scale, 1e-2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.scale1 * self.attention(self.norm1(x)))
        x = x + self.drop(self.scale2 * self.feedforward(self.norm2(x)))
        return self.project(x)


def translator(
    width: int, hidden: int, layers: int, attention: Callable[[int], nn.Module], drop_path: float
) -> nn.Sequential:
    """Blocks from the width of all frames to a hidden one, and back with the last."""
    widths = [width] + [hidden] * (layers - 1) + [width]
    first = min(1e-2, drop_path)
    rates = [first + (drop_path - first) * i / (layers - 1) for i in range(layers)]
    return nn.Sequential(*(Block(widths[i], widths[i + 1], attention, rates[i]) for i in range(layers)))


class Inception(nn.Module):
    """1×1, then the sum of grouped convolutions of 3, 5, 7 and 11 cells: (B, D, H, W) → (B, D', H, W)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, hidden, 1)
        self.kernels = nn.ModuleList(grouped(hidden, outputs, kernel, 8) for kernel in (3, 5, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return torch.stack([kernel(x) for kernel in self.kernels]).sum(0)


class InceptionUNet(nn.Module):
    """As many inception layers down as up, all of one size, with skip connections: (B, D, H, W) → same. Source: Gao et al. 2022."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Inception(hidden if i else width, hidden // 2, hidden) for i in range(layers))
        self.up = nn.ModuleList(
            Inception(2 * hidden if i else hidden, hidden // 2, hidden if i < layers - 1 else width) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        x = self.up[0](x)
        for layer, skip in zip(self.up[1:], reversed(skips[:-1]), strict=True):
            x = layer(torch.cat([x, skip], dim=1))
        return x
