"""ST-VLM against the equations in float64, transformers' own ViLT, and itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stlab.data import Dataset, load_dataset
from stlab.inspection.contract import CHECKS, Subject
from stlab.study.spec import DataSpec
from stmodels.baselines.config import BaselineConfig
from stmodels.baselines.model import Baseline
from stmodels.rng import initialise
from stmodels.st_vlm.config import STVLMConfig
from stmodels.st_vlm.image import ChannelMix, PatchBias
from stmodels.st_vlm.model import STVLM
from stmodels.st_vlm.vilt import canvas_positions, create_vilt

Make = Callable[..., Any]

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "w/o SAF": {"fusion": "joint"},
    "w/o FT": {"lora_rank": 0},
    "w/o image": {"fusion": "none"},
    "w/o text": {"prompt": "none"},
    "w/o dtw": {"channels": ("cross_correlation", "spectrum")},
    "time of day": {"time_of_day": True},
}


def test_saf_at_the_start_is_plain_cross_attention(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    """A = 0 and LoRA's B = 0: torch's own multi-head attention with ViLT's weights."""
    model = small_vlm(lora_rank=8)
    layer, inner = model.vilt.layers[0], model.vilt.layers[0].layer.attention
    x, y = torch.randn(2, 50, 64), torch.randn(2, 5, 64)
    image = model.canvas(sensor_batch(sensor_info()).history.squeeze(-1))
    bias = model.bias(image, 40, 10)
    assert bias.abs().max() == 0
    ours = layer(x, y, bias)
    projections = [getattr(p, "base_layer", p) for p in (inner.attention.query, inner.attention.key, inner.attention.value)]
    attended, _ = torch.nn.functional.multi_head_attention_forward(
        *(layer.layer.layernorm_before(t).transpose(0, 1) for t in (x, y, y)), 64, 4,
        torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]), None, None, False, 0.0,
        inner.output.dense.weight, inner.output.dense.bias, need_weights=False,
    )  # fmt: skip
    hidden = x + attended.transpose(0, 1)
    expected = hidden + layer.layer.output.dense(layer.layer.intermediate(layer.layer.layernorm_after(hidden)))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("squash", ["tanh", "none"])
@pytest.mark.parametrize("gain", [False, True])
def test_bias_is_a_convolution_of_each_row(squash: str, gain: bool) -> None:
    bias = PatchBias(32, squash, gain).double()  # sums of 3072 terms: two orders of adding differ by 1e-5 in float32
    with torch.no_grad():
        bias.weight.normal_()
        bias.bias.normal_()
        if bias.gain is not None:
            assert bias.gain == 1
            bias.gain.fill_(2.5)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    made = bias(image, nodes=40, prompt=3)
    assert made.shape == (2, 43, 5)
    assert made[:, :, 0].abs().max() == 0  # class column
    assert made[:, 40:].abs().max() == 0  # prompt rows
    rows = torch.stack([torch.nn.functional.conv1d(image[:, :, i], bias.weight, bias.bias, stride=32) for i in range(40)], dim=1)
    expected = (torch.tanh(rows.squeeze(2)) if squash == "tanh" else rows.squeeze(2)) * (2.5 if gain else 1)  # (B, 40, 2)
    for patch_row in range(2):
        torch.testing.assert_close(made[:, :40, 1 + 2 * patch_row : 3 + 2 * patch_row], expected)


def test_mix_starts_as_the_identity() -> None:
    mix = ChannelMix()
    mix.reset_parameters()
    image = torch.randn(2, 3, 9, 9)
    assert torch.equal(mix(image), image)


