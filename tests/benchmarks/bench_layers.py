"""Layers against torch's own, and against the time of their FLOPs: `make bench`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.layers.attention import attention
from stmodels.layers.linear import Linear, _has_onednn, _OneDNNLinear, _outer_sum, _product
from stmodels.layers.short_attention import _MOST_TOKENS, _PairwiseAttention
from stmodels.layers.temporal import TemporalLayer

SEQUENCES, WIDTH, HEADS = 2048, 128, 4


Calls = dict[str, Callable[[], object]]


def _trainer(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(grad)

    return run


def _linear_layers(rows: int, width: int) -> dict[str, Calls]:
    """Forward, and forward with backward, of a square layer: torch's, ours, and oneDNN's kernels whatever the rule says."""
    x, grad = torch.randn(rows, width, requires_grad=True), torch.randn(rows, width)
    reference, layer = nn.Linear(width, width), Linear(width, width)
    forward: Calls = {"torch": lambda: reference(x), "ours": lambda: layer(x)}
    both: Calls = {"torch": _trainer(reference, x, grad), "ours": _trainer(layer, x, grad)}
    if _has_onednn():
        forced = nn.Linear(width, width)
        forced.forward = lambda x: _OneDNNLinear.apply(x, forced.weight, forced.bias)  # type: ignore[method-assign]
        forward["onednn"] = lambda: forced(x)
        both["onednn"] = _trainer(forced, x, grad)
    return {"forward": forward, "with backward": both}


def _products(n: int, k: int, m: int) -> dict[str, Calls]:
    """The three products of a linear layer, as torch computes them and as ours does."""
    x, weight, grad = torch.randn(n, k), torch.randn(m, k), torch.randn(n, m)
    return {
        "y = x Wᵀ": {"torch": lambda: x @ weight.t(), "ours": lambda: _product(x, weight)},
        "dx = dy W": {"torch": lambda: grad @ weight, "ours": lambda: _product(grad, weight.t())},
        "dW = dyᵀ x": {"torch": lambda: grad.t() @ x, "ours": lambda: _outer_sum(grad, x)},
    }


def _bf16_attention(tokens: int) -> Calls:
    q, k, v = (torch.randn(48, 6, tokens, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    grad = torch.randn(48, 6, tokens, 64, dtype=torch.bfloat16)

    def ours() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = attention(q, k, v)
        y.backward(grad)

    return {"fused": lambda: F.scaled_dot_product_attention(q, k, v).backward(grad), "ours": ours}


def test_temporal_layer(in_turns, large_products, seconds_of_flops, count_flops, table) -> None:
    """Forward and backward in fp32, one thread."""
    rows = []
    for tokens in (3, 6):
        x, grad = torch.randn(SEQUENCES, tokens, WIDTH, requires_grad=True), torch.randn(SEQUENCES, tokens, WIDTH)
        reference = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        theirs, ours = _trainer(reference, x, grad), _trainer(TemporalLayer(WIDTH, HEADS), x, grad)
        times = in_turns({"torch": theirs, "ours": ours} | large_products, 15)
        ideal = seconds_of_flops(count_flops(ours), times)
        for name in ("torch", "ours"):
            rows.append(
                [tokens, name, times["torch"] / times[name], *(times[name] / seconds for seconds in ideal.values())]
            )
    head = ["tokens", "layer", "times as fast as torch's", *(f"time / FLOPs at {name}" for name in ideal)]
    table(f"Temporal layer, {SEQUENCES} sequences, width {WIDTH}, forward and backward", head, rows)


def test_linear_layers(in_turns, processor, table) -> None:
    """Time of our layer over that of ``nn.Linear``: about 1 or less everywhere, whatever the processor.

    The columns of oneDNN tell where it would be the faster one, which is what the rule in stmodels.layers.linear rests on.
    """
    rows = []
    for width in (32, 64, 128, 256, 384, 768):
        for count in (64, 256, 1024, 4096, 16384):
            repeats = max(7, min(50, int(1e10 / (6 * count * width**2))))
            ratios = []
            for calls in _linear_layers(count, width).values():
                times = in_turns(calls, repeats)
                ratios += [times[name] / times["torch"] if name in times else "none" for name in ("ours", "onednn")]
            rows.append([width, count, *ratios])
    head = [f"{who}, {part}" for part in ("forward", "with backward") for who in ("ours", "oneDNN")]
    table(f"Square linear layer in fp32, time over nn.Linear's, on {processor}", ["width", "rows", *head], rows)


def _loop_over_tokens(x: Tensor) -> Tensor:
    return _PairwiseAttention.apply(x, HEADS)


def _products_by_sequence(x: Tensor) -> Tensor:
    q, k, v = x.view(*x.shape[:2], 3, HEADS, -1).permute(2, 1, 3, 0, 4)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_short_attention(in_turns, processor, table) -> None:
    """Forward and backward: the loop over tokens against a product for every sequence and head."""
    rows = []
    for width in (32, 128):
        for tokens in (3, 6, _MOST_TOKENS, _MOST_TOKENS + 1, 12):
            x = torch.randn(tokens, SEQUENCES // 2, 3 * width, requires_grad=True)
            times = in_turns(
                {
                    "loop": lambda x=x: _loop_over_tokens(x).sum().backward(),
                    "products": lambda x=x: _products_by_sequence(x).sum().backward(),
                },
                9,
            )
            rows.append([width, tokens, times["products"] / times["loop"]])
    title = f"Attention of {SEQUENCES // 2} short sequences on {processor}: products over loop"
    table(title, ["width", "tokens", "times as fast as the products"], rows)


def test_linear_products(in_turns, table) -> None:
    """The three products of a linear layer."""
    if not _has_onednn():
        pytest.skip("this build of torch has no oneDNN product")
    rows = []
    for sizes in ((6144, 128, 384), (6144, 128, 512), (6144, 512, 128), (3072, 384, 1536), (3072, 1536, 384)):
        times = {name: in_turns(calls, 15) for name, calls in _products(*sizes).items()}
        rows.append([*sizes, *(t["torch"] / t["ours"] for t in times.values())])
    table("Products in fp32: times as fast as torch's", ["rows", "inner", "outer", *times], rows)


def test_attention_in_bf16(in_turns, table) -> None:
    """Attention of a frame's tokens under bf16 autocast on the CPU, forward and backward: plain against fused."""
    rows = []
    for tokens in (32, 80, 196):
        times = in_turns(_bf16_attention(tokens), 5)
        rows.append([tokens, times["fused"] / times["ours"]])
    table("Attention under bf16 autocast: times as fast as the fused kernel", ["tokens", "gain"], rows)
