"""STID, ST-Norm, ST-ResNet, ACFM, STGSP, MC-STL, and the models of series on grids: their invariants and equations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlab import catalog
from stlab.data import load_dataset
from stlab.errors import ModelError
from stlab.inspection.contract import CHECKS, NotApplicable, Subject
from stlab.study.spec import DataSpec
from stmodels.grid.mc_stl import attention_graph
from stmodels.grid.stnorm import SpaceNorm, TimeNorm
from stmodels.layers.conv_lstm import PeepholeLSTM
from stmodels.layers.multi_step import fed_back
from stmodels.layers.places import as_places, from_places
from stmodels.types import Batch
from tests.models.grids import grid_info, impulse, with_history
from tests.models.nodes import built, nodes_info, small, value, windows

_BIKES = Path(__file__).parents[2].parent / "shared" / "data" / "nycbike1.npz"
_FRAMES = ("stresnet", "acfm", "stgsp")
_MODES: list[dict[str, Any]] = [
    {"inputs": "calendar"},
    {"inputs": "period"},
    {"multi_step": "recursive"},
    {"inputs": "period", "multi_step": "recursive", "output": "tanh"},
]
_CLAUSES = ("shapes", "gradients", "no future", "windows apart", "season", "seeds")


def cells_that_change(model: nn.Module, batch: Batch, row: int, column: int) -> set[tuple[int, int]]:
    apart = (value(model, impulse(batch, row, column)) - value(model, batch)).abs().amax((0, 1, 2))
    return {(int(i), int(j)) for i, j in (apart > 1e-6).nonzero()}


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """A grid's cells in another order: (…, H, W) → same."""
    return x.flatten(-2)[..., order].view_as(x)


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, fields) for name in _FRAMES for fields in _MODES), ("mc_stl", {"inputs": "period"}), ("itransformer", {"calendar": True})],
)
def test_every_mode_keeps_the_contract(name: str, fields: dict[str, Any]) -> None:
    subject = Subject({"name": name, **catalog.config_class(name).SMALL, **fields}, load_dataset(DataSpec(path="synthetic:city")))
    for clause in _CLAUSES:
        try:
            assert CHECKS[clause](subject) is None, clause
        except NotApplicable:
            continue


def test_places_stand_in_rows() -> None:
    info = grid_info()
    x = torch.arange(2 * 6 * 2 * 8 * 6.0).view(2, 6, 2, 8, 6)
    assert as_places(x, info)[1, 3, 2 * 6 + 5].tolist() == x[1, 3, :, 2, 5].tolist()
    assert torch.equal(from_places(as_places(x, info), info), x)


# --- series on grids


@pytest.mark.parametrize("name", ["patchtst", "itransformer"])
def test_series_of_a_grid_have_no_identity(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info), windows(info)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    moved = with_history(batch, permuted(batch.history, order))
    torch.testing.assert_close(value(model, moved), permuted(value(model, batch), order), atol=1e-5, rtol=1e-4)


def test_patchtst_forecasts_each_series_of_a_grid_by_itself() -> None:
    info = grid_info()
    assert cells_that_change(small("patchtst", info), windows(info), 3, 2) == {(3, 2)}


def test_patchtst_repeats_the_last_reading_once_more_a_stride() -> None:
    info = grid_info()
    few, more = (built("patchtst", info, patch=2, stride=2, repeat_last=repeat) for repeat in (False, True))
    assert more.net.head.projection.in_features - few.net.head.projection.in_features == 128


def test_calendar_tokens_of_itransformer_are_no_forecasts_and_change_them() -> None:
    info = grid_info()
    model, batch = small("itransformer", info, calendar=True), windows(info)
    assert batch.history_slot is not None
    found = value(model, batch)
    later = batch._replace(history_slot=(batch.history_slot + 5) % 168)
    assert found.shape == (3, 6, 2, 8, 6)
    assert not torch.allclose(value(model, later), found)


