"""A convolutional LSTM whose gates see its memory.

Legend: B batch, D width, h×w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PeepholeLSTM(nn.Module):
    """Of x, the hidden state h and the memory c it gives h', c', (B, D, h, w) each. The output gate sees the new memory.

    Source: Shi et al. 2015, Equation 3, with gates from one convolution of x and one of h. Peepholes start at 0, and tie the weights to the
    size of the grid.

    Args:
        forget_bias: is added to the forget gate, which is then open at the start; without it the convolution of x has a bias.
    """

    def __init__(self, inputs: int, width: int, kernel: int, size: tuple[int, ...], forget_bias: float | None = 1.0) -> None:
        super().__init__()
        self.forget_bias = forget_bias or 0.0
        self.from_x = nn.Conv2d(inputs, 4 * width, kernel, padding=kernel // 2, bias=forget_bias is None)
        self.from_h = nn.Conv2d(width, 4 * width, kernel, padding=kernel // 2, bias=False)
        self.peephole_i, self.peephole_f, self.peephole_o = (nn.Parameter(torch.empty(width, *size)) for _ in range(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for peephole in (self.peephole_i, self.peephole_f, self.peephole_o):
            nn.init.zeros_(peephole)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, g, f, o = (self.from_x(x) + self.from_h(h)).chunk(4, dim=1)
        c_next = (f + self.peephole_f * c + self.forget_bias).sigmoid() * c + (i + self.peephole_i * c).sigmoid() * g.tanh()
        return (o + self.peephole_o * c_next).sigmoid() * c_next.tanh(), c_next
