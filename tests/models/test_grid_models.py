"""STID, ST-Norm, ST-ResNet, ACFM, STGSP, MC-STL, and the models of series on grids: their invariants and equations."""

from __future__ import annotations

import itertools
import math
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
from stmodels.grid.frames import frame_slots, season_frames
from stmodels.grid.mc_stl import CrossBlock, attention_graph
from stmodels.grid.stnorm import SpaceNorm, TimeNorm
from stmodels.layers.conv_lstm import PeepholeLSTM
from stmodels.layers.multi_step import fed_back
from stmodels.layers.places import as_places, from_places
from stmodels.types import Batch, SeriesInfo
from tests.models.grids import grid_info, impulse, with_history
from tests.models.nodes import built, nodes_info, small, value, windows

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
    gates = model.gate(model.calendar_of(batch.target_slot, batch.history))
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


def test_the_gru_of_mc_stl_reads_every_column() -> None:
    info = grid_info((2, 16, 8))
    model, batch = small("mc_stl", info), windows(info)
    x = batch.history.flatten(1, 2)
    nn.init.zeros_(model.contrast.unembed.weight)  # what is left reads the frames themselves
    for column in range(8):
        moved = x.clone()
        moved[..., column] += 1
        assert not torch.allclose(model.contrast(moved), model.contrast(x), atol=1e-5), column


@pytest.mark.parametrize("seed", range(8))
def test_the_tokens_of_the_contrast_branch_are_trained_whatever_the_seed(seed: int) -> None:
    info = grid_info((2, 16, 8))
    model, batch = small("mc_stl", info, seed), windows(info)
    sum(model.loss_terms(model(batch), batch).values()).backward()
    for name, parameter in model.contrast.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def test_each_stream_of_mc_stl_weighs_the_values_of_the_other() -> None:
    torch.manual_seed(0)
    block = CrossBlock(4).double()
    spatial, channel = (torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(2))
    qkv = [block.qkv[i](block.norms[i](x)).split(4, dim=-1) for i, x in enumerate((spatial, channel))]
    maps = [torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) for q, k, _ in qkv]
    crossed = block.project(torch.softmax(maps[0] @ qkv[1][2] + maps[1] @ qkv[0][2], dim=-1))
    total = spatial.exp() + channel.exp()
    planes = torch.stack([crossed, spatial.exp() / total, channel.exp() / total], dim=1)
    first, _, second = block.planes
    expected = F.conv2d(F.conv2d(planes, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1)
    torch.testing.assert_close(block(spatial, channel), expected[:, 0])


# --- the frames of a forecast step by step


def hours(batch: Batch) -> Batch:
    """The batch with the season 0, 1, 2, … from the first step of the history on, and slots of the week of the same numbers."""
    p, q = batch.history.shape[1], batch.target.shape[1]
    number = torch.arange(p + q).float()[None, :, None, None, None]
    season = number.expand(len(batch.history), -1, *batch.history.shape[2:])
    slots = torch.arange(p + q).expand(len(batch.history), -1)
    return batch._replace(
        history_season=season[:, :p], target_profile=season[:, p:], history_slot=slots[:, :p], target_slot=slots[:, p:]
    )


@pytest.mark.parametrize("known", [0, 2, 5])
def test_frames_move_on_with_the_step_that_is_forecast(known: int) -> None:
    batch = hours(windows(grid_info()))
    wanted = list(range(known, known + 7))
    assert season_frames(batch, known, 1)[0, :, 0, 0, 0].tolist() == wanted
    slots = frame_slots(batch, known, 1)
    assert slots is not None
    assert slots[0].tolist() == wanted
    assert season_frames(batch, 0, 6)[0, :, 0, 0, 0].tolist() == list(range(12))


@pytest.mark.parametrize("multi_step", ["direct", "recursive"])
def test_stgsp_adds_what_the_calendar_of_the_step_ahead_says(multi_step: str) -> None:
    info = grid_info()
    model, batch = small("stgsp", info, inputs="calendar", multi_step=multi_step), hours(windows(info))
    for part in model.readout.parameters():
        nn.init.zeros_(part)
    nn.init.zeros_(model.calendar_ahead[0].bias)
    steps = range(6) if multi_step == "recursive" else [0]
    with torch.no_grad():
        said = torch.cat([
            model.calendar_ahead(F.one_hot(torch.tensor([6 + q]), 24 + 7) + F.one_hot(torch.tensor([24]), 24 + 7).float()) for q in steps
        ])  # fmt: skip
    torch.testing.assert_close(value(model, batch)[0], said.view(6, 2, 8, 6))


def test_stresnet_adds_the_calendar_of_each_step_one_by_one_and_at_once() -> None:
    info = grid_info()
    found = {}
    for multi_step in ("direct", "recursive"):
        model, batch = small("stresnet", info, inputs="calendar", multi_step=multi_step), hours(windows(info))
        nn.init.zeros_(model.fusion.weights)
        found[multi_step] = value(model, batch)
    assert found["direct"].std(1).max() > 1e-3
    torch.testing.assert_close(found["direct"], found["recursive"])


def test_stnorm_is_its_equations() -> None:
    info = grid_info((1, 3, 2), history=4, horizon=2)
    model, batch = built("stnorm", info, width=4).double(), windows(info)
    w, x = dict(model.named_parameters()), batch.history.double().flatten(3).transpose(2, 3)  # (B, 4, N, 1)
    x = x @ w["embed.weight"].T + w["embed.bias"]
    skip = torch.zeros(3, 6, 4, dtype=torch.float64)
    for level in range(2):
        own = x / (1 + 1e-5) ** 0.5  # the running mean is 0 and the running variance 1
        space = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, unbiased=True) + 1e-5).sqrt()
        views, step = torch.cat([x, own, space], dim=-1), 2**level
        both = torch.cat([views[:, :-step], views[:, step:]], dim=-1) @ w[f"layers.{level}.conv.weight"].T + w[f"layers.{level}.conv.bias"]
        h = torch.tanh(both[..., :4]) * torch.sigmoid(both[..., 4:])
        skip = skip + h[:, -1] @ w[f"skips.{level}.weight"].T + w[f"skips.{level}.bias"]
        if level == 0:
            x = h @ w["residuals.0.weight"].T + w["residuals.0.bias"] + x[:, step:]
    hidden = (skip.clamp_min(0) @ w["hidden.weight"].T + w["hidden.bias"]).clamp_min(0)
    expected = (hidden @ w["readout.weight"].T + w["readout.bias"]).transpose(1, 2).view(3, 2, 1, 3, 2)
    torch.testing.assert_close(value(model, with_history(batch, batch.history.double())), expected)