@pytest.mark.skipif(not _BIKES.exists(), reason="the bikes of New York lie beside the checkout, and are not here")
@pytest.mark.parametrize(
    ("name", "fields", "rmse", "mae"),
    [
        ("ha", {"over": "week"}, 7.186, 3.038),
        ("ha", {"over": "day"}, 8.426, 3.674),
        ("ha", {"over": "days", "days": 7}, 8.562, 3.710),
        ("ha", {"over": "days", "days": 3}, 10.627, 4.538),
        ("ha", {"over": "window"}, 18.869, 9.406),
        ("arima", {}, 12.874, 6.237),
        ("arima", {"order": (3, 0, 0)}, 13.343, 6.562),
        ("arima", {"order": (2, 0, 0)}, 13.409, 6.611),
        ("arima", {"order": (1, 0, 0)}, 13.994, 6.769),
        ("arima", {"order": (3, 1, 0)}, 17.256, 7.990),
    ],
)
def test_the_classics_on_bikes(name: str, fields: dict[str, Any], rmse: float, mae: float) -> None:
    """Computed beforehand, by other code."""
    dataset = load_dataset(DataSpec(path=str(_BIKES)))
    subject = Subject({"name": name, **fields}, dataset)
    test = dataset.windows("test", past=subject.past)
    batch = test.gather(torch.arange(len(test)))
    found, truth = (torch.from_numpy(dataset.scaler.inverse(x.double().numpy())) for x in (value(subject.model(), batch), batch.target))
    error = found.clamp_min(0) - truth
    assert error.square().mean().sqrt().item() == pytest.approx(rmse, abs=6e-4)
    assert error.abs().mean().item() == pytest.approx(mae, abs=6e-4)


# --- STID


def test_stid_sees_no_other_cell() -> None:
    info = grid_info()
    assert cells_that_change(built("stid", info), windows(info), 3, 2) == {(3, 2)}


def test_cells_of_stid_move_with_their_vectors() -> None:
    info = grid_info()
    model, batch = built("stid", info), windows(info)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    before = value(model, batch)
    model.place.table.data = model.place.table[order]
    moved = value(model, with_history(batch, permuted(batch.history, order)))
    torch.testing.assert_close(moved, permuted(before, order), atol=1e-6, rtol=1e-5)


def test_equal_vectors_of_stid_make_equal_histories_alike() -> None:
    info = grid_info()
    model, batch = built("stid", info), windows(info)
    same = with_history(batch, batch.history[..., :1, :1].expand_as(batch.history))
    assert value(model, same).flatten(-2).std(-1).max() > 1e-3
    model.place.table.data = model.place.table[:1].expand(48, -1).clone()
    assert value(model, same).flatten(-2).std(-1).max() < 1e-6


