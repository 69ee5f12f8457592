"""A switch that changes neither parameters, nor output, nor the first optimiser step would be an error: every one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stlab.catalog import create_config
from stlab.training.loss import training_loss
from stmodels.st_vfm.config import STVFMConfig
from stmodels.st_vfm.model import STVFM
from stmodels.types import Batch, SeriesInfo

Info = Callable[..., SeriesInfo]
Batches = Callable[..., Batch]
Models = Callable[..., STVFM]

ALONE = {"flow": False, "cross_prompt_layers": 0}
SIMPLE = {**ALONE, "adaptation": "simple", "temporal_context": False, "peft": "none", "decoder": "mlp"}

# (field, the base it is changed from, its other value)
SWITCHES: list[tuple[str, dict[str, Any], Any]] = [
    ("backbone", {}, "vit_tiny_patch16_224"),
    ("weights_seed", {}, 1),
    ("flow_weight", {}, 0.9),
    ("use_cls", {}, True),
    ("patch", {}, 1),
    ("patch", {}, 4),
    ("temporal_patch", {}, 1),
    ("temporal_patch", {}, 3),
    ("adaptation", {**ALONE, "temporal_context": False}, "simple"),
    ("temporal_context", {}, False),
    ("temporal_context", ALONE, False),
    ("temporal_width", {}, 32),
    ("temporal_heads", {}, 2),
    ("temporal_layers", {}, 2),
    ("dropout", {}, 0.3),
    ("peft", {}, "none"),
    ("peft", {}, "lora"),
    ("peft", ALONE, "none"),
    ("rank", {}, 8),
    ("rank", {"peft": "lora"}, 8),
    ("flow", {"cross_prompt_layers": 0}, False),
    ("cross_prompt_layers", {}, 0),
    ("cross_prompt_layers", {}, 1),
    ("prompts", {}, 4),
    ("prompts", {}, "all"),
    ("decoder", {}, "mlp"),
    ("decoder", ALONE, "mlp"),
    ("weights_shuffled", {}, True),
    ("mlp_reads", {"decoder": "mlp"}, "same"),
    ("mlp_reads", SIMPLE, "same"),
    ("calendar", {}, True),
    ("calendar", {"temporal_context": False}, True),
    ("calendar", {"decoder": "mlp"}, True),
    ("seasonal_residual", {}, True),
    ("seasonal_level", {"seasonal_residual": True}, True),
    ("linear_base", {}, "ridge"),
    ("linear_base", {"seasonal_residual": True, "seasonal_level": True}, "ridge"),
    ("linear_base", SIMPLE, "ridge"),
    ("seasonal_residual", {"decoder": "mlp"}, True),
    ("seasonal_residual", SIMPLE, True),
]
# Not switches of a comparison on one data set; they have tests of their own.
ELSEWHERE = {"name", "weights", "pad"}

# A field that says it has no effect under a configuration must have none.
INERT: list[tuple[str, dict[str, Any], Any]] = [
    ("rank", {"peft": "none"}, 9),
    ("mlp_reads", {}, "same"),
    ("flow_weight", ALONE, 0.9),
    ("prompts", {"cross_prompt_layers": 0}, "all"),
    ("prompts", ALONE, 4),
    ("temporal_heads", SIMPLE, 2),
    ("temporal_layers", SIMPLE, 3),
    ("dropout", SIMPLE, 0.5),
]


def _first_step(model: STVFM, batch: Batch) -> dict[str, Tensor]:
    """All weights, the forecast and, after one step of AdamW in training mode, all weights again."""
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        state["forecast"] = model.eval()(batch).value
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    torch.manual_seed(0)
    terms = model.loss_terms(model.train()(batch), batch)
    training_loss(terms, model.config.loss_weights()).backward()
    optimiser.step()
    return state | {f"{name} after": p.detach() for name, p in model.named_parameters()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.fixture(scope="module")
def outcome(small_model: Models, series_info: Info, batch_of: Batches) -> Callable[..., dict[str, Tensor]]:
    """What a configuration comes to on a 16×8 grid: 8×4 tokens, more than there are prompts."""
    info = series_info(shape=(2, 16, 8))
    batch = batch_of(info)

    def run(**switches: Any) -> dict[str, Tensor]:
        return _first_step(small_model(info, **switches), batch)

    return run


def test_every_field_is_covered() -> None:
    fields = {field.name for field in dataclasses.fields(STVFMConfig)}
    assert {field for field, _, _ in SWITCHES} | ELSEWHERE == fields


def test_the_same_configuration_twice_is_the_same(outcome: Callable[..., dict[str, Tensor]]) -> None:
    assert _same(outcome(), outcome())


@pytest.mark.parametrize(("field", "base", "value"), SWITCHES)
def test_switch_makes_a_difference(
    field: str, base: dict[str, Any], value: Any, outcome: Callable[..., dict[str, Tensor]]
) -> None:
    assert f"model.{field}" not in STVFMConfig(**{"weights": "random", **base, field: value}).inert()
    assert not _same(outcome(**base), outcome(**{**base, field: value}))


@pytest.mark.parametrize(("field", "base", "value"), INERT)
def test_inert_field_makes_none(
    field: str, base: dict[str, Any], value: Any, outcome: Callable[..., dict[str, Tensor]]
) -> None:
    config = STVFMConfig(**{**base, field: value})
    assert f"model.{field}" in config.inert()
    assert _same(outcome(**base), outcome(**{**base, field: value}))


def test_lambda_weighs_the_flow_loss_in_the_first_step(
    small_model: Models, series_info: Info, batch_of: Batches
) -> None:
    info = series_info()
    batch = batch_of(info)
    none, half, one = (_first_step(small_model(info, flow_weight=weight), batch) for weight in (0.0, 0.5, 1.0))
    assert not _same(none, half)
    assert not _same(half, one)
    # λ = 0 keeps the branch: its prompts still teach the other, but its own decoder learns nothing.
    decoder, tokenizer = "decode.flow.readout.weight", "embed.flow.project.weight"
    assert torch.equal(none[f"{decoder} after"], none[decoder])
    assert not torch.equal(half[f"{decoder} after"], half[decoder])
    assert not torch.equal(none[f"{tokenizer} after"], none[tokenizer])


def test_ranks_left_open_are_filled_in() -> None:
    assert STVFMConfig().rank == 64
    assert STVFMConfig(peft="lora").rank == 8
    assert STVFMConfig(peft="lora", rank=3).rank == 3
    assert STVFMConfig(peft="none").rank is None
    assert create_config({"name": "st_vfm"}) == STVFMConfig()


def test_weights_seed_matters_to_random_weights_alone() -> None:
    assert "model.weights_seed" in STVFMConfig(weights="pretrained").inert()
    assert "model.weights_seed" in STVFMConfig(weights="a/file.pth").inert()
    assert "model.weights_seed" not in STVFMConfig(weights="random").inert()
    assert STVFMConfig(weights="a/file.pth").files() == ["a/file.pth"]
    assert STVFMConfig(weights="random").files() == STVFMConfig().files() == []
