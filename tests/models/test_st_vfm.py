"""ST-VFM as a whole: sizes, what is frozen, what is learnt, how it is put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from stlab.data import Dataset
from stlab.inspection.contract import CHECKS, Subject
from stlab.training.checkpoint import trainable_state
from stmodels.baselines.config import BaselineConfig
from stmodels.baselines.model import Baseline
from stmodels.layers.season import season_levels
from stmodels.rng import initialise
from stmodels.st_vfm.config import STVFMConfig
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

Info = Callable[..., SeriesInfo]
Batches = Callable[..., Batch]
Models = Callable[..., STVFM]

STUDIES = Path(__file__).parents[2] / "search_spaces"


def _loss(model: STVFM, batch: Batch, flow_weight: float = 0.5) -> Tensor:
    terms = model.loss_terms(model(batch), batch)
    return terms["forecast"] + flow_weight * terms.get("flow", torch.zeros(()))


def _steps(model: STVFM, batch: Batch, count: int, lr: float = 3e-3) -> list[float]:
    """Losses of ``count`` steps of AdamW."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(count):
        optimiser.zero_grad()
        loss = _loss(model.train(), batch)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- sizes ----------------------------------------------------------------------------------------------------------


def _transformer(width: int, hidden: int, depth: int) -> int:
    """Attention 4 D² + 4 D, MLP 2 D·M + M + D, two norms 4 D."""
    return depth * (4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width)


def _by_hand(variant: str, channels: int) -> int:
    """Trainable parameters of a variant with DINOv2-S on Crowd, (C, 16, 20), from the module table alone."""
    d, wide, s, p, steps, tokens = 128, 384, 2, 2, 3, 8 * 10
    values = p * channels * s * s
    encoder = steps * d + _transformer(d, 4 * d, 3) + 2 * d
    decoder = (wide * d + d) + (2 * steps * d + _transformer(d, 4 * d, 3) + 2 * d) + (d * values + values)
    position = tokens * wide
    adapters = 12 * (2 * wide * 64 + 64 + wide)
    if variant == "#1":
        return (values * wide + wide) + (steps * wide * d + d) + (d * steps * values + steps * values)
    if variant == "#2":
        return (values * wide + wide) + position + decoder
    branch = (values * d + d) + encoder + (d * wide + wide) + position + decoder
    cross = 2 * 2 * _transformer(wide, 4 * wide, 1)
    return {"#3": branch, "#4": branch + adapters, "full": 2 * branch + adapters + cross}[variant]


@pytest.fixture(scope="module", params=[1, 2])
def crowd(request: pytest.FixtureRequest, series_info: Info) -> SeriesInfo:
    return series_info(shape=(request.param, 16, 20), slots_per_day=48)


@pytest.mark.parametrize(
    ("name", "millions"), [("#1", None), ("#2", 0.7), ("#3", 1.3), ("#4", 1.9), ("full", 10.3)]
)
def test_parameters_on_crowd(
    name: str, millions: float | None, crowd: SeriesInfo, variants: dict[str, dict[str, Any]]
) -> None:
    model = STVFM(STVFMConfig(weights="random", **variants[name]), crowd)
    trainable = _trainable(model)
    assert trainable == _by_hand(name, crowd.shape[0])
    if millions is not None:
        assert round(trainable / 1e6, 1) == millions
    # Twelve blocks of DINOv2-S with two layer scales each, and the final norm.
    frozen = sum(p.numel() for p in model.parameters()) - trainable
    assert frozen == _transformer(384, 1536, 12) + 12 * 2 * 384 + 2 * 384
    assert round(frozen / 1e6, 1) == 21.3


def test_study_file_has_these_variants(variants: dict[str, dict[str, Any]]) -> None:
    study = yaml.safe_load((STUDIES / "st_vfm_ablation.yaml").read_text(encoding="utf-8"))
    assert {name: overrides.get("model", {}) for name, overrides in study["variants"].items()} == variants


# --- frozen, and learnt through --------------------------------------------------------------------------------------


@pytest.fixture(params=["variant", "lora", "cls", "video"])
def tuned_switches(
    request: pytest.FixtureRequest, variant: dict[str, Any], small_video: str
) -> dict[str, Any]:
    """Every variant: as it is, with LoRA, with the class token, on a small VideoMAE."""
    if request.param == "lora":
        return {**variant, "peft": "lora"}
    if request.param == "cls":
        return {**variant, "use_cls": True}
    if request.param == "video":
        return {**variant, "backbone": "videomae_s", "weights": small_video}
    return variant


def test_training_moves_every_trainable_weight_and_no_frozen_one(
    tuned_switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    model = small_model(**tuned_switches)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    _steps(model, batch_of(series_info()), 3)
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same != parameter.requires_grad, name
        assert parameter.requires_grad or parameter.grad is None, name
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"backbone"}


def test_gradient_reaches_the_tokenizer_through_the_backbone(
    tuned_switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """Cut behind the backbone, nothing arrives: so what arrives came through it."""
    model = small_model(**tuned_switches)
    batch = batch_of(series_info())
    first = [e.project if e.project is not None else e.adapt for e in model.embed.values()]
    _loss(model, batch).backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in first)
    model.zero_grad(set_to_none=True)
    model.backbone.register_forward_hook(lambda module, args, out: out.detach())
    _loss(model, batch).backward()
    assert all(layer.weight.grad is None for layer in first)