# --- all


def test_a_forecast_is_fed_back() -> None:
    history = torch.tensor([[1.0, 2.0, 3.0]])[..., None]
    sums = fed_back(lambda x, known: x.sum(1, keepdim=True) + 100 * known, history, 3)
    assert sums[0, :, 0].tolist() == [6, 111, 320]
    pairs = fed_back(lambda x, known: x[:, :2] + known, history, 3)
    assert pairs[0, :, 0].tolist() == [1, 2, 5]


@pytest.mark.parametrize("name", ["stresnet", "acfm", "stgsp", "mc_stl", "simvp", "tau", "predrnn", "mim", "mau", "unist"])
def test_sensors_have_no_rows_and_columns(name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name} convolves over the cells of a grid"):
        small(name, nodes_info())


@pytest.mark.parametrize(
    ("info", "why"),
    [(grid_info(slots=None), "no timestamps"), (grid_info()._replace(season_count=0), "not every slot of the week in their train segment")],
)
@pytest.mark.parametrize("name", ["stresnet", "acfm", "stgsp", "mc_stl", "unist"])
def test_a_season_that_the_data_lack_is_refused(name: str, info: SeriesInfo, why: str) -> None:
    if name == "unist" and info.slots_per_day is None:
        why = "no timestamps: add the array"
    with pytest.raises(ModelError, match=why):
        small(name, info, **({"period": "season"} if name == "unist" else {"inputs": "period"}))


@pytest.mark.parametrize("shape", [(2, 16, 8), (1, 20, 10), (2, 15, 5)])
@pytest.mark.parametrize(
    "name",
    [
        "stid", "stnorm", "stresnet", "acfm", "stgsp", "mc_stl", "simvp", "tau", "predrnn", "mim", "mau", "unist", "patchtst",
        "itransformer",
    ],
)  # fmt: skip
def test_the_shapes_of_bikes_taxis_and_odd_grids(name: str, shape: tuple[int, int, int]) -> None:
    info = grid_info(shape)
    assert value(small(name, info), windows(info)).shape == (3, 6, *shape)
