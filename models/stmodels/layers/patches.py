"""Tokens from grids and back (Equation 5 of ST-VFM): non-overlapping patches of s×s cells and p steps.

Legend: B batch, T steps, C channels, H×W grid, s patch, p temporal patch, N = (H/s)(W/s), T' = T/p, V = p·C·s².
"""

from __future__ import annotations

from torch import Tensor


def patchify(grid: Tensor, s: int, p: int) -> Tensor:
    """(B, T, C, H, W) → (B, T', N, V)."""
    b, t, c, h, w = grid.shape
    x = grid.reshape(b, t // p, p, c, h // s, s, w // s, s)
    return x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(b, t // p, (h // s) * (w // s), p * c * s * s)


def unpatchify(tokens: Tensor, s: int, p: int, shape: tuple[int, int, int]) -> Tensor:
    """The inverse: (B, T', N, V) → (B, T, C, H, W), with ``shape`` = (C, H, W)."""
    b, t, _, _ = tokens.shape
    c, h, w = shape
    x = tokens.reshape(b, t, h // s, w // s, p, c, s, s)
    return x.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(b, t * p, c, h, w)
