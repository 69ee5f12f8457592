"""The transformer layer against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stmodels.layers.encoder import EncoderLayer


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_layer_is_that_of_pytorch(activation: str) -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(12, 3, 20, 0.0, activation).double()  # type: ignore[arg-type]
    theirs = nn.TransformerEncoderLayer(12, 3, 20, 0.0, activation, batch_first=True).double()
    pairs = {
        "self_attn.in_proj_": ours.qkv, "self_attn.out_proj.": ours.project, "linear1.": ours.feedforward[0],
        "linear2.": ours.feedforward[3], "norm1.": ours.norm1, "norm2.": ours.norm2,
    }  # fmt: skip
    state = {f"{name}{kind}": getattr(module, kind) for name, module in pairs.items() for kind in ("weight", "bias")}
    theirs.load_state_dict(state)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_dropout_stands_where_it_is_asked_for() -> None:
    layer = EncoderLayer(8, 2, 16, 0.3, "relu", hidden_dropout=0.0)
    assert (layer.dropout.p, layer.feedforward[2].p) == (0.3, 0.0)
    assert EncoderLayer(8, 2, 16, 0.3, "relu").feedforward[2].p == 0.3
