"""A post-norm transformer layer.

Legend: M sequences, L tokens, D width, h heads.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from stmodels.layers.attention import attention
from stmodels.layers.linear import Linear

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class EncoderLayer(nn.Module):
    """x ← LN(x + Attention(x)), then LN(x + FFN(x)): (M, L, D) → same.

    It computes what ``nn.TransformerEncoderLayer`` does. That builds all scores at once where it forecasts, for which a network of
    hundreds of nodes has no memory, and its projections are slower on some CPUs.

    Args:
        dropout: after the attention, and after the feed-forward network.
        hidden_dropout: within the feed-forward network; unset, as ``dropout``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        activation: Literal["relu", "gelu"],
        hidden_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        hidden = dropout if hidden_dropout is None else hidden_dropout
        self.feedforward = nn.Sequential(
            Linear(width, feedforward), _ACTIVATIONS[activation](), nn.Dropout(hidden), Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (M, h, L, D/h) each
        attended = attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.dropout(self.project(attended)))
        return self.norm2(x + self.dropout(self.feedforward(x)))
