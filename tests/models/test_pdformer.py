"""PDFormer: what it prepares from the train segment, its attention against its equation, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stmodels.correlation import correlation_volume, dtw_distances
from stmodels.errors import ConfigError
from stmodels.graph.pdformer import Heads, PDFormer, nearest
from stmodels.types import Readings, ring
from tests.models.nodes import at_nodes, nodes_info, nodes_that_change, small, value, windows

_ORDER = torch.tensor([3, 0, 4, 1, 2])


def _train(nodes: int = 5, days: int = 20) -> Readings:
    rng = np.random.default_rng(0)
    steps = np.arange(24 * days)[:, None]
    values = np.sin(2 * np.pi * (steps / 24 + rng.uniform(0, 1, nodes))) + 0.1 * rng.normal(size=(24 * days, nodes))
    return Readings(torch.from_numpy(values[..., None].astype(np.float32)), torch.from_numpy(steps[:, 0] % 168))


def _fitted(**fields: object) -> PDFormer:
    model = small("pdformer", nodes_info(), **fields)
    model.adopt(model.prepare(_train()))
    return model  # type: ignore[return-value]


def test_warped_distances_are_those_of_the_images() -> None:
    series = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dtw_distances(series), correlation_volume(series[None])[0, 0], atol=1e-4, rtol=1e-4)


def test_the_nearest_nodes_are_chosen_and_the_node_itself() -> None:
    distances = torch.tensor([[0.0, 3, 1], [3, 0, 2], [1, 2, 0]])
    assert nearest(distances, 2).tolist() == [[True, False, True], [False, True, True], [True, False, True]]
    assert torch.equal(nearest(torch.zeros(3, 3), 1), torch.eye(3, dtype=torch.bool))


def test_similar_nodes_have_similar_days() -> None:
    train = _train(4)
    values = train.values.clone()
    values[:, 3] = values[:, 0] + 0.01  # of all nodes, the last is most like the first
    model = small("pdformer", nodes_info(4, network=ring(4)), similar=2)
    found = model.prepare(train._replace(values=values))["similar"]
    assert found[0].tolist() == [True, False, False, True]
    assert found.diagonal().all()


def test_a_missing_reading_is_no_part_of_a_mean_day_or_of_a_pattern() -> None:
    train = _train()
    mask = torch.ones_like(train.values, dtype=torch.bool)
    mask[30, 2] = False
    spoilt = train.values.clone()
    spoilt[30, 2] = -1000.0
    model = small("pdformer", nodes_info())
    found, expected = model.prepare(Readings(spoilt, train.slot, mask)), model.prepare(train._replace(mask=mask))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def test_patterns_are_centres_of_the_pieces_of_the_first_days() -> None:
    pieces = torch.tensor([[0.0, 0, 0], [5, 5, 5], [0, 5, 0], [5, 0, 5]])
    values = pieces[torch.arange(400) % 4].flatten()[:1152]
    model = small("pdformer", nodes_info(1, network=ring(1)), pattern_days=2, patterns=4)
    later = values.clone()
    later[48:] = 99.0
    train = Readings(values[:, None, None], torch.arange(len(values)) % 168)
    found, expected = (model.prepare(train._replace(values=v[:, None, None]))["patterns"] for v in (later, values))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match=r"model\.patterns=4: the train segment has fewer different pieces"):
        model.prepare(train._replace(values=torch.zeros_like(values)[:, None, None]))


def test_heads_attend_as_their_equation() -> None:
    torch.manual_seed(0)
    heads = Heads(6, 2, 3).double()
    x, more = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    mask = torch.rand(4, 4) > 0.4
    mask.fill_diagonal_(True)
    q, k, v = (t.detach().numpy() for t in heads.qkv(x).chunk(3, dim=-1))
    expected = np.zeros((4, 6))
    for h in (slice(0, 3), slice(3, 6)):
        scores = np.where(mask.numpy(), q[:, h] @ (k + more.numpy())[:, h].T / np.sqrt(3), -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        expected[:, h] = weights @ v[:, h]
    np.testing.assert_allclose(heads(x[None, None], mask, more[None, None])[0, 0].detach().numpy(), expected, atol=1e-12)


def test_a_step_is_told_the_last_readings_up_to_it() -> None:
    model = small("pdformer", nodes_info())
    history = torch.arange(1.0, 13).view(1, 12, 1, 1)
    assert model.last_steps(history)[0, :, 0].tolist()[:3] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_nodes_that_see_only_themselves_are_forecast_apart() -> None:
    info = nodes_info()
    alone = _fitted(hops=1, similar=1)
    assert nodes_that_change(alone, windows(info), 2) == {2}
    assert nodes_that_change(_fitted(hops=2, similar=1), windows(info), 2) == {1, 2, 3}, "one layer, one hop"
    assert len(nodes_that_change(_fitted(hops=1, similar=3), windows(info), 2)) > 1


def test_patterns_without_values_leave_plain_attention() -> None:
    model, batch = _fitted(), windows(nodes_info())
    before = value(model, batch)
    for layer in model.layers:
        nn.init.zeros_(layer.patterns.value.weight)
        nn.init.zeros_(layer.patterns.value.bias)
    plain = value(model, batch)
    assert not torch.allclose(plain, before, atol=1e-6)
    model.patterns.normal_()
    torch.testing.assert_close(value(model, batch), plain)


def test_the_sign_of_an_eigenvector_goes_with_its_weights() -> None:
    model, batch = _fitted(), windows(nodes_info())
    before = value(model, batch)
    model.places[:, 0] *= -1
    assert not torch.allclose(value(model, batch), before, atol=1e-6)
    with torch.no_grad():
        model.place.weight[:, 0] *= -1
    torch.testing.assert_close(value(model, batch), before)


def test_signs_flip_in_training_alone() -> None:
    model, batch = _fitted(flip_signs=True), windows(nodes_info())
    torch.testing.assert_close(value(model, batch), value(model, batch), rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    found = {round(float(value(model, batch).sum()), 4) for _ in range(12)}
    assert 1 < len(found) <= 4, "two eigenvectors have four signs"


def test_nodes_in_another_order_are_forecast_in_that_order() -> None:
    """No weight belongs to a node, so that the same weights forecast any order, with the network and what is prepared in that order."""
    model, batch = _fitted(), windows(nodes_info())

    def turned(matrix: Tensor) -> Tensor:
        return matrix[_ORDER][:, _ORDER]

    other = small("pdformer", nodes_info(network=turned(ring(5))))
    other.load_state_dict({**model.state_dict(), "similar": turned(model.similar)})
    other.places.copy_(model.places[_ORDER])  # eigenvectors of equal eigenvalues are any of many
    torch.testing.assert_close(value(other, at_nodes(batch, _ORDER)), value(model, batch)[:, :, _ORDER], atol=1e-5, rtol=1e-4)
