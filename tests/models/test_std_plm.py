"""STD-PLM: its attention and losses against their equations, and its invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import dirichlet
from torch import Tensor

from stmodels.language.std_plm import STDPLM, CrossAttention
from stmodels.language.std_plm_config import STDPLMConfig
from stmodels.layers.graph import normalised_laplacian, widest_eigenvectors
from stmodels.types import ring
from tests.models.nodes import at_nodes, nodes_info, small, value, windows

_INFO = nodes_info()
_ORDER = torch.tensor([3, 0, 4, 1, 2])


def _model(**fields: Any) -> STDPLM:
    return small("std_plm", _INFO, **fields)  # type: ignore[return-value]


def test_cross_attention_is_its_equation() -> None:
    torch.manual_seed(0)
    config = STDPLMConfig(region_width=4, region_heads=2)
    attention = CrossAttention(3, 5, 6, 7, config).double()
    x, keys, values = (torch.randn(2, rows, width, dtype=torch.float64) for rows, width in ((3, 3), (4, 5), (4, 6)))
    found, weights = attention(x, keys, values)
    q, k, v = (m(t).detach().numpy() for m, t in ((attention.query, x), (attention.key, keys), (attention.value, values)))
    mixed, mean = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
    for b in range(2):
        for part in (slice(0, 2), slice(2, 4)):
            scores = np.exp(q[b][:, part] @ k[b][:, part].T / np.sqrt(2))
            scores /= scores.sum(1, keepdims=True)
            mixed[b][:, part], mean[b] = scores @ v[b][:, part], mean[b] + scores / 2
    torch.testing.assert_close(found, attention.norm(attention.output(torch.from_numpy(mixed))))
    np.testing.assert_allclose(weights.detach().numpy(), mean, atol=1e-12)


def test_the_losses_on_regions_are_their_equations() -> None:
    """−mean_m Σ_j ((S A)_mj − S_mj) S_mj, and −log Dirichlet(1.05 + 5 softmax(degree)) of softmax_j(Σ_m S_mj)."""
    model, batch = _model(), windows(_INFO)
    forecast = model(batch)
    assert forecast.aux is not None
    s, a = forecast.aux["regions"].detach().double().numpy(), ring(5).double().numpy()
    terms = model.loss_terms(forecast, batch)
    expected = -np.mean([((s[b] @ a - s[b]) * s[b]).sum(1).mean() for b in range(3)])
    assert terms["regions"].item() == pytest.approx(expected, rel=1e-5)
    degree = np.exp(a.sum(1)) / np.exp(a.sum(1)).sum()
    shares = np.exp(s.sum(1)) / np.exp(s.sum(1)).sum(1, keepdims=True)
    logs = [dirichlet.logpdf(row / row.sum(), 1.05 + 5 * degree) for row in shares]
    assert terms["coverage"].item() == pytest.approx(-np.mean(logs), rel=1e-4)


def test_without_their_weights_there_are_no_losses_on_regions() -> None:
    model, batch = _model(region_weight=0.0, coverage_weight=0.0), windows(_INFO)
    assert set(model.loss_terms(model(batch), batch)) == {"forecast"}
    torch.testing.assert_close(value(model, batch), value(_model(), batch))


@pytest.mark.parametrize("nodes", [1, 2, 5, 70])
def test_the_trunk_reads_as_many_tokens_for_any_number_of_nodes(nodes: int) -> None:
    info = nodes_info(nodes, network=ring(nodes))
    model = small("std_plm", info)
    seen: list[Tensor] = []
    model.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert value(model, windows(info)).isfinite().all()
    assert seen[0].shape[1] == 2 + 4
    assert STDPLMConfig(weights="random").tokens(info) == 130


def test_the_same_weights_forecast_other_nodes() -> None:
    other = small("std_plm", nodes_info(9, network=ring(9)))
    other.load_state_dict(_model().state_dict())
    assert value(other, windows(nodes_info(9))).shape == (3, 12, 9, 1)


def test_nodes_in_another_order_have_the_same_losses_but_for_their_positions() -> None:
    """The published code sorts the tokens, and not the network beside them."""
    model, batch = _model(), windows(_INFO)
    network = ring(5)[_ORDER][:, _ORDER]
    other = small("std_plm", nodes_info(network=network))
    other.load_state_dict(model.state_dict())
    other.places.copy_(model.places[_ORDER])
    found, expected = (m.loss_terms(m(b), b) for m, b in ((other, at_nodes(batch, _ORDER)), (model, batch)))
    # The sinusoid over the order of nodes is added to what is gathered, so that the order is no matter of indifference; it is small.
    assert found["regions"].item() == pytest.approx(expected["regions"].item(), rel=0.2)


def test_the_trend_sees_changes_alone() -> None:
    model, batch = _model(), windows(_INFO)
    seen: list[Tensor] = []
    model.trend.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    value(model, batch)
    value(model, batch._replace(history=batch.history + 3))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)


def test_widest_eigenvectors_are_those_of_the_laplacian() -> None:
    found, laplacian = widest_eigenvectors(ring(6), 3).double(), normalised_laplacian(ring(6))
    values = torch.linalg.eigvalsh(laplacian).flip(0)
    torch.testing.assert_close(laplacian @ found, found * values[:3], atol=1e-6, rtol=1e-6)
    assert not widest_eigenvectors(ring(2), 5)[:, 2:].any()


def test_norms_positions_and_lora_of_the_trunk_are_trained() -> None:
    """peft freezes what is not its own, so that what is tuned has to be so afterwards."""
    trained = {name.removeprefix("gpt2.") for name, p in _model().trunk.named_parameters() if p.requires_grad}
    norms = {f"h.{block}.{norm}.{kind}" for block in (0, 1) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    assert {name for name in trained if "lora" not in name} == {*norms, "ln_f.weight", "ln_f.bias", "wpe.weight"}
    assert sum("lora" in name for name in trained) == 4
