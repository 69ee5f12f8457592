"""The convolutions of the recurrent cells, and the cell of PredRNN.

Legend: B batch, D width, h×w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def maps(inputs: int, outputs: int, kernel: int, norm_size: tuple[int, int] | None = None) -> nn.Module:
    """A convolution without bias that keeps the size, with a LayerNorm over channels and cells if their ``norm_size`` (h, w) is given."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return conv if norm_size is None else nn.Sequential(conv, nn.LayerNorm([outputs, *norm_size]))


class STLSTMCell(nn.Module):
    """c' = σ(f + 1)∘c + σ(i)∘tanh g;  m' = σ(f̃ + 1)∘m + σ(ĩ)∘tanh g̃;  o = σ(… + conv[c', m']);  h' = o∘tanh(1×1[c', m']).

    i, f, g come from x and h; those with a tilde from x and the memory m of the layer below; o from x and h. All are (B, D, h, w). Source:
    Wang et al. 2017, Equation 3.
    """

    def __init__(self, inputs: int, width: int, kernel: int, norm_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.from_x = maps(inputs, 7 * width, kernel, norm_size)
        self.from_h = maps(width, 4 * width, kernel, norm_size)
        self.from_m = maps(width, 3 * width, kernel, norm_size)
        self.from_memories = maps(2 * width, width, kernel, norm_size)
        self.mix = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h', c', m'."""
        i_x, f_x, g_x, i2_x, f2_x, g2_x, o_x = self.from_x(x).chunk(7, dim=1)
        i_h, f_h, g_h, o_h = self.from_h(h).chunk(4, dim=1)
        i_m, f_m, g_m = self.from_m(m).chunk(3, dim=1)
        c = (f_x + f_h + 1).sigmoid() * c + (i_x + i_h).sigmoid() * (g_x + g_h).tanh()
        m = (f2_x + f_m + 1).sigmoid() * m + (i2_x + i_m).sigmoid() * (g2_x + g_m).tanh()
        memories = torch.cat([c, m], dim=1)
        o = (o_x + o_h + self.from_memories(memories)).sigmoid()
        return o * self.mix(memories).tanh(), c, m
