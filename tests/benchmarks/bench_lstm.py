"""The LSTM over thousands of short sequences against ``nn.LSTM``: `make bench`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stmodels.layers.lstm import LSTM

STEPS, HIDDEN = 12, 64


def _trainer(model: nn.LSTM, x: Tensor, repeated: bool, bf16: bool) -> Callable[[], None]:
    """Forward and backward; the gradient of what is used: all outputs of a decoder, the last state of an encoder."""
    grad = torch.randn(STEPS, x.shape[-2], HIDDEN) if repeated else torch.randn(1, x.shape[-2], HIDDEN)

    def run() -> None:
        model.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if repeated:
                output = model.repeat(x, STEPS)[0] if isinstance(model, LSTM) else model(x.expand(STEPS, *x.shape))[0]
            else:
                output = model(x)[1][0]
        output.backward(grad.to(output.dtype))

    return run


def test_lstm(in_turns, large_products, seconds_of_flops, count_flops, table) -> None:
    """32 windows of 207 nodes through an encoder of readings, and a decoder whose input is the same at every step."""
    rows = []
    for name, nodes, inputs, repeated in (
        ("encoder", 207, 1, False),
        ("decoder", 207, HIDDEN, True),
        ("encoder", 46, 1, False),
        ("decoder", 46, HIDDEN, True),
    ):
        shape = (32 * nodes, inputs) if repeated else (STEPS, 32 * nodes, inputs)
        x = torch.randn(shape, requires_grad=repeated)
        ours = _trainer(LSTM(inputs, HIDDEN), x, repeated, False)
        theirs = {f"nn.LSTM {kind}": _trainer(nn.LSTM(inputs, HIDDEN), x, repeated, kind == "bf16") for kind in ("fp32", "bf16")}
        times = in_turns({"ours": ours} | theirs | large_products, 9)
        ideal = seconds_of_flops(count_flops(ours), times)
        gains = (times[other] / times["ours"] for other in theirs)
        rows.append([name, nodes, *gains, *(times["ours"] / seconds for seconds in ideal.values())])
    head = ["part", "nodes", *(f"times as fast as {other}" for other in theirs), *(f"time / FLOPs at {name}" for name in ideal)]
    table(f"LSTM of {HIDDEN} units over {STEPS} steps, 32 windows, fp32, forward and backward", head, rows)
