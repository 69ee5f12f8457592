"""PredRNN (Wang et al., NeurIPS 2017).

Legend: B batch, C channels, H×W grid, s patch, D width, h×w grid of patches.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.types import SeriesInfo
from stmodels.video.recurrent import FrameByFrame
from stmodels.video.recurrent_config import FoldedConfig, PredRNNConfig
from stmodels.video.st_lstm import STLSTMCell


class FoldedFrames(FrameByFrame):
    """Frames folded into patches of s×s cells: cells of a patch are channels."""

    def __init__(self, config: FoldedConfig, info: SeriesInfo) -> None:
        super().__init__(config, info, config.patch)
        self.patch, self.width = config.patch, config.width
        self.folded_channels = info.channels * config.patch**2
        self.size = tuple(-(-side // config.patch) for side in info.shape[1:])
        self.readout = nn.Conv2d(config.width, self.folded_channels, 1, bias=False)

    def fold(self, frame: Tensor) -> Tensor:
        """(B, C, H, W) → (B, s²·C, h, w)."""
        return F.pixel_unshuffle(frame, self.patch)

    def unfold(self, folded: Tensor) -> Tensor:
        """The inverse."""
        return F.pixel_shuffle(folded, self.patch)

    def nothing(self, like: Tensor) -> Tensor:
        """A state of zeros, (B, D, h, w)."""
        return like.new_zeros(len(like), self.width, *like.shape[-2:])


class PredRNN(FoldedFrames):
    """ST-LSTM layers of one width. The memory m of the last layer is that of the first at the next step.

    Raises:
        ConfigError: the configuration does not fit the data.
    """

    def __init__(self, config: PredRNNConfig, info: SeriesInfo) -> None:
        super().__init__(config, info)
        norm_size = (self.size[0], self.size[1]) if config.layer_norm else None
        self.cells = nn.ModuleList(
            STLSTMCell(config.width if layer else self.folded_channels, config.width, config.kernel, norm_size)
            for layer in range(config.layers)
        )

    def frame_by_frame(self, frame: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = self.fold(frame)
        layers, m = state or ([(self.nothing(x),) * 2] * len(self.cells), self.nothing(x))
        after = []
        for cell, (h, c) in zip(self.cells, layers, strict=True):
            x, c, m = cell(x, h, c, m)
            after.append((x, c))
        return self.unfold(self.readout(x)), (after, m)
