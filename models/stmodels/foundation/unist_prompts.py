"""The prompt network of UniST: it looks at the window, asks two memories, and answers for the empty tokens of the future.

Legend: M images (windows times channels), T' rows of tokens in time, of which F are ahead, n patches of a frame, P history, K days,
c channels of an image, H×W grid, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stmodels.foundation.unist_config import UniSTConfig
from stmodels.layers.encoder import EncoderLayer
from stmodels.layers.linear import Linear


class Memory(nn.Module):
    """softmax(tanh(W x) · keysᵀ) · values: (…, D) → (…, D)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.query = Linear(width, width)
        self.keys, self.values = nn.Parameter(torch.empty(count, width)), nn.Parameter(torch.empty(count, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.keys, self.values):
            nn.init.trunc_normal_(table, std=0.02)

    def weights(self, x: Tensor) -> Tensor:
        """(…, count); they sum to 1."""
        return (self.query(x).tanh() @ self.keys.T).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ self.values


class Seen(NamedTuple):
    """What the prompts may read."""

    tokens: Tensor  # (M, T', n, D): what the decoder reads, the future still empty
    place_and_time: Tensor  # (M, F, n, D): position and calendar of the tokens ahead
    earlier: Tensor | None  # (M, K, F, n, D): tokens of the frames of earlier days, or of the season
    frames: Tensor  # (M, P·c, H, W)


class PromptNetwork(nn.Module):
    """The sum of the prompts that ``config.prompt`` names: (M, F, n, D), one for each token ahead."""

    def __init__(self, config: UniSTConfig, frames: int, patch: int) -> None:
        """``frames``: P·c, the number of frames of the history side by side."""
        super().__init__()
        width, letters = config.width, config.prompt
        self.time_memory = Memory(config.memory, width) if set(letters) & set("pc") else None
        self.closeness = EncoderLayer(width, 4, width, config.dropout, "relu") if "c" in letters else None
        self.period = EncoderLayer(width, 4, width, config.dropout, "relu") if "p" in letters else None
        self.scales = self.space_memory = self.to_patches = None
        if "s" in letters:
            self.scales = nn.ModuleList(nn.Conv2d(frames, width, kernel, padding=kernel // 2) for kernel in (1, 3, 5))
            self.space_memory = Memory(config.memory, width)
            self.to_patches = nn.Conv2d(width, width, patch, stride=patch)

    def forward(self, seen: Seen) -> Tensor:
        prompt = torch.zeros_like(seen.place_and_time)
        if self.closeness is not None and self.time_memory is not None:
            each_place = seen.tokens.transpose(1, 2)  # (M, n, T', D)
            state = self.closeness(each_place.flatten(0, 1)).mean(1).unflatten(0, each_place.shape[:2])
            prompt = prompt + self.time_memory(state)[:, None] + seen.place_and_time
        if self.period is not None and self.time_memory is not None:
            assert seen.earlier is not None
            each_token = seen.earlier.permute(0, 2, 3, 1, 4)  # (M, F, n, K, D)
            state = self.period(each_token.flatten(0, 2)).mean(1).unflatten(0, each_token.shape[:3])
            prompt = prompt + self.time_memory(state)
        if self.scales is not None:
            prompt = prompt + self._space(seen.frames)[:, None]
        return prompt

    def _space(self, frames: Tensor) -> Tensor:
        """(M, P·c, H, W) → (M, n, D)."""
        assert self.scales is not None
        assert self.space_memory is not None
        assert self.to_patches is not None
        answers = [self.space_memory(scale(frames).movedim(1, -1)).movedim(-1, 1) for scale in self.scales]
        return torch.stack([self.to_patches(answer) for answer in answers]).mean(0).flatten(2).mT
