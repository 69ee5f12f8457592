"""MIM, Memory in Memory (Wang et al., CVPR 2019).

Legend: B batch, D width, h×w grid of patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stmodels.layers.conv_lstm import PeepholeLSTM
from stmodels.types import SeriesInfo
from stmodels.video.predrnn import FoldedFrames
from stmodels.video.recurrent_config import MIMConfig
from stmodels.video.st_lstm import STLSTMCell, maps


class MIMBlock(nn.Module):
    """An ST-LSTM in which the stationary unit takes the place of the forget gate of c: c' = S(d, c) + σ(i)∘tanh g. The output gate sees x,
    h and m."""

    def __init__(self, width: int, kernel: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.from_x, self.from_m = maps(width, 4 * width, kernel), maps(width, 4 * width, kernel)
        self.from_h = maps(width, 3 * width, kernel)
        self.stationary = PeepholeLSTM(width, width, kernel, size)
        self.mix = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(self, x: Tensor, d: Tensor, h: Tensor, c: Tensor, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h', c', s', m'; d is what the difference unit makes of this step."""
        i_x, g_x, f_x, o_x = self.from_x(x).chunk(4, dim=1)
        i_h, g_h, o_h = self.from_h(h).chunk(3, dim=1)
        i_m, g_m, f_m, o_m = self.from_m(m).chunk(4, dim=1)
        m = (f_x + f_m + 1).sigmoid() * m + (i_x + i_m).sigmoid() * (g_x + g_m).tanh()
        kept, s = self.stationary(d, c, s)
        c = kept + (i_x + i_h).sigmoid() * (g_x + g_h).tanh()
        h = (o_x + o_h + o_m).sigmoid() * self.mix(torch.cat([c, m], dim=1)).tanh()
        return h, c, s, m


class MIM(FoldedFrames):
    """An ST-LSTM, then blocks. The difference unit of the first block reads how the ST-LSTM's state changed since the step before, each
    further one the unit below it. At the first frame there is no difference, and their output is 0.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: MIMConfig, info: SeriesInfo) -> None:
        super().__init__(config, info)
        width, kernel = config.width, config.kernel
        self.first = STLSTMCell(self.folded_channels, width, kernel)
        self.blocks = nn.ModuleList(MIMBlock(width, kernel, self.size) for _ in range(config.layers - 1))
        self.differences = nn.ModuleList(PeepholeLSTM(width, width, kernel, self.size) for _ in range(config.layers - 1))

    def frame_by_frame(self, frame: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = self.fold(frame)
        nothing = self.nothing(x)
        is_start = state is None
        (h_first, c_first), layers, units, m = state or (
            (nothing,) * 2, [(nothing,) * 3] * len(self.blocks), [(nothing,) * 2] * len(self.blocks), nothing
        )  # fmt: skip
        x, c_first, m = self.first(x, h_first, c_first, m)
        difference, h_first = x - h_first, x
        layers_after, units_after = [], []
        for block, unit, (h, c, s), (d, memory) in zip(self.blocks, self.differences, layers, units, strict=True):
            if not is_start:
                d, memory = unit(difference, d, memory)
            difference = d
            x, c, s, m = block(x, d, h, c, s, m)
            layers_after.append((x, c, s))
            units_after.append((d, memory))
        return self.unfold(self.readout(x)), ((h_first, c_first), layers_after, units_after, m)
