"""Bilateral cross-prompt coordination (Eq. 9-10): a branch attends to its tokens and to prompts pooled from the other.

Legend: B' = B·T' frames, N = h·w spatial tokens, L prompts, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.layers.attention import attention
from stmodels.layers.linear import Linear


def prompt_grid(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of ``count`` pooled prompts: as square as the divisors allow, and never finer than the grid."""
    rows = max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)
    return min(rows, grid[0]), min(count // rows, grid[1])


def pool_prompts(tokens: Tensor, grid: tuple[int, int], count: int | None) -> Tensor:
    """Eq. 9: (B', N, D) → (B', L, D), averages over an even partition of the frame. ``None`` keeps every token."""
    if count is None:
        return tokens
    b, _, d = tokens.shape
    frame = tokens.transpose(1, 2).reshape(b, d, *grid)
    return F.adaptive_avg_pool2d(frame, prompt_grid(count, grid)).flatten(2).transpose(1, 2)


class CrossPromptBlock(nn.Module):
    """One branch's half of a coordination layer, pre-LN: x + Attention(x, [x ; prompts]), then x + MLP(x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """(B', N, D), (B', L, D) → (B', N, D)."""
        b, n, d = x.shape
        own = self.norm1(x)
        context = torch.cat([own, self.norm1(prompts)], dim=1)
        q = self.query(own).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(context).view(b, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class CrossPromptLayer(nn.Module):
    """Both branches at once: each sees prompts of the other as it was before this layer."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int], prompts: int | None) -> None:
        super().__init__()
        self.grid = grid
        self.prompts = prompts
        self.st = CrossPromptBlock(width, heads)
        self.flow = CrossPromptBlock(width, heads)

    def forward(self, st: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """(B', N, D) of each branch → the same."""
        prompts_of_st = pool_prompts(st, self.grid, self.prompts)
        prompts_of_flow = pool_prompts(flow, self.grid, self.prompts)
        return self.st(st, prompts_of_flow), self.flow(flow, prompts_of_st)
