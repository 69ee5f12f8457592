"""The correlation image on its canvas, and the attention bias that the first layer gets from it.

Legend: B batch, N nodes, G = ceil(N/32) patches a side, S = 32·G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.correlation import CHANNELS, correlation_image, correlation_volume


class ChannelMix(nn.Conv2d):
    """W_af: a learnable 3×3 convolution over the three channels, which starts as the identity."""

    def __init__(self) -> None:
        super().__init__(3, 3, kernel_size=3, padding=1)

    def reset_parameters(self) -> None:
        nn.init.dirac_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PatchBias(nn.Conv1d):
    """A of Eq. 8: maps row i of the image, in strips as wide as a patch, to one bias per patch column. It starts at zero.

    With ``squash: tanh`` it stays within ±1, and Eq. 7 divides it by √d: a patch weighs at most 1.28 times what another does, for d = 64.
    A ``gain`` multiplies it by a learned number, which starts at one.
    """

    def __init__(self, patch: int, squash: str = "tanh", gain: bool = False) -> None:
        super().__init__(3, 1, kernel_size=patch, stride=patch)
        self.squash = squash
        self.gain = nn.Parameter(torch.ones(())) if gain else None

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if getattr(self, "gain", None) is not None:  # Conv1d draws its weights before there is one
            nn.init.ones_(self.gain)

    def forward(self, image: Tensor, nodes: int, prompt: int) -> Tensor:
        """(B, 3, S, S) → (B, N + prompt, 1 + G²): tiled over patch rows, and zero for the class column and for prompt rows."""
        # The windows do not overlap, so this is a plain product, ten times as fast as the convolution on a CPU.
        strips = image[:, :, :nodes].unflatten(-1, (-1, self.kernel_size[0]))  # (B, 3, N, G, 32)
        bias = torch.einsum("bcngp,cp->bng", strips, self.weight[0]) + self.bias
        if self.squash == "tanh":
            bias = torch.tanh(bias)
        if self.gain is not None:
            bias = bias * self.gain
        return F.pad(bias.repeat(1, 1, bias.shape[-1]), (1, 0, 0, prompt))


class CorrelationCanvas(nn.Module):
    """History → normalised correlation image, padded at the right and the bottom to whole patches, mixed by W_af.

    The canvas of the paper is larger (at least 384 pixels per side). Patches that lie wholly in the padding are masked out of attention,
    and no forecast is read from them. They are left out here, which changes no number.
    """

    def __init__(self, nodes: int, patch: int, channels: tuple[str, ...], lag: str) -> None:
        super().__init__()
        self.lag = lag
        self.padding = -nodes % patch
        self.mix = ChannelMix()
        shown = torch.tensor([float(c in channels) for c in CHANNELS])
        self.register_buffer("shown", shown.view(3, 1, 1), persistent=False)

    def pixels(self, history: Tensor) -> Tensor:
        """(B, P, N) scaled readings → (B, 3, N, N) in [0, 1]; no gradient flows through it."""
        with torch.no_grad(), torch.autocast(history.device.type, enabled=False):
            return correlation_image(correlation_volume(history.transpose(1, 2), lag=self.lag))

    def forward(self, history: Tensor) -> Tensor:
        """(B, P, N) → (B, 3, S, S)."""
        # ViLT normalises by (x − 0.5) / 0.5. A channel that is left out becomes 0, as the padding is.
        normalised = (self.pixels(history) - 0.5) / 0.5 * self.shown
        padded = F.pad(normalised, (0, self.padding, 0, self.padding))
        return self.mix(padded.contiguous(memory_format=torch.channels_last))  # faster on a CPU