@pytest.mark.parametrize("name", ["#2", "#3", "#4", "full"])
def test_overfits_eight_windows(
    name: str, variants: dict[str, dict[str, Any]], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """Targets are noise of variance 1: only a model that can tell the windows apart gets near 0."""
    info = series_info(shape=(1, 4, 4))
    model = small_model(info, **variants[name], temporal_width=64)
    losses = _steps(model, batch_of(info, size=8), 250, lr=3e-3)
    assert losses[0] > 0.8
    assert losses[-1] < 0.02


# --- how it is put together --------------------------------------------------------------------------------------------


def test_adapters_start_as_the_frozen_backbone(
    variants: dict[str, dict[str, Any]], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """#4 at step 0 is #3, number for number; so is LoRA."""
    batch = batch_of(series_info())
    three = small_model(**variants["#3"])(batch).value
    for peft in ("adapter", "lora"):
        assert torch.equal(small_model(**{**variants["#4"], "peft": peft})(batch).value, three)


def test_both_branches_go_through_in_one_pass(small_model: Models, series_info: Info, batch_of: Batches) -> None:
    model = small_model()
    calls: list[tuple[int, ...]] = []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    model(batch_of(series_info(), size=3))
    # Two branches × 3 windows × T' = 3 frames of 16 tokens.
    assert calls == [(18, 16, 64)] * 2


def test_first_branch_is_the_readings_second_the_scaled_flow(
    small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    model = small_model(patch=1, temporal_patch=1)
    batch = batch_of(series_info())
    seen: dict[str, Tensor] = {}
    for name, embedding in model.embed.items():
        embedding.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    model(batch)
    cells = batch.history.permute(0, 1, 3, 4, 2).flatten(2, 3)  # (B, T, H·W, C)
    assert torch.equal(seen["st"], cells)
    assert not seen["flow"][:, 0].any()
    torch.testing.assert_close(seen["flow"][:, 1:], (cells[:, 1:] - cells[:, :-1]) / 0.7)


def test_loss_terms_are_mean_squared_errors(small_model: Models, series_info: Info, batch_of: Batches) -> None:
    model, batch = small_model(), batch_of(series_info())
    forecast = model(batch)
    terms = model.loss_terms(forecast, batch)
    assert set(terms) == {"forecast", "flow"}
    value, target = forecast.value.detach().double().numpy(), batch.target.double().numpy()
    assert terms["forecast"].item() == pytest.approx(((value - target) ** 2).mean(), rel=1e-5)
    ahead = target.copy()
    ahead[:, 1:] -= target[:, :-1]
    ahead[:, 0] -= batch.history[:, -1].double().numpy()
    assert terms["flow"].item() == pytest.approx(((forecast.aux["flow"].detach().double().numpy() - ahead) ** 2).mean(), rel=1e-5)
    assert set(small_model(flow=False, cross_prompt_layers=0).loss_terms(model(batch)._replace(aux=None), batch)) == {
        "forecast"
    }


def test_the_flow_of_a_seasonal_residual_is_that_of_the_residual(small_model: Models, series_info: Info, batch_of: Batches) -> None:
    model, batch = small_model(seasonal_residual=True, patch=1, temporal_patch=1), batch_of(series_info(residual_flow_std=0.3))
    seen: dict[str, Tensor] = {}
    model.embed["flow"].register_forward_pre_hook(lambda _, args: seen.__setitem__("flow", args[0]))
    forecast = model(batch)
    before = (batch.history - batch.history_season).double()
    after = torch.cat([before[:, -1:], (batch.target - batch.target_season).double()], dim=1)
    cells = before.permute(0, 1, 3, 4, 2).flatten(2, 3)
    torch.testing.assert_close(seen["flow"][:, 1:].double(), cells.diff(dim=1) / model.flow_std, atol=1e-5, rtol=1e-4)
    expected = (forecast.aux["flow"].double() - after.diff(dim=1)).square().mean()
    assert model.loss_terms(forecast, batch)["flow"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("switches", [{}, {"seasonal_residual": True, "seasonal_level": True}, {"decoder": "mlp"}], ids=str)
def test_beside_a_ridge_the_forecast_starts_as_the_ridge(bikes: Dataset, small_model: Models, switches: dict[str, Any]) -> None:
    model = small_model(bikes.info, linear_base="ridge", **switches).eval()
    reference = Baseline(BaselineConfig(name="ridge"), bikes.info)
    train, validation = bikes.windows("train"), bikes.windows("validation")
    batch = bikes.windows("test").gather(torch.arange(0, 190, 40))
    for one in (model, reference):
        one.fit(train)
        chosen = one.choose(validation, "rmse")
    torch.testing.assert_close(model(batch).value, reference(batch).value)
    assert model.config.chooses()
    assert chosen["penalty"] >= 1
    for name, value in trainable_state(model).items():
        if "coefficients" in name:
            assert value.abs().sum() > 0, "a checkpoint holds what was fitted"


_SAYS_NOTHING_HERE = {"information", "inputs", "network", "odd sizes", "parameters", "pretraining", "traced"}


@pytest.mark.parametrize("clause", sorted(CHECKS.keys() - _SAYS_NOTHING_HERE - {"learning"}))
def test_the_contract_with_everything_beyond_the_paper(city: Dataset, clause: str) -> None:
    """But that a batch is learnt: beside a ridge there is little left to learn."""
    beyond = {"calendar": True, "seasonal_residual": True, "seasonal_level": True, "linear_base": "ridge"}
    assert CHECKS[clause](Subject({**STVFMConfig.SMALL, "name": "st_vfm", **beyond}, city)) is None


def test_the_level_is_how_much_busier_than_its_season_the_city_is(bikes: Dataset) -> None:
    """Twice the season everywhere: all three deviations are one, where nothing is quiet."""
    batch = bikes.windows("test").gather(torch.arange(3))
    zero = bikes.info.zero
    doubled = batch._replace(history=zero + 2 * (batch.history_season - zero))
    levels = season_levels(doubled, bikes.info._replace(residual_std=1e-9))
    busy = (batch.history_season - zero).sum(1, keepdim=True).expand_as(levels[0]) > 0.01
    for level in levels:
        torch.testing.assert_close(level[busy], (batch.target_profile - zero)[busy], rtol=1e-4, atol=1e-5)


def test_seasonal_residual_forecasts_the_difference_to_the_season(
    small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    """With a readout of zero the forecast is the season; with a bias of one, one residual deviation above it."""
    model, batch = small_model(seasonal_residual=True), batch_of(series_info())
    readout = model.decode["st"].readout
    nn.init.zeros_(readout.weight)
    nn.init.zeros_(readout.bias)
    assert torch.equal(model(batch).value, batch.target_season)
    nn.init.ones_(readout.bias)
    torch.testing.assert_close(model(batch).value, batch.target_season + 0.4)


def test_windows_of_a_batch_do_not_meet(
    tuned_switches: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    model = small_model(**tuned_switches).eval()
    batch = batch_of(series_info(), size=4)
    alone = Batch(*(None if field is None else field[2:3] for field in batch))
    with torch.no_grad():
        torch.testing.assert_close(model(batch).value[2:3], model(alone).value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("history", "horizon"), [(6, 6), (4, 8), (8, 2)])
def test_history_and_horizon_of_any_length(
    history: int, horizon: int, variant: dict[str, Any], small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    info = series_info(history=history, horizon=horizon)
    batch = batch_of(info)
    forecast = small_model(info, **variant)(batch)
    assert forecast.value.shape == batch.target.shape
    assert (forecast.aux is not None) == variant.get("flow", True)
    assert forecast.aux is None or forecast.aux["flow"].shape == batch.target.shape


@pytest.mark.parametrize("name", ["dinov2_s", "clip_b", "deit_b", "videomae_s", "vit_tiny_patch16_224"])
def test_every_backbone_carries_the_full_model(
    name: str, small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    info = series_info(shape=(1, 4, 4))
    model = small_model(info, backbone=name, cross_prompt_layers=1)
    batch = batch_of(info, size=1)
    assert model(batch).value.shape == batch.target.shape
    tokens, width = 4, model.backbone.width
    assert model.embed["st"].position.shape == (tokens, width)
    # Only where all frames are one sequence does the backbone need to be told the time.
    assert (model.embed["st"].time is not None) == (name == "videomae_s")
    if name == "videomae_s":
        assert model.embed["st"].time.shape == (3, 1, width)


def test_initialise_can_be_repeated(small_model: Models, series_info: Info, batch_of: Batches) -> None:
    model, batch = small_model(), batch_of(series_info())
    first = model(batch).value
    _steps(model, batch, 1)
    assert not torch.equal(model(batch).value, first)
    initialise(model, 0)
    assert torch.equal(model(batch).value, first)


def test_missing_readings_are_no_part_of_the_loss(small_model: Any, batch_of: Any, series_info: Any) -> None:
    info = series_info()
    batch = batch_of(info)
    mask = torch.rand(batch.target.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    spoilt = batch._replace(target=torch.where(mask, batch.target, 1e6), target_mask=mask)
    model = small_model(info)
    forecast = model(batch)
    error = (forecast.value - batch.target).detach().double().numpy()
    terms = model.loss_terms(forecast, spoilt)
    assert terms["forecast"].item() == pytest.approx((error[mask.numpy()] ** 2).mean(), rel=1e-5)
    # A flow between two readings is known only where both are.
    readings = np.concatenate([batch.history[:, -1:], batch.target], axis=1).astype(np.float64)
    flow_error = forecast.aux["flow"].detach().double().numpy() - np.diff(readings, axis=1)
    there = np.concatenate([np.ones_like(mask[:, :1]), mask], axis=1)
    known = there[:, 1:] & there[:, :-1]
    assert terms["flow"].item() == pytest.approx((flow_error[known] ** 2).mean(), rel=1e-5)
