"""UniST against its equations: positions, calendar, and each prompt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stmodels.foundation.unist import PatchCalendar, UniST
from stmodels.foundation.unist_config import UniSTConfig
from stmodels.foundation.unist_prompts import Memory, PromptNetwork, Seen
from stmodels.layers.encoder import EncoderLayer
from stmodels.rng import initialise
from tests.models.grids import grid_info

D, F, DAYS, DOWN, RIGHT = 8, 3, 2, 2, 3
"""Width, rows ahead, earlier days, patches down and to the right."""


def wave(place: int, number: int, width: int) -> float:
    angle = place / 10000 ** (2 * (number // 2) / width)
    return math.cos(angle) if number % 2 else math.sin(angle)


def test_a_position_is_half_its_row_and_half_its_column_and_its_time_over_all() -> None:
    model = UniST(UniSTConfig(width=D, encoder_heads=2, decoder_heads=2, prompt="none", period="none"), grid_info((1, 6, 4)))
    found = model.positions
    assert found.shape == (6, 3 * 2, D)
    for t, (i, j) in [(t, divmod(n, 2)) for t in range(6) for n in range(6)]:
        place = [wave(i, k, D // 2) for k in range(D // 2)] + [wave(j, k, D // 2) for k in range(D // 2)]
        expected = [place[k] + wave(t, k, D) for k in range(D)]
        torch.testing.assert_close(found[t, 2 * i + j], torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_calendar_of_a_patch_is_a_map_of_that_of_its_frames() -> None:
    calendar = PatchCalendar(24, D, 2).double()
    initialise(calendar, 0)
    slots = torch.tensor([[5, 6, 7, 30], [160, 161, 0, 1]])  # the first day and the second; the last of the week and the first
    frames = torch.stack([calendar.slot.weight[s % 24] + calendar.day.weight[s // 24] for s in slots.flatten()]).view(2, 2, 2 * D)
    torch.testing.assert_close(calendar(slots), frames @ calendar.merge.weight.T + calendar.merge.bias)


@pytest.fixture
def seen() -> Seen:
    torch.manual_seed(0)
    n = DOWN * RIGHT
    sizes = [(5, 6, n, D), (5, F, n, D), (5, DAYS, F, n, D), (5, 6, 2 * DOWN, 2 * RIGHT)]
    return Seen(*(torch.randn(size, dtype=torch.float64) for size in sizes))


def network(prompt: str) -> PromptNetwork:
    made = PromptNetwork(UniSTConfig(width=D, encoder_heads=2, decoder_heads=2, memory=7, prompt=prompt), 6, 2).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_torch(layer: EncoderLayer, x: Tensor) -> Tensor:
    """The layer of torch with the same weights."""
    same = nn.TransformerEncoderLayer(D, 4, D, 0.0, "relu", batch_first=True, dtype=torch.float64).eval()
    pairs = {
        "self_attn.in_proj": layer.qkv, "self_attn.out_proj": layer.project, "linear1": layer.feedforward[0],
        "linear2": layer.feedforward[3], "norm1": layer.norm1, "norm2": layer.norm2,
    }  # fmt: skip
    state = {}
    for name, module in pairs.items():
        join = "_" if name.endswith("in_proj") else "."
        state |= {f"{name}{join}weight": module.weight, f"{name}{join}bias": module.bias}
    same.load_state_dict(state)
    return same(x)


def answer(memory: Memory | None, x: Tensor) -> Tensor:
    assert memory is not None
    scores = torch.tanh(x @ memory.query.weight.T + memory.query.bias) @ memory.keys.T
    return scores.exp() / scores.exp().sum(-1, keepdim=True) @ memory.values


def test_closeness_asks_with_the_mean_of_a_place_over_time(seen: Seen) -> None:
    net = network("c")
    assert net.closeness is not None
    found = net(seen)
    for m, place in [(0, 0), (4, 5)]:
        state = by_torch(net.closeness, seen.tokens[m, :, place][None])[0].mean(0)
        expected = answer(net.time_memory, state) + seen.place_and_time[m, :, place]
        torch.testing.assert_close(found[m, :, place], expected)


def test_the_period_asks_with_the_mean_of_a_token_over_days(seen: Seen) -> None:
    net = network("p")
    assert net.period is not None
    assert seen.earlier is not None
    found = net(seen)
    for m, row, place in [(0, 0, 0), (4, 2, 5)]:
        state = by_torch(net.period, seen.earlier[m, :, row, place][None])[0].mean(0)
        torch.testing.assert_close(found[m, row, place], answer(net.time_memory, state))


def test_space_asks_for_every_cell_at_three_scales(seen: Seen) -> None:
    net = network("s")
    assert net.scales is not None
    assert net.to_patches is not None
    patches = []
    for scale, kernel in zip(net.scales, (1, 3, 5), strict=True):
        assert scale.kernel_size == (kernel, kernel)
        cells = nn.functional.conv2d(seen.frames, scale.weight, scale.bias, padding=kernel // 2)
        answers = answer(net.space_memory, cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        patches.append(nn.functional.conv2d(answers, net.to_patches.weight, net.to_patches.bias, stride=2))
    expected = (sum(patches) / 3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(net(seen), expected[:, None].expand(-1, F, -1, -1))


def test_all_prompts_are_their_sum_and_share_one_memory_of_time(seen: Seen) -> None:
    whole = network("spc")
    parts = []
    for letter in "spc":
        one = network(letter)
        one.load_state_dict(whole.state_dict(), strict=False)
        assert one.state_dict().keys() <= whole.state_dict().keys()
        parts.append(one(seen))
    torch.testing.assert_close(whole(seen), sum(parts))
