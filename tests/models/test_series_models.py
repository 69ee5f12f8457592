"""TCN, iTransformer and PatchTST: their invariants, and their convolutions against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stlab.errors import ModelError
from stmodels.errors import ConfigError
from stmodels.layers.time_conv import SameTimeConv, TimeConv, pad_past
from tests.models.nodes import at_nodes, built, nodes_info, nodes_that_change, small, value, windows

_ORDER = torch.tensor([3, 0, 4, 1, 2])


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 4)])
def test_a_convolution_over_time_is_that_of_pytorch(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    conv = TimeConv(3, 5, kernel, dilation).double()
    x = torch.randn(2, 11, 4, 3, dtype=torch.float64)  # (B, T, N, c)
    weight = conv.weight.unflatten(1, (kernel, 3)).transpose(1, 2)  # (c', c, k)
    expected = F.conv1d(x.permute(0, 2, 3, 1).flatten(0, 1), weight, conv.bias, dilation=dilation)
    torch.testing.assert_close(conv(x), expected.unflatten(0, (2, 4)).permute(0, 3, 1, 2))


def test_a_same_convolution_keeps_the_length() -> None:
    torch.manual_seed(0)
    conv = SameTimeConv(3, 5, 3).double()
    x = torch.randn(2, 7, 4, 3, dtype=torch.float64)
    weight = conv.conv.weight.unflatten(1, (3, 3)).transpose(1, 2)
    expected = F.conv1d(x.permute(0, 2, 3, 1).flatten(0, 1), weight, conv.conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected.unflatten(0, (2, 4)).permute(0, 3, 1, 2))


def test_a_convolution_is_drawn_as_that_of_pytorch() -> None:
    ours, theirs = TimeConv(64, 64, 3), nn.Conv1d(64, 64, 3)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert found.std().item() == pytest.approx(expected.std().item(), rel=0.2)


@pytest.mark.parametrize("step", range(12))
def test_tcn_sees_no_later_step(step: int) -> None:
    model = small("tcn", nodes_info()).double()
    x = torch.randn(2, 12, 5, 1, dtype=torch.float64)
    later = x.clone()
    later[:, step + 1 :] = torch.randn_like(later[:, step + 1 :])
    torch.testing.assert_close(model.levels(later)[:, : step + 1], model.levels(x)[:, : step + 1], rtol=0, atol=0)


def test_tcn_reads_the_oldest_step() -> None:
    model = built("tcn", nodes_info()).double()
    x = torch.randn(1, 12, 1, 1, dtype=torch.float64, requires_grad=True)
    model.levels(x)[:, -1].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().flatten() > 0).all()


def test_tcn_of_kernel_1_mixes_no_steps() -> None:
    model = small("tcn", nodes_info(), kernel=1)
    x = torch.randn(1, 12, 1, 1)
    alone = model.levels(x[:, 4:5])
    torch.testing.assert_close(model.levels(x)[:, 4:5], alone)


def test_a_level_of_the_tcn_is_that_of_its_paper() -> None:
    """ReLU(x W + conv₂(ReLU(conv₁ x))) by torch's own convolutions, with weight norm."""
    model = built("tcn", nodes_info()).double()
    level = model.levels[0]
    x = torch.randn(2, 12, 5, 1, dtype=torch.float64)
    h = x.permute(0, 2, 3, 1).flatten(0, 1)
    for conv in level.convs:
        g, v = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
        weight = (g * v / v.norm(dim=1, keepdim=True)).unflatten(1, (2, -1)).transpose(1, 2)
        h = F.conv1d(F.pad(h, (1, 0)), weight, conv.bias).relu()
    expected = (level.project(x) + h.unflatten(0, (2, 5)).permute(0, 3, 1, 2)).relu()
    torch.testing.assert_close(level(x), expected)


def test_the_original_tcn_starts_with_small_weights() -> None:
    model = built("tcn", nodes_info(), init="original")
    assert model.levels[1].convs[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert built("tcn", nodes_info()).levels[1].convs[0].weight.std().item() > 0.04


@pytest.mark.parametrize("name", ["tcn", "patchtst", "ofa"])
def test_nodes_are_forecast_apart(name: str) -> None:
    info = nodes_info()
    assert nodes_that_change(small(name, info), windows(info), 2) == {2}


@pytest.mark.parametrize("name", ["tcn", "patchtst", "itransformer", "ofa"])
def test_nodes_have_no_identity(name: str) -> None:
    info = nodes_info()
    model, batch = small(name, info), windows(info)
    torch.testing.assert_close(value(model, at_nodes(batch, _ORDER)), value(model, batch)[:, :, _ORDER], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["patchtst", "itransformer", "ofa"])
def test_a_normalised_window_makes_the_forecast_affine(name: str) -> None:
    info = nodes_info()
    model, batch = small(name, info), windows(info)
    moved = batch._replace(history=3 * batch.history + 7)
    torch.testing.assert_close(value(model, moved), 3 * value(model, batch) + 7, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["patchtst", "itransformer"])
def test_without_the_norm_the_forecast_is_not_affine(name: str) -> None:
    info = nodes_info()
    model, batch = small(name, info, window_norm=False), windows(info)
    moved = batch._replace(history=3 * batch.history + 7)
    assert not torch.allclose(value(model, moved), 3 * value(model, batch) + 7, atol=1e-2)


@pytest.mark.parametrize("name", ["tcn", "itransformer"])
def test_the_same_weights_forecast_other_nodes(name: str) -> None:
    few, many = small(name, nodes_info(5)), small(name, nodes_info(9))
    many.load_state_dict(few.state_dict())
    assert value(many, windows(nodes_info(9))).shape == (3, 12, 9, 1)


def test_without_attention_itransformer_is_one_network_for_each_node() -> None:
    info = nodes_info()
    model = small("itransformer", info)
    for layer in model.encoder[:-1]:
        nn.init.zeros_(layer.project.weight)
    assert nodes_that_change(model, windows(info), 1) == {1}
    assert nodes_that_change(small("itransformer", info), windows(info), 1) == set(range(5))


def test_patchtst_maps_its_patches_side_by_side() -> None:
    """The library's default takes their mean, which is not the paper's head."""
    head = built("patchtst", nodes_info()).net.head
    assert head.projection.in_features == 5 * 128


@pytest.mark.parametrize(("name", "history"), [("patchtst", 4), ("stgcn", 8), ("ofa", 1)])
def test_a_history_too_short_is_refused(name: str, history: int) -> None:
    with pytest.raises(ModelError, match=r"data\.history"):
        small(name, nodes_info(history=history))


def test_zeros_come_before_the_first_step() -> None:
    x = torch.ones(1, 2, 3, 1)
    assert pad_past(x, 2)[0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert pad_past(x, 0) is x


def test_learned_positions_of_patchtst_follow_the_seed() -> None:
    """The library draws them where it makes them, and has no second draw."""
    one, again, other = (
        small("patchtst", nodes_info(), positions="random", seed=seed).positions.position_enc for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"stride": 3}, r"model\.stride=3 leaves out the first steps"), ({"width": 17, "heads": 1}, r"model\.width=17 must be even")],
)
def test_patches_that_do_not_fit_are_refused(fields: dict[str, int], words: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=words):
        small("patchtst", nodes_info(), **fields)
