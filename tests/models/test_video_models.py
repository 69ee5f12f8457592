"""SimVP, TAU, PredRNN, MIM and MAU: their invariants, and their cells against the equations in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlab.catalog import create_config
from stmodels.errors import ConfigError
from stmodels.layers.padding import cropped, padded
from stmodels.types import Batch
from stmodels.video.blocks import Block, GatedAttention, TemporalAttention
from stmodels.video.mau import MAUCell
from stmodels.video.mim import MIMBlock
from stmodels.video.predrnn import PredRNN
from stmodels.video.recurrent_config import MAUConfig
from stmodels.video.simvp import change_divergence
from stmodels.video.st_lstm import STLSTMCell
from tests.models.grids import grid_info, with_history
from tests.models.nodes import small, value, windows

_RECURRENT = ("predrnn", "mim", "mau")
_SHELLS = ("simvp", "tau")


def first_steps(batch: Batch, horizon: int) -> Batch:
    return batch._replace(target=batch.target[:, :horizon])


@pytest.mark.parametrize("shape", [(3, 2, 15, 5), (2, 3, 2, 16, 8), (1, 1, 7, 9)])
def test_a_grid_is_padded_by_its_last_rows_and_cropped(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    larger = padded(x, 4)
    assert [side % 4 for side in larger.shape[-2:]] == [0, 0]
    assert torch.equal(cropped(larger, x), x)
    assert torch.equal(larger[..., -1, -1], x[..., -1, -1])


# --- SimVP and TAU


def test_without_scales_a_block_is_its_last_map() -> None:
    torch.manual_seed(0)
    block = Block(8, 12, GatedAttention, drop_path=0.0)
    x = torch.randn(2, 8, 6, 5)
    for scale in (block.scale1, block.scale2):
        assert scale.unique().tolist() == [pytest.approx(0.01)]
        nn.init.zeros_(scale)
    assert torch.equal(block(x), block.project(x))


def test_the_weights_of_channels_lie_between_0_and_1() -> None:
    torch.manual_seed(0)
    weights = TemporalAttention(16).channel_weights(10 * torch.randn(3, 16, 5, 5))
    assert weights.shape == (3, 16)
    assert 0 < weights.min() < weights.max() < 1


def test_the_divergence_of_changes_is_its_equation() -> None:
    draw = np.random.default_rng(0)
    forecast, truth = draw.normal(0, 0.1, (2, 3, 5, 2, 3, 4))

    def shares(x: np.ndarray) -> np.ndarray:
        changes = np.exp(np.diff(x, axis=1).reshape(3, 4, -1) / 0.1)
        return changes / changes.sum(-1, keepdims=True)

    p, q = shares(forecast), shares(truth)
    found = change_divergence(torch.from_numpy(forecast), torch.from_numpy(truth)).item()
    assert found == pytest.approx((p * np.log(p / q)).mean(), rel=1e-4)
    assert change_divergence(torch.from_numpy(truth), torch.from_numpy(truth)).item() == pytest.approx(0, abs=1e-8)
    assert change_divergence(torch.from_numpy(forecast + 3), torch.from_numpy(truth)).item() == pytest.approx(found, rel=1e-4)


def test_the_loss_of_tau() -> None:
    info = grid_info()
    model, batch = small("tau", info), windows(info)
    forecast = model(batch)
    mask = torch.rand(batch.target.shape) < 0.7
    terms = model.loss_terms(forecast, batch._replace(target_mask=mask, target=batch.target.where(mask, torch.tensor(torch.nan))))
    truth = batch.target.where(mask, forecast.value)
    torch.testing.assert_close(terms["diff"], change_divergence(forecast.value, truth))
    short = grid_info(horizon=2)
    model, batch = small("tau", short), windows(short)
    assert list(model.loss_terms(model(batch), batch)) == ["forecast"]


@pytest.mark.parametrize("name", _SHELLS)
def test_fewer_steps_are_the_first_and_more_are_fed_back(name: str) -> None:
    batch = windows(grid_info(horizon=14))
    state = small(name, grid_info()).state_dict()

    def forecast(horizon: int) -> Tensor:
        model = small(name, grid_info(horizon=horizon))
        model.load_state_dict(state)
        return value(model, batch)

    six = forecast(6)
    assert torch.equal(forecast(3), six[:, :3])
    model = small(name, grid_info())
    model.load_state_dict(state)
    second = value(model, with_history(batch, six))
    third = value(model, with_history(batch, second))
    assert torch.equal(forecast(14), torch.cat([six, second, third[:, :2]], dim=1))


@pytest.mark.parametrize("depth", [2, 4])
def test_encoders_of_several_depths_keep_odd_grids(depth: int) -> None:
    info = grid_info((2, 15, 5))
    assert value(small("simvp", info, depth=depth), windows(info)).shape == (3, 6, 2, 15, 5)
    assert value(small("simvp", info, depth=depth, translator="incepu"), windows(info)).shape == (3, 6, 2, 15, 5)


def test_blocks_are_skipped_in_training_alone() -> None:
    info = grid_info()
    model, batch = small("simvp", info, drop_path=0.9), windows(info)
    assert torch.equal(value(model, batch), value(model, batch))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    model.train()
    assert not torch.equal(value(model, batch), value(model, batch))


# --- frame by frame


@pytest.mark.parametrize("name", _RECURRENT)
def test_a_shorter_forecast_is_the_beginning_of_a_longer(name: str) -> None:
    batch = windows(grid_info())
    few, many = small(name, grid_info(horizon=3)), small(name, grid_info())
    few.load_state_dict(many.state_dict())
    torch.testing.assert_close(value(few, first_steps(batch, 3)), value(many, batch)[:, :3])


@pytest.mark.parametrize("name", _RECURRENT)
def test_no_call_leaves_a_trace(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info), windows(info, 4)
    first = value(model, batch)
    two = Batch(*(None if x is None else x[:2] for x in batch))
    torch.testing.assert_close(value(model, two), first[:2])
    assert torch.equal(value(model, batch), first)


@pytest.mark.parametrize("name", _RECURRENT)
def test_every_frame_of_the_history_is_read(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info), windows(info)
    history = batch.history.clone().requires_grad_()
    model(with_history(batch, history)).value.sum().backward()
    assert history.grad is not None
    assert (history.grad.abs().amax((0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("name", _RECURRENT)
def test_true_frames_are_read_in_training_as_long_as_planned(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info, sampling_share=0.5), windows(info)
    other = batch._replace(target=torch.randn_like(batch.target))
    assert torch.equal(value(model, batch), value(model, other)), "a forecast knows no target"
    model.train()
    model.progresses(0.0)
    with_truth = value(model, batch)
    assert torch.equal(with_truth[:, 0], value(model, other)[:, 0])
    assert not torch.allclose(with_truth[:, 1], value(model, other)[:, 1])
    last = batch._replace(target=torch.cat([batch.target[:, :-1], torch.randn_like(batch.target[:, -1:])], dim=1))
    assert torch.equal(with_truth, value(model, last)), "the last target has no frame after it"
    model.progresses(0.25)
    assert model.truth_probability.item() == 0.5
    model.progresses(0.75)
    assert torch.equal(value(model, batch), value(model, other))


def test_a_frame_without_a_reading_is_the_forecast_of_it() -> None:
    info = grid_info()
    model, batch = small("predrnn", info).train(), windows(info)
    nothing = torch.zeros_like(batch.target, dtype=torch.bool)
    unseen = value(model, batch._replace(target_mask=nothing))
    model.progresses(1.0)
    assert torch.equal(unseen, value(model, batch))


@pytest.mark.parametrize("name", _RECURRENT)
def test_the_loss_covers_the_frames_of_the_history(name: str) -> None:
    info = grid_info()
    model, batch = small(name, info), windows(info)
    forecast = model(batch)
    assert forecast.aux is not None
    terms = model.loss_terms(forecast, batch)
    errors = torch.cat([forecast.aux["known"] - batch.history[:, 1:], forecast.value - batch.target], dim=1)
    torch.testing.assert_close(sum(terms.values()) * 6 / 11, errors.square().mean())


# --- PredRNN


def test_an_st_lstm_is_its_equations() -> None:
    torch.manual_seed(0)
    cell = STLSTMCell(3, 4, 3).double()
    x, h, c, m = (torch.randn(2, width, 5, 6, dtype=torch.float64) for width in (3, 4, 4, 4))
    w_x, w_h, w_m = cell.from_x.weight.chunk(7), cell.from_h.weight.chunk(4), cell.from_m.weight.chunk(3)

    def conv(of: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(of, weight, padding=1)

    i, f, g = (conv(x, w_x[n]) + conv(h, w_h[n]) for n in range(3))
    i2, f2, g2 = (conv(x, w_x[3 + n]) + conv(m, w_m[n]) for n in range(3))
    c_next = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
    m_next = torch.sigmoid(f2 + 1) * m + torch.sigmoid(i2) * torch.tanh(g2)
    memories = torch.cat([c_next, m_next], dim=1)
    o = torch.sigmoid(conv(x, w_x[6]) + conv(h, w_h[3]) + conv(memories, cell.from_memories.weight))
    expected = (o * torch.tanh(F.conv2d(memories, cell.mix.weight)), c_next, m_next)
    for found, wanted in zip(cell(x, h, c, m), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_frames_are_folded_and_unfolded(patch: int) -> None:
    model = small("predrnn", grid_info((2, 8, 8)), patch=patch)
    assert isinstance(model, PredRNN)
    frame = torch.randn(3, 2, 8, 8)
    assert model.fold(frame).shape == (3, 2 * patch**2, 8 // patch, 8 // patch)
    assert torch.equal(model.unfold(model.fold(frame)), frame)


# --- MIM


def test_at_the_first_frame_mim_has_no_difference() -> None:
    """The second frame follows from the first alone, so the difference units have not been read yet; the third has a difference."""
    info = grid_info()
    model, batch = small("mim", info, layers=3), windows(info)
    before = model(batch)
    for unit in model.differences:
        nn.init.zeros_(unit.from_x.weight)
        nn.init.zeros_(unit.from_h.weight)
    after = model(batch)
    assert torch.equal(before.aux["known"][:, 0], after.aux["known"][:, 0])
    assert not torch.allclose(before.aux["known"][:, 1], after.aux["known"][:, 1])


def test_a_block_of_mim_is_its_equations() -> None:
    torch.manual_seed(0)
    block = MIMBlock(4, 3, (5, 6)).double()
    unit = block.stationary
    for peephole in (unit.peephole_i, unit.peephole_f, unit.peephole_o):
        nn.init.normal_(peephole)
    x, d, h, c, s, m = torch.randn(6, 2, 4, 5, 6, dtype=torch.float64).unbind(0)

    def maps(of: Tensor, conv: nn.Module, count: int) -> tuple[Tensor, ...]:
        return F.conv2d(of, conv.weight, padding=1).chunk(count, dim=1)

    i_u, g_u, f_u, o_u = (a + b for a, b in zip(maps(d, unit.from_x, 4), maps(c, unit.from_h, 4), strict=True))
    s_next = torch.sigmoid(f_u + unit.peephole_f * s + 1) * s + torch.sigmoid(i_u + unit.peephole_i * s) * torch.tanh(g_u)
    kept = torch.sigmoid(o_u + unit.peephole_o * s_next) * torch.tanh(s_next)
    i_x, g_x, f_x, o_x = maps(x, block.from_x, 4)
    i_h, g_h, o_h = maps(h, block.from_h, 3)
    i_m, g_m, f_m, o_m = maps(m, block.from_m, 4)
    m_next = torch.sigmoid(f_x + f_m + 1) * m + torch.sigmoid(i_x + i_m) * torch.tanh(g_x + g_m)
    c_next = kept + torch.sigmoid(i_x + i_h) * torch.tanh(g_x + g_h)
    h_next = torch.sigmoid(o_x + o_h + o_m) * torch.tanh(F.conv2d(torch.cat([c_next, m_next], dim=1), block.mix.weight))
    for found, wanted in zip(block(x, d, h, c, s, m), (h_next, c_next, s_next, m_next), strict=True):
        torch.testing.assert_close(found, wanted)


def test_difference_units_of_mim_read_the_change_and_then_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    info = grid_info()
    model, batch = small("mim", info, layers=3), windows(info)
    states, read, given = [], [], []
    first = model.first.forward

    def recorded(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = first(*inputs)
        states.append(found[0])
        return found

    monkeypatch.setattr(model.first, "forward", recorded)
    for unit in model.differences:
        whole = unit.forward

        def spied(x: Tensor, h: Tensor, c: Tensor, whole: Callable[..., tuple[Tensor, Tensor]] = whole) -> tuple[Tensor, Tensor]:
            found = whole(x, h, c)
            read.append(x)
            given.append(found[0])
            return found

        monkeypatch.setattr(unit, "forward", spied)
    value(model, batch)
    for t in range(1, 11):  # the first frame has no difference
        assert torch.equal(read[2 * (t - 1)], states[t] - states[t - 1])
        assert torch.equal(read[2 * t - 1], given[2 * (t - 1)])


def test_frames_are_sampled_for_each_window_by_itself() -> None:
    info = grid_info((1, 4, 4))
    model, batch = small("predrnn", info).train(), windows(info, 64)
    model.progresses(0.25)
    torch.manual_seed(0)
    own, truth = torch.zeros(64, 1, 4, 4), torch.ones(64, 6, 1, 4, 4)
    taken = model._sampled(own, truth, None, 0)
    assert batch.target.shape[0] == 64
    assert taken.flatten(1).std(1).max() == 0, "a frame is true or forecast as a whole"
    assert 16 < taken[:, 0, 0, 0].sum() < 48


def test_mim_needs_two_frames() -> None:
    with pytest.raises(ConfigError, match=r"data\.history is 1"):
        create_config({"name": "mim"}).check(grid_info(history=1))


# --- MAU


def test_a_cell_of_mau_is_its_equations() -> None:
    torch.manual_seed(0)
    cell = MAUCell(MAUConfig(width=4, kernel=3, tau=3, residual=False), (5, 6)).double()
    t, s = (torch.randn(2, 4, 5, 6, dtype=torch.float64) for _ in range(2))
    earlier_t, earlier_s = (torch.randn(2, 3, 4, 5, 6, dtype=torch.float64) for _ in range(2))
    wanted = cell.query(s)
    scores = torch.stack([(earlier_s[:, j] * wanted).sum((1, 2, 3)) / (4 * 5 * 6) ** 0.5 for j in range(3)], dim=1)
    a = scores.exp() / scores.exp().sum(1, keepdim=True)
    torch.testing.assert_close(cell.similarities(s, earlier_s), a)
    torch.testing.assert_close(a.sum(1), torch.ones(2, dtype=torch.float64))
    trend = sum(a[:, j, None, None, None] * earlier_t[:, j] for j in range(3))
    u = torch.sigmoid(cell.gate(t))
    t_g, t_t, t_s = cell.from_t(u * t + (1 - u) * trend).split(4, dim=1)
    s_g, s_t, s_s = cell.from_s(s).split(4, dim=1)
    found_t, found_s = cell(t, s, earlier_t, earlier_s)
    torch.testing.assert_close(found_t, torch.sigmoid(t_g) * t_t + (1 - torch.sigmoid(t_g)) * s_t)
    torch.testing.assert_close(found_s, torch.sigmoid(s_g) * s_s + (1 - torch.sigmoid(s_g)) * t_s)
    cell.residual = True
    torch.testing.assert_close(cell(t, s, earlier_t, earlier_s)[1], found_s + s)


def test_equal_states_weigh_alike_and_one_state_weighs_all() -> None:
    cell = MAUCell(MAUConfig(width=4, kernel=3, tau=3), (5, 6))
    s = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(cell.similarities(s, s[:, None].expand(-1, 3, -1, -1, -1)), torch.full((2, 3), 1 / 3))
    assert cell.similarities(s, torch.randn(2, 1, 4, 5, 6)).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("tau", [1, 3])
def test_mau_remembers_as_many_states_as_it_weighs(tau: int) -> None:
    info = grid_info()
    model, batch = small("mau", info, tau=tau), windows(info)
    state = None
    for t in range(6):
        _, state = model.frame_by_frame(batch.history[:, t], state)
        for _, earlier_t, earlier_s in state:
            assert earlier_t.shape[1] == earlier_s.shape[1] == tau
    torch.testing.assert_close(state[0][1][:, -1], state[0][0])
