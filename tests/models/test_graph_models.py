"""STGCN, ASTGCN, Graph WaveNet, AGCRN, STAEformer: their equations and invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlab.errors import ModelError
from stmodels.base import Forecaster
from stmodels.graph.astgcn import AttendedChebyshev, BilinearAttention
from stmodels.graph.stgcn import ChebyshevConv
from stmodels.types import ring
from tests.models.nodes import at_nodes, built, nodes_info, nodes_that_change, small, value, windows

_ORDER = torch.tensor([3, 0, 4, 1, 2])
_NONE, _ALONE = torch.zeros(5, 5), torch.eye(5)


def _chain() -> Tensor:
    return torch.diag(torch.ones(4), 1) + torch.diag(torch.ones(4), -1)


def _permuted(model: Forecaster, other: Forecaster, axes: dict[str, tuple[int, ...]]) -> Forecaster:
    """``other`` with the weights of ``model``, those that end in a name permuted along its axes as the nodes are."""
    state = dict(model.state_dict())
    for name in state:
        for ending, dims in axes.items():
            if name.endswith(ending):
                for dim in dims:
                    state[name] = state[name].index_select(dim, _ORDER)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("stgcn", {"norm.weight": (0,), "norm.bias": (0,)}),
        ("astgcn", {"over_time.over_others": (0,), "over_time.between": (1,), "over_nodes.outer": (0, 1), "over_nodes.bias": (0, 1)}),
        ("graph_wavenet", {"learnt.sources": (0,), "learnt.targets": (1,)}),
        ("agcrn", {"nodes": (0,)}),
        ("staeformer", {"adaptive.vectors": (1,)}),
    ],
)
def test_nodes_in_another_order_are_forecast_in_that_order(name: str, axes: dict[str, tuple[int, ...]]) -> None:
    info = nodes_info(network=_chain())
    model, batch = small(name, info), windows(info)
    other = small(name, nodes_info(network=_chain()[_ORDER][:, _ORDER]))
    found = value(_permuted(model, other, axes), at_nodes(batch, _ORDER))
    torch.testing.assert_close(found, value(model, batch)[:, :, _ORDER], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(value(small(name, info), at_nodes(batch, _ORDER)), found, atol=1e-4), "order has no effect at all"


@pytest.mark.parametrize(
    ("name", "network", "fields"),
    [
        ("stgcn", _NONE, {"layer_norm": False}),
        ("graph_wavenet", _ALONE, {"networks": "given"}),
        ("agcrn", None, {"supports": 1}),
        ("staeformer", None, {"spatial": False}),
    ],
)
def test_without_a_network_nodes_are_forecast_apart(name: str, network: Tensor | None, fields: dict[str, Any]) -> None:
    info = nodes_info(network=network)
    assert nodes_that_change(small(name, info, **fields), windows(info), 2) == {2}
    whole = nodes_info(network=_chain())
    assert {1, 2, 3} <= nodes_that_change(small(name, whole), windows(whole), 2)


@pytest.mark.parametrize("name", ["stgcn", "astgcn", "graph_wavenet", "agcrn", "staeformer"])
@pytest.mark.parametrize("nodes", [1, 2, 30])
def test_any_number_of_nodes(name: str, nodes: int) -> None:
    info = nodes_info(nodes, network=ring(nodes))
    found = value(small(name, info), windows(info))
    assert found.shape == (3, 12, nodes, 1)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["stgcn", "graph_wavenet", "agcrn", "staeformer", "astgcn"])
def test_every_step_of_the_history_is_read(name: str) -> None:
    """In float64: the newest step of Graph WaveNet weighs a million times the oldest at the start."""
    info = nodes_info()
    model, batch = small(name, info).double(), windows(info)
    history = batch.history.double().requires_grad_()
    model(batch._replace(history=history)).value.sum().backward()
    assert history.grad is not None
    assert (history.grad.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["stgcn", "astgcn", "graph_wavenet", "agcrn", "staeformer"])
def test_eight_windows_are_learnt_by_heart(name: str) -> None:
    info = nodes_info(history=12, horizon=3)
    model = small(name, info).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    batch = windows(info, 8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    errors = []
    for _ in range(300):
        optimiser.zero_grad()
        loss = model.loss_terms(model(batch), batch)["forecast"]
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
        if loss.item() < 0.2 * errors[0]:
            return
    pytest.fail(f"{min(errors):.3f} of {errors[0]:.3f}")


def test_stgcn_convolves_as_its_equation() -> None:
    """ReLU(Σ T_k x W_k + b + x) in float64."""
    torch.manual_seed(0)
    polynomials = torch.stack([torch.eye(4), torch.randn(4, 4), torch.randn(4, 4)])
    conv = ChebyshevConv(3, 3, polynomials).double()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    weights = conv.weigh.weight.unflatten(1, (3, 3))  # (c', K, c)
    expected = sum(torch.einsum("ij,btjc,oc->btio", polynomials[k].double(), x, weights[:, k]) for k in range(3))
    torch.testing.assert_close(conv(x), (expected + conv.weigh.bias + x).relu())


def test_stgcn_of_a_laplacian_of_zeros_leaves_two_of_three_terms() -> None:
    """T_0 = I, T_1 = 0, T_2 = −I: x (W_0 − W_2) + b."""
    torch.manual_seed(0)
    from stmodels.layers.graph import chebyshev

    conv = ChebyshevConv(3, 3, chebyshev(torch.zeros(4, 4, dtype=torch.float64), 3)).double()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    first, _, third = conv.weigh.weight.unflatten(1, (3, 3)).unbind(1)
    torch.testing.assert_close(conv(x), (x @ (first - third).T + conv.weigh.bias + x).relu())


def test_layer_norm_couples_the_nodes_of_stgcn() -> None:
    info = nodes_info(network=_NONE)
    assert nodes_that_change(small("stgcn", info), windows(info), 2) == set(range(5))


def test_astgcn_attends_as_its_equation() -> None:
    """softmax over axis 1 of V σ((x u₁) U₂ (u₃ x)ᵀ + b), in float64; its columns sum to 1."""
    torch.manual_seed(0)
    attention = BilinearAttention(4, 6, 3).double()
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)  # (B, entries, others, channels)
    a = {name: p.detach().numpy() for name, p in attention.named_parameters()}
    for b in range(2):
        left = np.einsum("mof,o->mf", x[b].numpy(), a["over_others"]) @ a["between"]
        right = x[b].numpy() @ a["over_channels"]
        scores = a["outer"] @ (1 / (1 + np.exp(-(left @ right.T + a["bias"]))))
        expected = np.exp(scores) / np.exp(scores).sum(0)
        np.testing.assert_allclose(attention(x)[b].detach().numpy(), expected, atol=1e-12)
    torch.testing.assert_close(attention(x).sum(1), torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (5, 2)])
def test_astgcn_filters_with_modulated_polynomials(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    polynomials = torch.stack([torch.eye(4), torch.randn(4, 4), torch.randn(4, 4)])
    conv = AttendedChebyshev(inputs, outputs, polynomials).double()
    x, s = torch.randn(2, 3, 4, inputs, dtype=torch.float64), torch.rand(2, 4, 4, dtype=torch.float64)
    terms = [torch.einsum("bji,btjf,fo->btio", polynomials[k].double() * s, x, conv.weights[k]) for k in range(3)]
    torch.testing.assert_close(conv(x, s), sum(terms).relu())
    plain = [torch.einsum("ji,btjf,fo->btio", polynomials[k].double(), x, conv.weights[k]) for k in range(3)]
    torch.testing.assert_close(conv(x, torch.ones_like(s)), sum(plain).relu())


def test_a_signal_equal_everywhere_stays_so_on_walks() -> None:
    info = nodes_info()
    model, batch = small("graph_wavenet", info, networks="given"), windows(info)
    found = value(model, batch._replace(history=batch.history[:, :, :1].expand_as(batch.history)))
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found), atol=1e-5, rtol=1e-4)


def test_the_learnt_network_of_graph_wavenet_has_rows_that_sum_to_1() -> None:
    mean, original = (small("graph_wavenet", nodes_info(), adaptive_side=side).learnt for side in ("mean", "original"))
    torch.testing.assert_close(mean().sum(1), torch.ones(5))
    torch.testing.assert_close(original(), mean().T)


@torch.no_grad()
def _agcrn_by_its_equations(model: Forecaster, history: np.ndarray) -> np.ndarray:
    """One layer, one window (P, N), step by step and node by node."""
    e = model.nodes.double().numpy()
    network = np.exp(np.maximum(e @ e.T, 0))
    network /= network.sum(1, keepdims=True)
    cell = model.cells[0].double()

    def convolve(x: np.ndarray, weights: nn.Module) -> np.ndarray:
        both = np.stack([x, network @ x], axis=1)  # (N, K, c)
        pool, bias = weights.pool.numpy(), weights.bias.numpy()
        return np.stack([
            np.einsum("ki,kio->o", both[n], np.einsum("d,dkio->kio", e[n], pool)) + e[n] @ bias for n in range(len(x))
        ])  # fmt: skip

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    h = np.zeros((len(e), cell.hidden))
    for step in history:
        z, r = np.split(sigmoid(convolve(np.hstack([step[:, None], h]), cell.gates)), 2, axis=1)
        proposed = np.tanh(convolve(np.hstack([step[:, None], z * h]), cell.candidate))
        h = r * h + (1 - r) * proposed
    readout = model.readout.double()
    return h @ readout.weight.numpy().T + readout.bias.numpy()  # (N, Q)


def test_agcrn_recurs_as_its_equations() -> None:
    info = nodes_info()
    model, batch = small("agcrn", info), windows(info)
    found = value(model, batch)
    for b in range(len(found)):
        expected = _agcrn_by_its_equations(model, batch.history[b, ..., 0].double().numpy())
        np.testing.assert_allclose(found[b, ..., 0].T.numpy(), expected, atol=1e-5)


def test_agcrn_without_embeddings_knows_only_the_bias_of_its_head() -> None:
    info = nodes_info()
    model = small("agcrn", info)
    nn.init.zeros_(model.nodes)
    torch.testing.assert_close(model.polynomials()[0], torch.full((5, 5), 0.2))
    found = value(model, windows(info))
    torch.testing.assert_close(found, model.readout.bias.detach()[None, :, None, None].expand_as(found))


def test_staeformer_without_embeddings_knows_no_order_of_steps() -> None:
    info = nodes_info()
    model, batch = small("staeformer", info, adaptive_width=0, calendar=False, heads=1), windows(info)
    turned = batch._replace(history=batch.history.flip(1))
    before = value(model, batch)
    assert not torch.allclose(value(model, turned), before, atol=1e-4)
    with torch.no_grad():
        weight = model.readout.weight
        weight.copy_(weight.unflatten(1, (12, -1)).flip(1).flatten(1))
    torch.testing.assert_close(value(model, turned), before, atol=1e-5, rtol=1e-4)


def test_staeformer_tells_monday_from_sunday() -> None:
    """A day of the week that is read as a fraction would name one row of the table for all of them."""
    info = nodes_info()
    model, batch = small("staeformer", info), windows(info)
    monday, sunday = (batch._replace(history_slot=batch.history_slot % 24 + 24 * day) for day in (0, 6))
    assert not torch.allclose(value(model, monday), value(model, sunday), atol=1e-5)


@pytest.mark.parametrize("name", ["staeformer", "graph_wavenet", "pdformer", "sstban", "st_llm", "stg_llm"])
def test_a_calendar_is_needed_or_left_out_by_name(name: str) -> None:
    with pytest.raises(ModelError, match="timestamps"):
        small(name, nodes_info(slots=None))


@pytest.mark.parametrize(
    ("name", "fields"),
    [("staeformer", {"calendar": False}), ("graph_wavenet", {"time_of_day": False}), ("pdformer", {"calendar": False}),
     ("st_llm", {"calendar": False}), ("stg_llm", {"calendar": False})],
)  # fmt: skip
def test_without_a_calendar_a_model_runs_without_timestamps(name: str, fields: dict[str, Any]) -> None:
    info = nodes_info(slots=None)
    assert value(small(name, info, **fields), windows(info)).isfinite().all()


def test_a_checkpoint_of_other_nodes_does_not_fit() -> None:
    few, many = small("staeformer", nodes_info(5)), small("staeformer", nodes_info(6, network=ring(6)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        many.load_state_dict(few.state_dict())


def test_further_channels_widen_the_input() -> None:
    info = nodes_info()._replace(inputs=2)
    assert built("stgcn", info).blocks[0].before.conv.in_features == 3 * 3
