"""Embedding and decoders of a branch, token by token against their equations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor, nn

from stmodels.st_vfm.model import STVFM
from stmodels.types import SeriesInfo

Info = Callable[..., SeriesInfo]
Models = Callable[..., STVFM]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _affine(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


@pytest.mark.parametrize("video", [False, True])
def test_token_adaptation_is_linear_plus_a_position_for_each_place(
    video: bool, small_model: Models, small_video: str
) -> None:
    """Eq. 7-8: the same position in every frame; in one long sequence a position for each frame as well."""
    backbone = {"backbone": "videomae_s", "weights": small_video} if video else {}
    embed = small_model(temporal_context=False, **backbone).embed["st"]
    patches = _random(2, 3, 16, 16)
    expected = _affine(patches.double().numpy(), embed.adapt) + embed.position.detach().numpy()
    if video:
        expected = expected + embed.time.detach().numpy()
        assert embed.time.detach().std() > 0.01
    assert embed.position.detach().std() > 0.01
    np.testing.assert_allclose(embed(patches, None).detach().numpy(), expected, atol=1e-5)


def test_simple_adaptation_is_linear_alone(small_model: Models) -> None:
    embed = small_model(adaptation="simple", temporal_context=False).embed["st"]
    patches = _random(2, 3, 16, 16)
    expected = _affine(patches.double().numpy(), embed.adapt)
    np.testing.assert_allclose(embed(patches, None).detach().numpy(), expected, atol=1e-5)


def test_context_runs_over_time_at_each_place(small_model: Models) -> None:
    """Eq. 5-6: every spatial token is a sequence of T' of its own."""
    embed = small_model(calendar=True).embed["st"]
    patches, slots = _random(2, 3, 16, 16), torch.tensor([[0, 1, 2, 3, 4, 5], [50, 51, 52, 53, 54, 55]])
    out = embed(patches, slots)
    for window, place in itertools.product(range(2), (0, 7, 15)):
        steps = embed.project(patches[window, :, place])
        # A token of p = 2 steps carries the calendar of its first.
        steps = steps + embed.calendar.slot[slots[window, ::2] % 24] + embed.calendar.day[slots[window, ::2] // 24]
        expected = embed.adapt(embed.context(steps[None])[0]) + embed.position[place]
        torch.testing.assert_close(out[window, :, place], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("horizon", [6, 4, 10])
def test_transformer_decoder_reads_out_the_queries(horizon: int, small_model: Models, series_info: Info) -> None:
    """At each place: T' states and Q' queries over time, of which the last Q' become patches."""
    model = small_model(series_info(horizon=horizon), calendar=True, seasonal_residual=True)
    decode, width, ahead_frames = model.decode["st"], model.backbone.width, horizon // 2
    states, ahead = _random(2, 3, 16, width), _random(2, ahead_frames, 16, 16)
    slots = torch.arange(6 + horizon)[None] + torch.tensor([[3], [140]])
    out = decode(states, slots[:, :6], slots[:, 6:], ahead)
    assert out.shape == (2, horizon, 2, 8, 8)
    for window, row, column in itertools.product(range(2), (0, 3), (1, 2)):
        place = 4 * row + column
        tokens = torch.cat([decode.reduce(states[window, :, place]), decode.season(ahead[window, :, place])])
        first = slots[window, ::2]
        tokens = tokens + decode.calendar.slot[first % 24] + decode.calendar.day[first // 24]
        read = decode.readout(decode.time(tokens[None])[0, -ahead_frames:])
        block = out[window, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(block, read.view(horizon, 2, 2, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("horizon", [6, 4, 10])
def test_mlp_decoder_reads_every_frame_ahead_from_all_frames(horizon: int, small_model: Models, series_info: Info) -> None:
    model = small_model(series_info(horizon=horizon), decoder="mlp")
    decode = model.decode["st"]
    states = _random(2, 3, 16, model.backbone.width)
    out = decode(states, None, None).detach().numpy()
    for row, column in itertools.product(range(4), range(4)):
        joined = np.concatenate([states[:, frame, 4 * row + column].double().numpy() for frame in range(3)], axis=1)
        hidden = _affine(joined, decode.fc1)
        values = _affine(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, decode.readout)
        block = out[:, :, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(block, values.reshape(2, horizon, 2, 2, 2), atol=1e-5)


@pytest.mark.parametrize("horizon", [6, 4, 10])
def test_mlp_decoder_can_map_each_token_for_itself(horizon: int, small_model: Models, series_info: Info) -> None:
    """Frame q' of the forecast comes from frame q' mod T' of the history, each token for itself."""
    model = small_model(series_info(horizon=horizon), decoder="mlp", mlp_reads="same")
    decode = model.decode["st"]
    states = _random(2, 3, 16, model.backbone.width)
    out = decode(states, None, None).detach().numpy()
    hidden = _affine(states.double().numpy(), decode.fc1)
    values = _affine(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, decode.readout)
    for frame, row, column in itertools.product(range(horizon // 2), range(4), range(4)):
        block = out[:, 2 * frame : 2 * frame + 2, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = values[:, frame % 3, 4 * row + column].reshape(2, 2, 2, 2, 2)
        np.testing.assert_allclose(block, expected, atol=1e-5)
