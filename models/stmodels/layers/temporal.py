"""Transformer layers over time (Eq. 6): thousands of sequences of a few tokens.

Inside, time is the first axis, as :mod:`stmodels.layers.short_attention` wants it.

Legend: M sequences, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.layers.linear import Linear
from stmodels.layers.short_attention import short_attention


class TemporalLayer(nn.Module):
    """One pre-LN transformer layer: x + Attention(LN(x)), then x + MLP(LN(x)). (M, T, D) → same."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, int(mlp_ratio * width))
        self.fc2 = Linear(int(mlp_ratio * width), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_MTD: Tensor) -> Tensor:
        # Copies nothing when x is such a transposed view already, as the output is.
        x_TMD = x_MTD.transpose(0, 1).contiguous()
        x_TMD = x_TMD + self.dropout(self.proj(short_attention(self.qkv(self.norm1(x_TMD)), self.heads)))
        x_TMD = x_TMD + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x_TMD)))))
        return x_TMD.transpose(0, 1)


class TemporalEncoder(nn.Module):
    """Learnable temporal positions and a stack of :class:`TemporalLayer`: (M, T, D) → same."""

    def __init__(self, length: int, width: int, heads: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(TemporalLayer(width, heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x_MTD: Tensor) -> Tensor:
        x_MTD = x_MTD + self.position
        for layer in self.layers:
            x_MTD = layer(x_MTD)
        return self.norm(x_MTD.transpose(0, 1)).transpose(0, 1)
