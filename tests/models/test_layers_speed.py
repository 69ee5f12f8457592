"""The fast paths of the layers against the plain formulation: torch's own layers and float64."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stmodels.layers import linear as linear_module
from stmodels.layers.attention import accelerate_attention, attention
from stmodels.layers.linear import Linear, accelerate, linear
from stmodels.layers.short_attention import short_attention
from stmodels.layers.temporal import TemporalEncoder, TemporalLayer

# Rounding of fp32 sums of some hundred terms.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


needs_onednn = pytest.mark.skipif(
    not linear_module._has_onednn(), reason="this build of PyTorch has no product by oneDNN"
)


@pytest.fixture(params=["torch", pytest.param("onednn", marks=needs_onednn)])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every product by one library's kernels, whatever the processor: where it has to be oneDNN's, they are counted."""
    wanted: str = request.param
    monkeypatch.setattr(linear_module, "_uses_onednn", lambda rows, inner, outer: wanted == "onednn")
    return wanted


@pytest.fixture
def products(kernels: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes (n, k, m) of the products that oneDNN computed."""
    found: list[tuple[int, ...]] = []
    product = linear_module._product

    def noted(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append((*rows.shape, columns.shape[0]))
        return product(rows, columns, bias)

    monkeypatch.setattr(linear_module, "_product", noted)
    return found


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let the rule see another processor or build."""

    def pretend(vendor: str, capability: str, onednn: bool = True) -> None:
        monkeypatch.setattr(linear_module, "cpu_vendor", lambda: vendor)
        monkeypatch.setattr(linear_module, "_has_onednn", lambda: onednn)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        linear_module.linear_kernels.cache_clear()

    yield pretend
    linear_module.linear_kernels.cache_clear()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _float64(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize(("rows", "inner", "outer"), [(300, 48, 96), (300, 96, 48), (64, 5, 1), (1, 8, 4), (99, 1, 33)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradients_equal_float64(
    kernels: str, products: list[tuple[int, ...]], rows: int, inner: int, outer: int, with_bias: bool
) -> None:
    x, weight = _random(rows, inner), _random(outer, inner, seed=1)
    bias, grad = _random(outer, seed=2), _random(rows, outer, seed=3)
    ours = [x.requires_grad_(), weight.requires_grad_()] + ([bias.requires_grad_()] if with_bias else [])
    theirs = _float64(*ours)
    y, expected = linear(*ours), F.linear(*theirs)
    torch.testing.assert_close(y.double(), expected, **CLOSE)
    expected_gradients = torch.autograd.grad(expected, theirs, grad.double())
    for got, want in zip(torch.autograd.grad(y, ours, grad), expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, **CLOSE)
    assert len(products) == (3 if kernels == "onednn" else 0)


@pytest.mark.usefixtures("kernels")
def test_linear_takes_leading_axes_strides_and_frozen_weights() -> None:
    x = _random(7, 20, 3, 16).transpose(0, 2).requires_grad_()
    weight = _random(12, 16, seed=1)
    y = linear(x, weight)
    assert y.shape == (3, 20, 7, 12)
    torch.testing.assert_close(y, F.linear(x, weight), **CLOSE)
    grad = _random(7, 20, 3, 12, seed=2).transpose(0, 2)
    (dx,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(dx, grad @ weight, **CLOSE)
    assert weight.grad is None


@pytest.mark.usefixtures("kernels")
def test_gradients_have_the_layout_of_their_weights() -> None:
    layer = Linear(16, 64)
    layer(_random(200, 16)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_contiguous()


@needs_onednn
@pytest.mark.parametrize(
    ("vendor", "capability", "onednn", "uses"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX512", False, False),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
        ("GenuineIntel", "AVX2", True, False),
        ("unknown", "DEFAULT", True, False),
    ],
)
def test_processor_and_build_choose_the_kernels_of_large_products(
    monkeypatch: pytest.MonkeyPatch,
    processor: Callable[..., None],
    vendor: str,
    capability: str,
    onednn: bool,
    uses: bool,
) -> None:
    calls: list[tuple[int, ...]] = []
    product = linear_module._product
    monkeypatch.setattr(linear_module, "_product", lambda *args: calls.append(args[0].shape) or product(*args))
    processor(vendor, capability, onednn)
    x, weight = _random(2, 1024, 128), _random(192, 128, seed=1)
    y, expected = linear(x, weight), F.linear(x, weight)
    assert bool(calls) is uses
    assert (linear_module.linear_kernels() == "onednn") is uses
    if uses:
        torch.testing.assert_close(y, expected, **CLOSE)
    else:
        assert torch.equal(y, expected)


@pytest.mark.parametrize(("rows", "inner", "outer"), [(1023, 128, 128), (4096, 127, 512), (4096, 512, 8), (64, 768, 768)])
def test_small_products_are_torchs_on_every_processor(
    monkeypatch: pytest.MonkeyPatch, processor: Callable[..., None], rows: int, inner: int, outer: int
) -> None:
    processor("AuthenticAMD", "AVX512")
    monkeypatch.setattr(linear_module, "_product", None)
    x, weight = _random(rows, inner), _random(outer, inner, seed=1)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, True), (torch.float64, False), (torch.bfloat16, False)]
)
def test_other_dtypes_are_torchs(
    monkeypatch: pytest.MonkeyPatch, processor: Callable[..., None], dtype: torch.dtype, autocast: bool
) -> None:
    processor("AuthenticAMD", "AVX512")
    monkeypatch.setattr(linear_module, "_product", None)
    x, weight = _random(2048, 128).to(dtype), _random(128, 128, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = linear(x, weight)
        assert y.dtype is (torch.bfloat16 if autocast else dtype)
        assert torch.equal(y, F.linear(x, weight))


_AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9554 64-Core Processor\n"
_ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("system", "cpuinfo", "vendor"),
    [("Linux", _AMD, "AuthenticAMD"), ("Linux", _ARM, "unknown"), ("Darwin", _AMD, "unknown"), ("Windows", _AMD, "unknown")],
)
def test_vendor_is_what_linux_says(monkeypatch: pytest.MonkeyPatch, system: str, cpuinfo: str, vendor: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("platform.system", lambda: system)
        patch.setattr("builtins.open", lambda path, **options: io.StringIO(cpuinfo))
        found = linear_module.cpu_vendor.__wrapped__()
    assert found == vendor


@pytest.mark.usefixtures("kernels")
def test_accelerate_keeps_names_and_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = _random(100, 8)
    expected = model(x)
    accelerate(model)
    assert isinstance(model[0], Linear)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(x), expected, **CLOSE)


def _plain_attention(qkv: Tensor, heads: int) -> Tensor:
    """One sequence and one head at a time."""
    _, m, width = qkv.shape
    d = width // 3
    e = d // heads
    columns = []
    for s in range(m):
        parts = []
        for i in range(0, d, e):
            q, k, v = (part[:, i : i + e] for part in qkv[:, s].split(d, dim=-1))
            parts.append(torch.softmax(q @ k.T / math.sqrt(e), dim=-1) @ v)
        columns.append(torch.cat(parts, dim=-1))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("tokens", [1, 2, 3, 6, 8, 9, 17])
def test_short_attention_and_its_gradient_equal_float64(tokens: int) -> None:
    qkv, grad = _random(tokens, 5, 3 * 8), _random(tokens, 5, 8, seed=1)
    (reference,) = _float64(qkv)
    y, expected = short_attention(qkv.requires_grad_(), heads=2), _plain_attention(reference, heads=2)
    torch.testing.assert_close(y.double(), expected, **CLOSE)
    (got,) = torch.autograd.grad(y, qkv, grad)
    (want,) = torch.autograd.grad(expected, reference, grad.double())
    torch.testing.assert_close(got.double(), want, **CLOSE)


def test_short_attention_takes_a_gradient_of_any_layout() -> None:
    qkv = _random(3, 5, 3 * 8).requires_grad_()
    grad = _random(5, 8, 3, seed=1).permute(2, 0, 1)
    (got,) = torch.autograd.grad(short_attention(qkv, 2), qkv, grad)
    (want,) = torch.autograd.grad(short_attention(qkv, 2), qkv, grad.contiguous())
    assert torch.equal(got, want)


def _with_weights_of(reference: nn.TransformerEncoderLayer, width: int, heads: int) -> TemporalLayer:
    names = {
        "norm1": "norm1", "norm2": "norm2", "self_attn.in_proj_": "qkv.", "self_attn.out_proj": "proj",
        "linear1": "fc1", "linear2": "fc2",
    }  # fmt: skip
    state = {}
    for name, value in reference.state_dict().items():
        prefix = next(p for p in names if name.startswith(p))
        state[names[prefix] + name[len(prefix) :]] = value
    layer = TemporalLayer(width, heads)
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("tokens", [3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temporal_layer_equals_torchs_encoder_layer(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    ours = _with_weights_of(reference, 32, 4).to(dtype)
    reference = reference.double()
    x, grad = _random(40, tokens, 32), _random(40, tokens, 32, seed=1)
    a, b = x.to(dtype, copy=True).requires_grad_(), x.to(torch.float64, copy=True).requires_grad_()
    ya, yb = ours(a), reference(b)
    torch.testing.assert_close(ya.double(), yb, **CLOSE)
    ya.backward(grad.to(dtype))
    yb.backward(grad.double())
    torch.testing.assert_close(a.grad.double(), b.grad, **CLOSE)
    want = dict(_with_gradients_of(reference, ours))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), want[name], rtol=1e-4, atol=1e-3, msg=name)


def _with_gradients_of(reference: nn.TransformerEncoderLayer, ours: TemporalLayer) -> list[tuple[str, Tensor]]:
    attention = reference.self_attn
    pairs = {
        "norm1": reference.norm1, "norm2": reference.norm2, "proj": attention.out_proj, "fc1": reference.linear1,
        "fc2": reference.linear2,
    }  # fmt: skip
    found = [("qkv.weight", attention.in_proj_weight.grad), ("qkv.bias", attention.in_proj_bias.grad)]
    for prefix, module in pairs.items():
        found += [(f"{prefix}.{name}", parameter.grad) for name, parameter in module.named_parameters()]
    assert {name for name, _ in found} == {name for name, _ in ours.named_parameters()}
    return found


def test_temporal_encoder_is_the_same_from_run_to_run() -> None:
    torch.manual_seed(0)
    encoder = TemporalEncoder(length=6, width=32, heads=4, depth=2)
    x = _random(300, 6, 32)
    runs = []
    for _ in range(2):
        encoder.zero_grad()
        y = encoder(x)
        y.square().mean().backward()
        runs.append([y.detach(), *(p.grad.clone() for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_temporal_encoder_under_bf16_autocast_stays_near_fp32() -> None:
    torch.manual_seed(0)
    encoder = TemporalEncoder(length=6, width=32, heads=4, depth=2)
    x = _random(100, 6, 32).requires_grad_()
    expected = encoder(x)
    (want,) = torch.autograd.grad(expected.sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder(x)
    (got,) = torch.autograd.grad(y.float().sum(), x)
    assert (y.float() - expected).abs().max() < 0.1  # bf16 keeps 8 bits
    assert (got - want).norm() < 0.05 * want.norm() + 1e-3


def _attention_float64(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v.double()


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_equals_float64_whichever_kernel(autocast: bool) -> None:
    q, k, v = _random(3, 2, 8, 16), _random(3, 2, 11, 16, seed=1), _random(3, 2, 11, 16, seed=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = attention(q, k, v)
    tolerance = 3e-2 if autocast else 1e-5
    torch.testing.assert_close(y.double(), _attention_float64(q, k, v), rtol=tolerance, atol=tolerance)


def test_timms_attention_keeps_its_result_with_either_kernel() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(timm.layers.Attention(32, num_heads=4))
    x = _random(5, 9, 32)
    expected = block(x)
    accelerate_attention(block)
    assert torch.equal(block(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert not block[0].fused_attn
        torch.testing.assert_close(block(x).float(), expected, rtol=3e-2, atol=3e-2)


def test_sequences_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    layer = TemporalLayer(32, 4)
    x = _random(80, 3, 32)
    changed = x.clone()
    changed[7] += 1
    difference = (layer(changed) - layer(x)).abs().amax((1, 2))
    assert difference[7] > 0
    difference[7] = 0
    assert difference.max() < 1e-5
