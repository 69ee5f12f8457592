"""PyTorch's transformer encoder layer, with weights that can be drawn again."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn


class EncoderLayer(nn.TransformerEncoderLayer):
    """Post-norm: x ← LN(x + Attention(x)), then LN(x + FFN(x)). (M, T, D) → same.

    Args:
        attention_dropout: dropout of the attention weights; unset, it is that of the rest, as in PyTorch.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, activation: str, attention_dropout: float | None = None
    ) -> None:
        super().__init__(width, heads, feedforward, dropout, getattr(F, activation), batch_first=True)
        if attention_dropout is not None:
            self.self_attn.dropout = attention_dropout

    def reset_parameters(self) -> None:
        # The projections of PyTorch's attention have no reset_parameters of their own.
        self.self_attn._reset_parameters()
