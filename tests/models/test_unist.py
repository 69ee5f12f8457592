"""UniST: its masks, its tokens, its prompts, and what a forecast may know."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stlab.data import load_dataset
from stlab.errors import ModelError
from stlab.study.spec import DataSpec
from stmodels.base import Forecaster
from stmodels.errors import ConfigError
from stmodels.foundation import unist
from stmodels.foundation.unist_masks import MASKS, draw, the_future
from stmodels.foundation.unist_prompts import Memory
from stmodels.layers.earlier_days import earlier_days
from stmodels.types import Batch, SeriesInfo
from tests.models.grids import grid_info, with_history
from tests.models.nodes import small, value, windows

_SIZES = (5, 6, 12, 3)
_CPU = torch.device("cpu")


def made(info: SeriesInfo | None = None, **fields: Any) -> Forecaster:
    return small("unist", info or grid_info(), **fields)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("n", [12, 7])
def test_a_mask_hides_as_many_patches_in_every_image(name: str, n: int) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        mask = MASKS[name]((5, 6, n, 3), 0.5, _CPU)
        assert mask.hidden.shape == (5, 6, n)
        assert (~mask.hidden).flatten(1).sum(1).tolist() == [mask.visible] * 5
        assert abs(mask.visible - 3 * n) <= 3


def test_the_four_masks() -> None:
    torch.manual_seed(0)
    at_random, tube, block, temporal = (MASKS[name](_SIZES, 0.5, _CPU).hidden for name in ("random", "tube", "block", "temporal"))
    assert not torch.equal(at_random[0], at_random[1])
    assert torch.equal(tube, tube[:1, :1].expand_as(tube))
    halves = [[False] * 6 + [True] * 6, [True] * 6 + [False] * 6]
    assert block[2, 4].tolist() in halves
    assert {tuple(MASKS["block"](_SIZES, 0.5, _CPU).hidden[0, 0].tolist()) for _ in range(20)} == {tuple(half) for half in halves}
    assert torch.equal(temporal[0, :, 0], torch.tensor([False] * 3 + [True] * 3))


def test_each_of_them_is_drawn() -> None:
    torch.manual_seed(0)
    drawn = [draw(_SIZES, 0.5, _CPU).hidden for _ in range(80)]

    def kind(mask: Tensor) -> str:
        if not torch.equal(mask, mask[:1].expand_as(mask)):
            return "random"
        if torch.equal(mask[0], the_future(_SIZES, 0.5, _CPU).hidden[0]):
            return "temporal"
        return "block" if mask[0, 0, :6].all() or mask[0, 0, 6:].all() else "tube"

    counts = Counter(kind(mask) for mask in drawn)
    assert counts.keys() == MASKS.keys()
    assert min(counts.values()) > 8


@pytest.mark.parametrize("name", MASKS)
def test_the_encoder_sees_the_visible_patches_and_they_come_back_to_their_places(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(), windows(grid_info())
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    monkeypatch.setattr(model, "encoder", Recorder())
    monkeypatch.setattr(model, "to_decoder", nn.Identity())
    tokens = model.tokens(torch.cat([batch.history, batch.target], dim=1))
    mask = MASKS[name]((len(tokens), 6, 12, 3), 0.5, _CPU)
    whole, place_and_time = model.encoded(tokens, mask, batch)
    assert seen[0].shape == (6, mask.visible, 16)
    torch.testing.assert_close((whole - place_and_time)[~mask.hidden], (tokens + place_and_time)[~mask.hidden])
    empty = (whole - place_and_time)[mask.hidden]
    torch.testing.assert_close(empty, model.mask_token.expand_as(empty))


def test_patches_are_put_together_again() -> None:
    info = grid_info((2, 8, 6))
    batch = windows(info)
    for channels in ("independent", "joint"):
        model = made(channels=channels)
        images = model._images(batch.history)
        patches = unist.patchify(images, 2, 2)
        assert torch.equal(model.frames(patches, batch), batch.history)


def test_without_prompts_a_forecast_is_the_first_stage_with_the_future_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(prompt="none"), windows(grid_info())
    forecast = value(model, batch)
    monkeypatch.setattr(unist, "draw", the_future)
    model.begin("pretrain")
    assert torch.equal(value(model, batch)[:, 6:], forecast)


def test_the_loss_of_the_first_stage_is_that_of_hidden_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made(), windows(grid_info())
    model.begin("pretrain")
    monkeypatch.setattr(unist, "draw", MASKS["tube"])
    torch.manual_seed(0)
    forecast = model(batch)
    assert forecast.aux is not None
    hidden = forecast.aux["hidden"]
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert hidden.float().mean().item() == pytest.approx(0.5)
    error = forecast.value - torch.cat([batch.history, batch.target], dim=1)
    torch.testing.assert_close(model.loss_terms(forecast, batch)["forecast"], error[hidden].square().mean())
    seen = torch.rand(batch.target.shape) < 0.6
    counted = hidden & torch.cat([torch.ones_like(batch.history, dtype=torch.bool), seen], dim=1)
    torch.testing.assert_close(
        model.loss_terms(forecast, batch._replace(target_mask=seen))["forecast"], error[counted].square().mean()
    )


def test_prompts_wait_for_the_training() -> None:
    model = made()
    model.begin("pretrain")
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"prompts"}
    model.begin("")
    assert all(p.requires_grad for p in model.parameters())


def test_a_memory_is_its_equation() -> None:
    torch.manual_seed(0)
    memory, x = Memory(5, 4).double(), torch.randn(3, 4, dtype=torch.float64)
    nn.init.normal_(memory.keys)
    scores = torch.tanh(x @ memory.query.weight.T + memory.query.bias) @ memory.keys.T
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    torch.testing.assert_close(memory.weights(x), weights)
    torch.testing.assert_close(memory(x), weights @ memory.values)


@pytest.mark.parametrize("prompt", ["s", "p", "c", "spc"])
def test_every_prompt_changes_the_forecast(prompt: str) -> None:
    batch = windows(grid_info())
    assert not torch.allclose(value(made(prompt=prompt), batch), value(made(prompt="none"), batch), atol=1e-5)


def test_the_period_is_that_of_the_steps_ahead() -> None:
    dataset = load_dataset(DataSpec(path="synthetic:city"))
    model = made(dataset.info, period="days", days=2)
    test = dataset.windows("test", past=2 * 24 - 6)
    batch = test.gather(torch.arange(0, len(test), 10))
    days = earlier_days(batch, 2, 24, 6)
    assert test.series is not None
    for window, start in enumerate(batch.start.tolist()):
        for k in (1, 2):
            first = start + 6 - 24 * k
            assert torch.equal(days[window, k - 1], test.series[first : first + 6])
    before = value(model, batch)
    assert batch.past is not None
    ahead_then = [start for k in (1, 2) for start in range(48 - 24 * k, 54 - 24 * k)]
    elsewhere = [step for step in range(42) if step not in ahead_then]
    past = batch.past.clone()
    past[:, elsewhere] = torch.randn_like(past[:, elsewhere])
    assert torch.equal(value(model, batch._replace(past=past)), before)
    past[:, ahead_then[-1]] += 1
    assert not torch.equal(value(model, batch._replace(past=past)), before)


def test_channels_by_themselves_do_not_see_each_other() -> None:
    info = grid_info()
    batch = windows(info)
    history = batch.history.clone()
    history[:, :, 0] += 1
    moved = with_history(batch, history)
    for channels, is_apart in (("independent", True), ("joint", False)):
        model = made(channels=channels, prompt="sc")
        assert torch.equal(value(model, moved)[:, :, 1], value(model, batch)[:, :, 1]) == is_apart


def test_a_shift_of_a_week_changes_nothing_and_one_of_an_hour_does() -> None:
    model, batch = made(), windows(grid_info())
    assert batch.history_slot is not None
    assert batch.target_slot is not None

    def later(hours: int) -> Batch:
        return batch._replace(history_slot=(batch.history_slot + hours) % 168, target_slot=(batch.target_slot + hours) % 168)

    assert torch.equal(value(model, later(168)), value(model, batch))
    assert not torch.equal(value(model, later(1)), value(model, batch))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "sx"}, r"model\.prompt=sx: give letters of spc"),
        ({"prompt": "ss"}, r"model\.prompt=ss"),
        ({"period": "none"}, r"model\.period is none"),
        ({"width": 18}, r"model\.width=18 must be a multiple of 4"),
        ({"time_patch": 4}, r"model\.time_patch=4 must divide data\.history=6"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=words):
        made(**fields)


def test_another_grid_is_read_in_the_first_stage_as_by_a_model_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unist, "draw", the_future)
    other = grid_info((3, 10, 5))
    model, made_for_it = made(prompt="none"), made(other, prompt="none")
    made_for_it.load_state_dict(model.state_dict())
    batch = windows(other)
    for one in (model, made_for_it):
        one.begin("pretrain")
    found = value(model, batch)
    assert found.shape == (len(batch.start), 12, 3, 10, 5)
    assert torch.equal(found, value(made_for_it, batch))


def test_a_grid_of_one_patch_cannot_be_pretrained() -> None:
    with pytest.raises(ModelError, match=r"model\.patch=4 makes one patch of a grid of 4×3"):
        made(grid_info((1, 4, 3)), patch=4)
    assert made(grid_info((1, 4, 3)), patch=4, pretrain_epochs=0, prompt="none")
