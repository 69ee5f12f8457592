"""SSTBAN: its attention against its equation, its masked pass, and its invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stlab.errors import ModelError
from stmodels.graph.sstban import Attention
from stmodels.graph.sstban_config import SSTBANConfig
from tests.models.nodes import at_nodes, nodes_info, small, value, windows

_ORDER = torch.tensor([3, 0, 4, 1, 2])


def test_attention_is_its_equation() -> None:
    """softmax(q kᵀ / √e) v by heads, in float64, over the keys that are visible."""
    torch.manual_seed(0)
    config = SSTBANConfig(width=4, heads=2)
    attention = Attention(3, 5, 6, 7, config).double().eval()
    x, keys, values = (torch.randn(2, rows, width, dtype=torch.float64) for rows, width in ((3, 3), (4, 5), (4, 6)))
    visible = torch.tensor([[True, True, False, True], [True, False, False, True]])
    q, k, v = (m(t).detach().numpy() for m, t in ((attention.query, x), (attention.key, keys), (attention.value, values)))
    expected = np.zeros((2, 3, 4))
    for b in range(2):
        seen = visible[b].numpy()
        for h in range(2):
            part = slice(2 * h, 2 * h + 2)
            scores = np.exp(q[b][:, part] @ k[b][seen][:, part].T / np.sqrt(2))
            expected[b, :, part] = scores / scores.sum(1, keepdims=True) @ v[b][seen][:, part]
    found = attention(x, keys, values, visible)
    torch.testing.assert_close(found, attention.output(torch.from_numpy(expected)))
    assert not torch.allclose(found, attention(x, keys, values))


def test_hidden_tokens_are_seen_by_no_other() -> None:
    info = nodes_info()
    model, batch = small("sstban", info), windows(info)
    visible = torch.ones(3, 12, 5, dtype=torch.bool)
    visible[:, 3:6, 2] = False
    embedding = model.embedding(batch)[:, :12]
    moved = batch.history.clone()
    moved[:, 3:6, 2] += 5
    with torch.no_grad():
        before, after = (model.restored(h, embedding, visible) for h in (batch.history, moved))
        torch.testing.assert_close(after, before)
        assert not torch.allclose(model.encode(moved, embedding), model.encode(batch.history, embedding), atol=1e-4)


def test_with_nothing_hidden_both_latents_are_equal() -> None:
    info = nodes_info()
    model, batch = small("sstban", info, mask_rate=0.0), windows(info)
    embedding = model.embedding(batch)[:, :12]
    visible = model.draw_visible(batch.history)
    assert visible.all()
    torch.testing.assert_close(model.encode(batch.history, embedding, visible), model.encode(batch.history, embedding))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mask_rate_is_the_share_of_hidden_patches(rate: float) -> None:
    """The original keeps what lies below the rate, so that its 0.1 hides nine tenths."""
    info = nodes_info()
    model = small("sstban", info, mask_rate=rate)
    torch.manual_seed(0)
    visible = model.draw_visible(torch.zeros(200, 12, 5, 1))
    assert (~visible).float().mean().item() == pytest.approx(rate, abs=0.02)
    patches = visible.unflatten(1, (4, 3))
    assert (patches == patches[:, :, :1]).all()


@pytest.mark.parametrize("fields", [{"latent_weight": 0.0}, {"mask_rate": 0.5}, {"latent_weight": 0.5}])
def test_the_masked_pass_leaves_the_forecast_alone(fields: dict[str, Any]) -> None:
    info = nodes_info()
    torch.testing.assert_close(value(small("sstban", info, **fields), windows(info)), value(small("sstban", info), windows(info)))


def test_the_masked_pass_leaves_running_statistics_alone() -> None:
    info = nodes_info()
    model, batch = small("sstban", info).train(), windows(info)
    forecast = model(batch)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.loss_terms(forecast, batch)
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items() if "running" in name)


def test_the_unmasked_latent_is_a_constant_for_the_loss() -> None:
    info = nodes_info()
    batch = windows(info)
    gradients = {}
    for detach in (True, False):
        model = small("sstban", info, detach_target=detach).train()
        forecast = model(batch)
        assert forecast.aux is not None
        forecast.aux["latent"].retain_grad()
        torch.manual_seed(0)
        model.loss_terms(forecast, batch)["latent"].backward()
        gradients[detach] = forecast.aux["latent"].grad
    assert gradients[True] is None
    assert gradients[False] is not None


def test_nodes_in_another_order_are_forecast_in_that_order() -> None:
    info = nodes_info()
    model, other, batch = small("sstban", info), small("sstban", info), windows(info)
    state = {
        name: tensor[_ORDER] if name == "node" or name.endswith("over_time.references") else tensor
        for name, tensor in model.state_dict().items()
    }
    other.load_state_dict(state)
    torch.testing.assert_close(value(other, at_nodes(batch, _ORDER)), value(model, batch)[:, :, _ORDER], atol=1e-5, rtol=1e-4)


def test_the_calendar_ahead_matters() -> None:
    info = nodes_info()
    model, batch = small("sstban", info), windows(info)
    assert not torch.allclose(value(model, batch._replace(target_slot=(batch.target_slot + 5) % 168)), value(model, batch), atol=1e-5)


def test_a_mask_that_does_not_fit_the_history_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.mask_length=3 does not divide data\.history=10"):
        small("sstban", nodes_info(history=10))
    assert value(small("sstban", nodes_info(history=10), latent_weight=0.0), windows(nodes_info(history=10))).shape == (3, 12, 5, 1)