def test_stid_is_its_equations() -> None:
    info = grid_info()
    model, batch = built("stid", info).double(), windows(info)
    batch = with_history(batch, batch.history.double())
    assert batch.history_slot is not None
    w = dict(model.named_parameters())
    expected = torch.empty(3, 6, 2, 8, 6, dtype=torch.float64)
    for b, row, column in itertools.product(range(3), range(8), range(6)):
        slot = int(batch.history_slot[b, -1])
        x = batch.history[b, :, :, row, column].flatten()
        place = w["place.table"][row * 6 + column]
        h = torch.cat([w["embed.weight"] @ x + w["embed.bias"], place, w["slot.table"][slot % 24], w["day.table"][slot // 24]])
        for i in range(3):
            hidden = (w[f"layers.{i}.hidden.weight"] @ h + w[f"layers.{i}.hidden.bias"]).clamp_min(0)
            h = h + w[f"layers.{i}.readout.weight"] @ hidden + w[f"layers.{i}.readout.bias"]
        expected[b, :, :, row, column] = (w["readout.weight"] @ h + w["readout.bias"]).view(6, 2)
    torch.testing.assert_close(value(model, batch), expected)


# --- ST-Norm


def test_a_constant_at_one_step_leaves_the_norm_over_space() -> None:
    torch.manual_seed(0)
    norm, x = SpaceNorm(3).double(), torch.randn(2, 5, 7, 3, dtype=torch.float64)
    moved = x.clone()
    moved[:, 2] += 4
    torch.testing.assert_close(norm(moved), norm(x))


def test_a_scale_for_each_place_leaves_the_norm_over_time() -> None:
    torch.manual_seed(0)
    norm, x = TimeNorm(7, 3).double().train(), torch.randn(20, 5, 7, 3, dtype=torch.float64)
    scale, shift = 1 + torch.rand(7, 3), torch.randn(7, 3)
    torch.testing.assert_close(norm(x * scale + shift), norm(x), atol=1e-4, rtol=1e-4)
    norm = TimeNorm(7, 3).double().train()
    norm(x)
    expected = 0.9 + 0.1 * x.flatten(0, 1).var(0, unbiased=True).flatten()
    torch.testing.assert_close(norm.norm.running_var, expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_stnorm_see_two_to_their_number(layers: int) -> None:
    info = grid_info(history=9)
    model = small("stnorm", info, layers=layers, time_norm=False, space_norm=False)
    batch = windows(info)
    history = batch.history.clone().requires_grad_()
    model(with_history(batch, history)).value.sum().backward()
    assert history.grad is not None
    assert (history.grad.abs().amax((0, 2, 3, 4)) > 0).tolist() == [False] * (9 - 2**layers) + [True] * 2**layers


def test_a_short_history_is_filled_by_its_first_reading() -> None:
    info = grid_info(history=6)
    edge, zero = (small("stnorm", info, pad=pad) for pad in ("edge", "zero"))
    x = torch.ones(1, 6, 48, 2)
    assert edge._padded(x)[0, :, 0, 0].tolist() == [1] * 8
    assert zero._padded(x)[0, :, 0, 0].tolist() == [0, 0] + [1] * 6


def test_without_the_norm_over_space_places_of_stnorm_are_apart() -> None:
    info = grid_info()
    assert cells_that_change(small("stnorm", info, space_norm=False), windows(info), 3, 2) == {(3, 2)}
    assert len(cells_that_change(small("stnorm", info), windows(info), 3, 2)) == 48


# --- ST-ResNet


@pytest.mark.parametrize("units", [1, 2])
def test_a_branch_of_stresnet_sees_as_far_as_its_units(units: int) -> None:
    info = grid_info((2, 17, 17))
    cells = cells_that_change(small("stresnet", info, units=units), windows(info), 8, 8)
    reach = 2 * units + 2
    assert cells == set(itertools.product(range(8 - reach, 8 + reach + 1), repeat=2))


def test_stresnet_moves_with_its_input_away_from_the_border() -> None:
    info = grid_info((2, 17, 17))
    model, batch = small("stresnet", info), windows(info)
    moved = value(model, with_history(batch, batch.history.roll((1, 1), (-2, -1))))
    torch.testing.assert_close(moved[..., 6:-5, 6:-5], value(model, batch)[..., 5:-6, 5:-6], atol=1e-6, rtol=1e-5)


def test_without_weights_the_calendar_alone_is_left_of_stresnet() -> None:
    info = grid_info()
    model, batch = small("stresnet", info, inputs="calendar"), windows(info)
    nn.init.zeros_(model.fusion.weights)
    other = with_history(batch, torch.randn_like(batch.history))
    assert torch.equal(value(model, batch), value(model, other))
    assert value(model, batch).abs().max() > 0
    assert not [name for name, _ in small("stresnet", info).named_parameters() if name.startswith(("period", "external"))]


# --- ACFM


def test_a_conv_lstm_is_its_equations() -> None:
    torch.manual_seed(0)
    cell = PeepholeLSTM(3, 4, 3, (5, 6), forget_bias=None).double()
    for peephole in (cell.peephole_i, cell.peephole_f, cell.peephole_o):
        nn.init.normal_(peephole)
    x, h, c = (torch.randn(2, width, 5, 6, dtype=torch.float64) for width in (3, 4, 4))
    of_x, of_h = cell.from_x.weight.chunk(4), cell.from_h.weight.chunk(4)
    i, g, f, o = (
        F.conv2d(x, of_x[n], cell.from_x.bias.chunk(4)[n], padding=1) + F.conv2d(h, of_h[n], padding=1) for n in range(4)
    )
    memory = torch.sigmoid(f + cell.peephole_f * c) * c + torch.sigmoid(i + cell.peephole_i * c) * torch.tanh(g)
    hidden = torch.sigmoid(o + cell.peephole_o * memory) * torch.tanh(memory)
    found = cell(x, h, c)
    torch.testing.assert_close(found[0], hidden)
    torch.testing.assert_close(found[1], memory)


def test_without_attention_acfm_reads_its_features_as_they_are() -> None:
    info = grid_info()
    model, batch = small("acfm", info), windows(info)
    for attention in model.closeness.attention:
        nn.init.zeros_(attention[-1].weight)
        nn.init.zeros_(attention[-1].bias)
    h = c = torch.zeros(3, 8, 8, 6)
    with torch.no_grad():
        for t in range(6):
            h, c = model.closeness.recurrent(model.features(batch.history[:, t], None), h, c)
        expected = model.closeness.readout(h).unflatten(1, (6, 2))
    torch.testing.assert_close(value(model, batch), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["acfm", "stgsp"])
def test_the_order_of_frames_matters(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info), windows(info)
    swapped = with_history(batch, batch.history[:, [1, 0, 2, 3, 4, 5]])
    assert not torch.allclose(value(model, swapped), value(model, batch), atol=1e-6)


def test_the_gate_of_acfm_weighs_both_streams() -> None:
    info = grid_info()
    model, batch = small("acfm", info, inputs="period"), windows(info)
    assert model.gate is not None
    gates = model.gate(model._calendar(batch.target_slot))
    assert gates.min() > 0
    assert gates.max() < 1
    nn.init.zeros_(model.gate[2].weight)
    half = {}
    for bias in (-math.inf, 0.0, math.inf):
        nn.init.constant_(model.gate[2].bias, bias)
        half[bias] = value(model, batch)
    torch.testing.assert_close(half[0.0], (half[-math.inf] + half[math.inf]) / 2)


@pytest.mark.parametrize("name", ["acfm", "mim", "mau"])
def test_weights_of_another_grid_are_refused(name: str) -> None:
    state = small(name, grid_info((2, 8, 8))).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        small(name, grid_info((2, 8, 6))).load_state_dict(state)


# --- MC-STL


def test_the_graph_of_mc_stl() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 6, 6).softmax(-1).requires_grad_()
    graph = attention_graph(maps, 0.5)
    torch.testing.assert_close(graph.sum(1), torch.ones(3, 6))
    assert not graph.requires_grad
    heads = maps.detach()[1].sum(0)
    kept = torch.where(heads >= 1.5 * heads.mean(), heads, torch.zeros(())).fill_diagonal_(heads.max().item())
    torch.testing.assert_close(graph[1], kept / kept.sum(0))
    assert torch.equal(attention_graph(maps, math.inf), torch.eye(6).expand(3, 6, 6))


def test_a_mirrored_grid_changes_the_contrast_branch() -> None:
    info = grid_info((2, 16, 8))
    model, batch = small("mc_stl", info), windows(info)
    x = batch.history.flatten(1, 2)
    assert not torch.allclose(model.contrast(x.flip(-1)).flip(-1), model.contrast(x), atol=1e-5)
    model.contrast.unembed.weight.data.zero_()  # what is left reads the frames themselves
    assert not torch.allclose(model.contrast(x + torch.randn_like(x)), model.contrast(x), atol=1e-5)


# --- all


def test_a_forecast_is_fed_back() -> None:
    history = torch.tensor([[1.0, 2.0, 3.0]])[..., None]
    sums = fed_back(lambda x, known: x.sum(1, keepdim=True) + 100 * known, history, 3)
    assert sums[0, :, 0].tolist() == [6, 111, 320]
    pairs = fed_back(lambda x, known: x[:, :2] + known, history, 3)
    assert pairs[0, :, 0].tolist() == [1, 2, 5]


@pytest.mark.parametrize("name", ["stresnet", "acfm", "stgsp", "mc_stl", "simvp", "tau", "predrnn", "mim", "mau"])
def test_sensors_have_no_rows_and_columns(name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name} convolves over the cells of a grid"):
        small(name, nodes_info())


@pytest.mark.parametrize("name", ["stresnet", "acfm", "stgsp", "mc_stl"])
def test_a_season_without_timestamps_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"model\.inputs.* this data has no timestamps"):
        small(name, grid_info(slots=None), inputs="period")


@pytest.mark.parametrize("shape", [(2, 16, 8), (1, 20, 10), (2, 15, 5)])
@pytest.mark.parametrize(
    "name", ["stid", "stnorm", "stresnet", "acfm", "stgsp", "mc_stl", "simvp", "tau", "predrnn", "mim", "mau", "patchtst", "itransformer"]
)
def test_the_shapes_of_bikes_taxis_and_odd_grids(name: str, shape: tuple[int, int, int]) -> None:
    info = grid_info(shape)
    assert value(small(name, info), windows(info)).shape == (3, 6, *shape)
