"""Each layer against its equation, written out in float64 without torch's layers, or against another library's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import nn

from stmodels.layers.adapter import Adapter, insert_lora
from stmodels.layers.calendar import Calendar
from stmodels.layers.cross_prompt import CrossPromptBlock, CrossPromptLayer, pool_prompts, prompt_grid
from stmodels.layers.flow import history_flow, target_flow
from stmodels.layers.linear import Linear
from stmodels.layers.patches import patchify, unpatchify
from stmodels.layers.temporal import TemporalEncoder, TemporalLayer

Array = NDArray[np.float64]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _randomise(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """No weight of a tested layer is 0 or 1, so that none can be left out unnoticed."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))
    return module


def _float64(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def _gelu(x: Array) -> Array:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def _affine(x: Array, layer: nn.Linear) -> Array:
    return x @ _float64(layer.weight).T + _float64(layer.bias)


def _norm(x: Array, layer: nn.LayerNorm) -> Array:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return scaled * _float64(layer.weight) + _float64(layer.bias)


def test_flow_is_the_backward_difference() -> None:
    history, target = _random(2, 6, 2, 4, 4), _random(2, 5, 2, 4, 4, seed=1)
    both = np.concatenate([history.numpy(), target.numpy()], axis=1)
    flow = history_flow(history).numpy()
    assert flow.shape == history.shape
    assert not flow[:, 0].any()
    for t in range(1, 6):
        np.testing.assert_array_equal(flow[:, t], both[:, t] - both[:, t - 1])
    ahead = target_flow(history, target).numpy()
    assert ahead.shape == target.shape
    for q in range(5):
        np.testing.assert_array_equal(ahead[:, q], both[:, 6 + q] - both[:, 6 + q - 1])


def test_forecast_flow_adds_up_to_the_target() -> None:
    history, target = _random(2, 6, 1, 4, 4), _random(2, 3, 1, 4, 4, seed=1)
    rebuilt = history[:, -1:] + target_flow(history, target).cumsum(1)
    torch.testing.assert_close(rebuilt, target)


@pytest.mark.parametrize(
    ("s", "p", "shape"), [(2, 2, (2, 6, 2, 8, 4)), (3, 1, (1, 4, 1, 6, 9)), (4, 3, (2, 6, 3, 4, 8))]
)
def test_patchify_against_a_loop(s: int, p: int, shape: tuple[int, ...]) -> None:
    grid = _random(*shape)
    b, t, c, h, w = shape
    tokens = patchify(grid, s, p)
    assert tokens.shape == (b, t // p, (h // s) * (w // s), p * c * s * s)
    for frame, row, column in itertools.product(range(t // p), range(h // s), range(w // s)):
        block = grid[:, frame * p : (frame + 1) * p, :, row * s : (row + 1) * s, column * s : (column + 1) * s]
        token = tokens[:, frame, row * (w // s) + column]
        torch.testing.assert_close(token, block.reshape(b, -1), rtol=0, atol=0)


@pytest.mark.parametrize(("s", "p"), [(1, 1), (2, 2), (2, 3), (4, 1)])
def test_unpatchify_is_the_inverse(s: int, p: int) -> None:
    grid = _random(2, 6, 3, 8, 4)
    assert torch.equal(unpatchify(patchify(grid, s, p), s, p, (3, 8, 4)), grid)


def test_prompts_are_means_of_blocks() -> None:
    tokens = _random(3, 8 * 12, 5)
    prompts = pool_prompts(tokens, (8, 12), 16)
    assert prompts.shape == (3, 16, 5)
    frame = tokens.numpy().astype(np.float64).reshape(3, 8, 12, 5)
    for row, column in itertools.product(range(4), range(4)):
        block = frame[:, row * 2 : row * 2 + 2, column * 3 : column * 3 + 3]
        np.testing.assert_allclose(prompts[:, row * 4 + column], block.mean((1, 2)), atol=1e-6)


def test_prompts_of_a_grid_that_four_does_not_divide() -> None:
    """Adaptive pooling: block i of n over L covers floor(i·L/n) to ceil((i+1)·L/n)."""
    tokens = _random(2, 5 * 7, 3)
    prompts = pool_prompts(tokens, (5, 7), 16).reshape(2, 4, 4, 3)
    frame = tokens.numpy().reshape(2, 5, 7, 3)
    for i, j in itertools.product(range(4), range(4)):
        rows = slice(i * 5 // 4, -(-(i + 1) * 5 // 4))
        columns = slice(j * 7 // 4, -(-(j + 1) * 7 // 4))
        np.testing.assert_allclose(prompts[:, i, j], frame[:, rows, columns].mean((1, 2)), atol=1e-6)


def test_prompts_all_keeps_every_token_and_a_small_grid_is_not_refined() -> None:
    tokens = _random(2, 6, 3)
    assert torch.equal(pool_prompts(tokens, (2, 3), None), tokens)
    torch.testing.assert_close(pool_prompts(tokens, (2, 3), 16), tokens)
    assert prompt_grid(16, (8, 10)) == (4, 4)
    assert prompt_grid(8, (8, 10)) == (2, 4)


def _cross_attention(block: CrossPromptBlock, x: Array, prompts: Array) -> Array:
    """Eq. 10 as printed, with 1/√d and heads: one softmax over own keys and the other branch's prompts."""
    own, other = _norm(x, block.norm1), _norm(prompts, block.norm1)
    width = x.shape[-1]
    size = width // block.heads
    query = _affine(own, block.query)
    key, value = np.split(_affine(own, block.key_value), 2, axis=-1)
    prompt_key, prompt_value = np.split(_affine(other, block.key_value), 2, axis=-1)
    attended = np.zeros_like(x)
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        on_own = np.exp(query[..., part] @ key[..., part].swapaxes(1, 2) / math.sqrt(size))
        on_prompts = np.exp(query[..., part] @ prompt_key[..., part].swapaxes(1, 2) / math.sqrt(size))
        total = on_own.sum(-1, keepdims=True) + on_prompts.sum(-1, keepdims=True)
        attended[..., part] = (on_own @ value[..., part] + on_prompts @ prompt_value[..., part]) / total
    x = x + _affine(attended, block.proj)
    return x + _affine(_gelu(_affine(_norm(x, block.norm2), block.fc1)), block.fc2)


@pytest.mark.parametrize("prompts", [4, None])
def test_cross_prompt_layer_is_equation_10(prompts: int | None) -> None:
    layer = _randomise(CrossPromptLayer(width=16, heads=4, grid=(4, 6), prompts=prompts))
    st, flow = _random(3, 24, 16), _random(3, 24, 16, seed=1)
    new_st, new_flow = layer(st, flow)

    def pooled(x: torch.Tensor) -> Array:
        frame = _float64(x)
        if prompts is None:
            return frame
        return frame.reshape(3, 2, 2, 2, 3, 16).mean((2, 4)).reshape(3, 4, 16)

    # Both branches see the other as it was before the layer.
    np.testing.assert_allclose(_float64(new_st), _cross_attention(layer.st, _float64(st), pooled(flow)), atol=2e-5)
    np.testing.assert_allclose(_float64(new_flow), _cross_attention(layer.flow, _float64(flow), pooled(st)), atol=2e-5)


@pytest.mark.parametrize("sequences", [5, 200])  # below and above the size at which the layers change kernels
def test_temporal_layer_is_a_pre_norm_transformer_layer(sequences: int) -> None:
    ours = _randomise(TemporalLayer(width=16, heads=4))
    reference = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.qkv.weight,
            "self_attn.in_proj_bias": ours.qkv.bias,
            "self_attn.out_proj.weight": ours.proj.weight,
            "self_attn.out_proj.bias": ours.proj.bias,
            **{f"linear{i}.{kind}": ours.get_parameter(f"fc{i}.{kind}") for i in (1, 2) for kind in ("weight", "bias")},
            **{f"norm{i}.{kind}": ours.get_parameter(f"norm{i}.{kind}") for i in (1, 2) for kind in ("weight", "bias")},
        }
    )
    reference.double()
    x = _random(sequences, 6, 16).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, expected = ours(x), reference(exact)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
    weight = _random(sequences, 6, 16, seed=1)
    (out * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-4, rtol=1e-3)
    gradient = reference.self_attn.in_proj_weight.grad
    torch.testing.assert_close(ours.qkv.weight.grad.double(), gradient, atol=2e-3, rtol=1e-3)


def test_temporal_encoder_adds_positions_and_ends_in_a_norm() -> None:
    encoder = _randomise(TemporalEncoder(length=4, width=8, heads=2, depth=2))
    x = _random(3, 4, 8)
    inner = x + encoder.position
    for layer in encoder.layers:
        inner = layer(inner)
    np.testing.assert_allclose(_float64(encoder(x)), _norm(_float64(inner), encoder.norm), atol=1e-5)
    assert len(encoder.layers) == 2
    assert encoder.position.shape == (4, 8)


def test_dropout_acts_in_training_alone() -> None:
    layer = _randomise(TemporalLayer(8, 2, dropout=0.5))
    x = _random(3, 4, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_adapter_is_houlsby() -> None:
    adapter = Adapter(width=12, rank=3)
    x = _random(2, 5, 12)
    assert torch.equal(adapter(x), x)
    _randomise(adapter)
    expected = _float64(x) + _affine(_gelu(_affine(_float64(x), adapter.down)), adapter.up)
    np.testing.assert_allclose(_float64(adapter(x)), expected, atol=1e-6)


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(2, None, 2.0), (4, None, 2.0), (4, 6.0, 1.5)])
def test_lora_adds_a_low_rank_product(rank: int, alpha: float | None, scale: float) -> None:
    """W x + b + (α/r)·B A x; α is twice the rank unless told."""
    blocks = nn.ModuleDict({"qkv": nn.Linear(6, 10), "proj": nn.Linear(10, 6)})
    weight, bias = _float64(blocks["qkv"].weight), _float64(blocks["qkv"].bias)
    x = _random(4, 6)
    before = blocks["qkv"](x)
    blocks.requires_grad_(False)
    insert_lora(blocks, targets=["qkv"], rank=rank, alpha=alpha)
    torch.testing.assert_close(blocks["qkv"](x), before, rtol=0, atol=0)
    trainable = {name: p for name, p in blocks.named_parameters() if p.requires_grad}
    assert sorted(p.shape for p in trainable.values()) == sorted([(rank, 6), (10, rank)])
    down, up = sorted(trainable.values(), key=lambda p: p.shape != (rank, 6))
    with torch.no_grad():
        up.copy_(_random(10, rank, seed=2))
    expected = _float64(x) @ (weight + scale * _float64(up) @ _float64(down)).T + bias
    np.testing.assert_allclose(_float64(blocks["qkv"](x)), expected, atol=1e-5)
    assert type(blocks["proj"]) is nn.Linear


def test_calendar_is_slot_of_day_plus_day_of_week() -> None:
    calendar = Calendar(slots_per_day=24, width=5)
    slots = torch.tensor([[0, 23, 24], [167, 50, 3]])
    out = calendar(slots)
    for index in itertools.product(range(2), range(3)):
        day, slot = divmod(int(slots[index]), 24)
        torch.testing.assert_close(out[index], calendar.slot[slot] + calendar.day[day])


@pytest.mark.parametrize("rows", [3, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_linear_whatever_kernel_computes_it(rows: int, bias: bool) -> None:
    ours = Linear(24, 40, bias=bias)
    exact = nn.Linear(24, 40, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    x = _random(rows, 4, 24).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    weight = _random(rows, 4, 40, seed=1)
    out, expected = ours(x), exact(x64)
    (out * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=1e-5, rtol=1e-4)
    for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=2e-3, rtol=1e-4)