def test_positions_are_vilts_own() -> None:
    """Larger canvases get the positions that ViLT's own embedding gives an image of that size."""
    vilt = create_vilt("vilt_test", "random", 0).double()
    side = 14
    pixels = torch.zeros(1, 3, 32 * side, 32 * side, dtype=torch.float64)
    torch.manual_seed(0)
    tokens, _, (order, _) = vilt.embeddings.visual_embed(pixels, torch.ones(1, 32 * side, 32 * side, dtype=torch.long), -1)
    order = (order[0, :, 0] * side + order[0, :, 1]).argsort()  # it draws patches in random order
    positions = tokens[:, 1:][:, order] - vilt.embeddings.patch_embeddings.projection.bias
    ours = canvas_positions(vilt.embeddings.position_embeddings.detach(), side, 12)
    torch.testing.assert_close(ours[:, 1:], positions)
    small = canvas_positions(vilt.embeddings.position_embeddings.detach(), 3, 12)
    native = vilt.embeddings.position_embeddings[0, 1:].view(12, 12, -1)
    assert torch.equal(small[0, 1:], native[:3, :3].reshape(9, -1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_leave_the_frozen_weights_alone(variant: str, small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    model = small_vlm(**VARIANTS[variant])
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = sensor_batch(sensor_info())
    for _ in range(3):  # A and B of LoRA: the first step moves only B, the second both
        optimiser.zero_grad(set_to_none=True)
        sum(model.loss_terms(model(batch), batch).values()).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # DDP asks for it
        optimiser.step()
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
        else:
            assert not torch.equal(parameter, before[name]), name
    assert ("lora_A" in " ".join(before)) == (model.config.lora_rank > 0)


@pytest.mark.parametrize("fusion", ["saf", "joint"])
def test_permuting_nodes_permutes_the_forecast(fusion: str, small_vlm: Make, sensor_info: Make, sensor_batch: Make, stir: Make) -> None:
    """With the image held fixed, nodes have no order but their embeddings and their rows of the bias."""
    model = small_vlm(fusion=fusion)
    stir(model)
    history = sensor_batch(sensor_info()).history.squeeze(-1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    image = model.canvas(history)
    straight = _states(model, history, image, torch.arange(40))
    with torch.no_grad():
        model.encode.node.copy_(model.encode.node[order])
    permuted = _states(model, history[..., order], image, order)
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-4, atol=1e-5)


def _states(model: STVLM, history: torch.Tensor, image: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    text = model.vilt.embed_nodes(model.encode(history[..., None], None))
    if model.bias is None:
        return model.understand(text, image)
    bias = copy.deepcopy(model.bias)
    model.bias.forward = lambda image, nodes, prompt: bias(image, nodes, prompt)[:, order]  # type: ignore[method-assign]
    states = model.understand(text, image)
    del model.bias.forward
    return states


def test_the_target_is_not_read(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    model = small_vlm()
    batch = sensor_batch(sensor_info())
    other = batch._replace(target=torch.full_like(batch.target, 1e6))
    assert torch.equal(model(batch).value, model(other).value)


def test_loss_is_the_masked_mean_absolute_error(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    model, batch = small_vlm(), sensor_batch(sensor_info())
    mask = torch.rand(batch.target.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    forecast = model(batch)
    loss = model.loss_terms(forecast, batch._replace(target_mask=mask))["forecast"].item()
    error = np.abs(forecast.value.detach().numpy().astype(np.float64) - batch.target.numpy())
    assert loss == pytest.approx(error[mask.numpy()].mean(), rel=1e-6)


def test_it_overfits_eight_windows(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    info = sensor_info(10)
    model, batch = small_vlm(info, hidden=32), sensor_batch(info, size=8)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(300):
        optimiser.zero_grad(set_to_none=True)
        loss = model.loss_terms(model(batch), batch)["forecast"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    copied = (batch.history[:, -1:] - batch.target).abs().mean().item()
    assert losses[-1] < 0.25 * copied < losses[0]


@pytest.mark.parametrize("nodes", [1, 2, 46, 128, 207, 307, 675, 883])
def test_networks_of_every_size_run(nodes: int, small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    info = sensor_info(nodes)
    model, batch = small_vlm(info), sensor_batch(info, size=1)
    forecast = model(batch)
    assert forecast.value.shape == (1, 12, nodes, 1)
    model.loss_terms(forecast, batch)["forecast"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_channel_left_out_changes_nothing(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    """Its pixels are the padding's, whatever the readings are."""
    model = small_vlm(channels=("dtw",))
    image = model.canvas(sensor_batch(sensor_info()).history.squeeze(-1))
    assert image[:, 1:].abs().max() == 0
    assert image[:, 0, :40, :40].abs().max() > 0
    seen = model.model_input(sensor_batch(sensor_info()))
    assert seen.channels == ("dtw",)
    assert seen.image.shape == (2, 1, 40, 40)
    assert small_vlm(fusion="none").model_input(sensor_batch(sensor_info())) is None


def test_bf16_is_close(small_vlm: Make, sensor_info: Make, sensor_batch: Make) -> None:
    model, batch = small_vlm(), sensor_batch(sensor_info())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch).value
    torch.testing.assert_close(half.float(), model(batch).value, rtol=0.1, atol=0.05)


def test_variants_share_their_initial_weights(small_vlm: Make) -> None:
    """Modules that two variants have in common start alike: seeds pair."""
    full, other = small_vlm(seed=3), small_vlm(seed=3, fusion="joint", prompt="none")
    shared = dict(other.named_parameters())
    for name, parameter in full.named_parameters():
        if name in shared:
            assert torch.equal(parameter, shared[name]), name


BEYOND = {"seasonal_residual": True, "seasonal_level": True, "linear_base": "ridge"}


@pytest.fixture(scope="module")
def streets() -> Dataset:
    """The cells of the generated city as 64 nodes, hourly."""
    return load_dataset(DataSpec(path="synthetic:city", family="sensors"))


@pytest.mark.parametrize("clause", ["shapes", "gradients", "no future", "windows apart", "micro-batches", "seeds", "components", "season"])
def test_the_contract_with_everything_beyond_the_paper(streets: Dataset, clause: str) -> None:
    assert CHECKS[clause](Subject({**STVLMConfig.SMALL, "name": "st_vlm", **BEYOND}, streets)) is None


def test_beside_a_ridge_the_forecast_starts_as_the_ridge(streets: Dataset) -> None:
    model = STVLM(STVLMConfig(**{**STVLMConfig.SMALL, **BEYOND}), streets.info)
    reference = Baseline(BaselineConfig(name="ridge"), streets.info)
    initialise(model, 0)
    for one in (model, reference):
        one.fit(streets.windows("train"))
        one.choose(streets.windows("validation"), "mae")
    batch = streets.windows("test").gather(torch.arange(0, 60, 20))
    torch.testing.assert_close(model.eval()(batch).value, reference(batch).value)
    with torch.no_grad():
        model.decode.read.bias.fill_(2.0)
        ahead = model.eval()(batch).value - reference(batch).value
    torch.testing.assert_close(ahead, torch.full_like(ahead, 2 * streets.info.residual_std), atol=1e-4, rtol=1e-4)


def test_a_season_is_read_at_its_own_step(streets: Dataset) -> None:
    """Another profile at one step ahead changes the forecast of that step and of those that follow it, and of none before."""
    model = STVLM(STVLMConfig(**{**STVLMConfig.SMALL, "seasonal_residual": True}), streets.info).eval()
    initialise(model, 0)
    batch = streets.windows("test").gather(torch.arange(2))
    profile = batch.target_profile.clone()
    profile[:, 5] += 1
    with torch.no_grad():
        moved = (model(batch._replace(target_profile=profile)).value - model(batch).value).abs().amax((0, 2, 3))
    assert moved[:5].max() == 0
    assert moved[5] > 0
