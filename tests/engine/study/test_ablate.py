"""Generated ablations against the same ones typed by hand, what is refused, and switches that do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab import catalog
from stlab.errors import StudyError
from stlab.execution.noop_variants import effect_of_trial, looks_same, refuse_noop_variants
from stlab.execution.run_study import plan_study
from stlab.study.file import dump_study, parse
from stlab.study.plan import DataFacts, Plan, make_plan
from stlab.study.source import StudySource
from stlab.study.spec import DataSpec
from stmodels.st_vlm.config import STVLMConfig
from stmodels.types import SeriesInfo

BASE = "name: a\nbase:\n  data: {path: grid.npz}\n  model: {name: st_vfm, backbone: vit_test, weights: random}\n"


def facts(data: DataSpec) -> DataFacts:
    """Eight weeks of hours on 16×8 cells, or on 200 sensors."""
    shape = (2, 16, 8) if data.family == "grid" else (200, 1)
    info = SeriesInfo(data.family, shape, data.history, data.horizon, 24, 0.1, 5, 0.1, -1.0, 900)
    return DataFacts("bikes", "c0ffee", False, False, {"family": data.family}, info)


def planned(text: str, *overrides: str) -> Plan:
    source = StudySource.from_text(text, "a.yaml", ["baselines=[]", *overrides])
    return make_plan(parse(source), facts, source)


def ids(plan: Plan) -> dict[str, str]:
    return {trial.spec.variant: trial.trial_id for trial in plan.trials}


def ablate(mode: str, *components: str) -> str:
    return f"{BASE}ablate: {{components: [{', '.join(components)}], mode: {mode}}}\n"


def test_leave_one_out_is_what_one_would_type() -> None:
    typed = """\
variants:
  full: {}
  w/o temporal_context: {model.temporal_context: false}
  w/o peft: {model: {peft: none}}
  w/o flow: {model: {flow: false, cross_prompt_layers: 0}}
  w/o cross_prompts: {model.cross_prompt_layers: 0}
  w/o flow_loss: {model.flow_weight: 0}
"""
    generated = ablate("leave_one_out", "temporal_context", "peft", "flow", "cross_prompts", "flow_loss")
    assert ids(planned(generated)) == ids(planned(BASE + typed))
    assert next(iter(ids(planned(generated)))) == "full"


def test_cumulative_ends_with_the_whole_model_and_makes_the_papers_rows() -> None:
    table3 = """\
variants:
  "#2": {model: {temporal_context: false, peft: none, flow: false, cross_prompt_layers: 0}}
  "#3": {model: {peft: none, flow: false, cross_prompt_layers: 0}}
  "#4": {model: {flow: false, cross_prompt_layers: 0}}
  full: {}
"""
    generated = ids(planned(ablate("cumulative", "temporal_context", "peft", "flow")))
    assert list(generated) == ["without all", "+ temporal_context", "+ temporal_context + peft", "full"]
    assert list(generated.values()) == list(ids(planned(BASE + table3)).values())


def test_pairs_leave_out_what_is_left_out_already() -> None:
    generated = ids(planned(ablate("pairs", "peft", "flow", "cross_prompts")))
    # Without the flow branch there are no cross-prompts: that pair is `w/o flow`.
    assert list(generated) == [
        "full", "w/o peft", "w/o flow", "w/o cross_prompts", "w/o peft, flow", "w/o peft, cross_prompts",
    ]  # fmt: skip
    assert len(set(generated.values())) == len(generated)


@pytest.mark.parametrize(("mode", "names"), [("pairs", ("flow_loss", "flow")), ("cumulative", ("cross_prompts", "flow_loss", "flow"))])
def test_the_order_of_the_components_makes_no_other_trials(mode: str, names: tuple[str, ...]) -> None:
    """Without the flow branch its loss is off already, whichever of both stands first."""
    there = planned(ablate(mode, *names))
    if mode == "pairs":
        assert list(ids(there)) == ["full", "w/o flow_loss", "w/o flow"]
    assert set(ids(planned(ablate(mode, *reversed(names)))).values()) >= {ids(there)["full"]}
    without = ids(planned(ablate("leave_one_out", "flow")))["w/o flow"]
    assert without in ids(there).values()


def test_a_component_may_be_named_by_its_switch() -> None:
    by_field = ids(planned(ablate("leave_one_out", "cross_prompt_layers")))
    assert by_field["w/o cross_prompt_layers"] == ids(planned(ablate("leave_one_out", "cross_prompts")))["w/o cross_prompts"]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (["temporal_contxt"], "has no component 'temporal_contxt'. Did you mean 'temporal_context'?"),
        (["calendar"], "'calendar' is already off in the base"),
        (["peft", "peft"], "'peft' appears twice"),
        (["cross_prompts", "cross_prompt_layers"], "is the component 'cross_prompts', which is already listed"),
    ],
)
def test_what_cannot_be_left_out_is_said(components: list[str], message: str) -> None:
    with pytest.raises(StudyError, match=r"a\.yaml:5"):
        planned(ablate("leave_one_out", *components))
    with pytest.raises(StudyError) as error:
        planned(ablate("leave_one_out", *components))
    assert message in str(error.value)


def test_without_something_to_switch_off_there_is_no_study() -> None:
    with pytest.raises(StudyError, match="at least 1"):
        planned(ablate("leave_one_out"))


def test_typed_and_generated_variants_stand_together_and_survive_being_written_out() -> None:
    text = ablate("leave_one_out", "peft") + "variants:\n  ours: {}\n  small: {model.rank: 4}\n"
    plan = planned(text)
    assert list(ids(plan)) == ["ours", "small", "w/o peft"]  # the one without overrides is the whole model
    again = planned(dump_study(plan.study))
    assert ids(again) == ids(plan)
    assert ids(planned(dump_study(parse(StudySource.from_text(text))))) == ids(plan)


def test_a_name_that_is_taken_is_refused() -> None:
    text = ablate("leave_one_out", "peft") + "variants:\n  w/o peft: {model.rank: 4}\n"
    with pytest.raises(StudyError, match="`ablate` generates a variant of this name with other settings"):
        planned(text)


def test_a_typed_twin_of_a_generated_variant_is_refused() -> None:
    text = ablate("leave_one_out", "peft") + "variants:\n  bare: {model.peft: none}\n"
    with pytest.raises(StudyError, match="the same trials as 'bare'"):
        planned(text)


def test_a_combination_that_the_model_refuses_is_named() -> None:
    text = ablate("pairs", "temporal_context", "decoder").replace("weights: random", "weights: random, calendar: true")
    with pytest.raises(StudyError, match=r"'w/o temporal_context, decoder' is not possible: model\.calendar"):
        planned(text)


def test_channels_go_one_by_one_and_the_last_is_the_image() -> None:
    sensors = "name: a\nbase:\n  data: {path: s.npz, family: sensors}\n  model: {name: st_vlm, backbone: vilt_test, weights: random}\n"
    plan = planned(sensors + "ablate: {components: [saf, lora, image, text, dtw, spectrum], mode: pairs}\n")
    models = {trial.spec.variant: trial.spec.model for trial in plan.trials}
    assert list(models["w/o dtw"]["channels"]) == ["cross_correlation", "spectrum"]
    assert list(models["w/o dtw, spectrum"]["channels"]) == ["cross_correlation"]
    assert models["w/o saf"]["fusion"] == "joint"
    assert "w/o saf, image" not in models  # without an image nothing is fused: that is `w/o image`
    assert STVLMConfig(channels=("dtw",)).components()["dtw"] == {"model.fusion": "none"}


@pytest.mark.parametrize("name", catalog.trainable_models())
def test_every_component_of_every_model_names_fields_there_are(name: str) -> None:
    config = catalog.create_config({"name": name})
    for off in config.components().values():
        for path in off:
            section, _, field = path.partition(".")
            assert section == "model"
            assert field in catalog.config_values(config)


TINY = "backbone: vit_test, weights: random, temporal_width: 8, temporal_heads: 2, temporal_layers: 1, rank: 2, prompts: 2"


def on_grid(path: Path, variants: str, extra: str = "") -> Plan:
    text = f"name: a\nbase:\n  data: {{path: {path}}}\n  model: {{name: st_vfm, {TINY}}}\nbaselines: []\n{variants}{extra}"
    source = StudySource.from_text(text, "a.yaml")
    return plan_study(parse(source), source)


@pytest.mark.parametrize(
    ("full", "idle"),
    [
        ("{}", "{model.pad: true}"),  # patches of 2 divide 4×4 cells
        ("{model.prompts: all}", "{model.prompts: 4}"),  # which are 4 tokens a frame
    ],
)
def test_a_switch_that_does_nothing_is_refused_by_name(small_grid: Path, full: str, idle: str) -> None:
    with pytest.raises(StudyError) as error:
        refuse_noop_variants(on_grid(small_grid, f"variants:\n  full: {full}\n  idle: {idle}\n"))
    assert "variants.idle: changes nothing against 'full'" in str(error.value)
    assert idle.strip("{}").split(":")[0] in str(error.value)


def test_switches_that_do_something_pass(small_grid: Path) -> None:
    variants = """\
variants:
  full: {}
  peft: {model.peft: none}
  rank: {model.rank: 3}
  dropout: {model.dropout: 0.1}
  weights: {model.weights_seed: 1}
  decay: {train.weight_decay: 0.1}
  patience: {train.patience: 3}
"""
    refuse_noop_variants(on_grid(small_grid, variants))


def test_models_that_are_fitted_are_compared_by_their_fits(small_grid: Path, tmp_path: Path) -> None:
    rows = "variants:\n  of the day: {model: {name: ha, over: day}}\n  of the week: {model: {name: ha, over: week}}\n"
    refuse_noop_variants(on_grid(small_grid, rows))
    with np.load(small_grid) as file:
        np.savez(tmp_path / "alike.npz", data=file["data"][np.arange(240) % 24], timestamps=file["timestamps"])
    with pytest.raises(StudyError, match=r"variants\.of the week: changes nothing against 'of the day'"):
        refuse_noop_variants(on_grid(tmp_path / "alike.npz", rows))


def test_a_switch_that_works_somewhere_along_an_axis_passes(small_grid: Path) -> None:
    variants = "variants:\n  full: {}\n  idle: {model.pad: true}\n"
    axis = "axes: {model.patch: [2, 3]}\n"  # 3 does not divide 4: only the padded one can be there
    with pytest.raises(StudyError, match="cannot be cut into patches"):
        on_grid(small_grid, variants, axis)
    with pytest.raises(StudyError, match="changes nothing"):
        refuse_noop_variants(on_grid(small_grid, variants, "axes: {model.patch: [2, 4]}\n"))


def test_an_effect_is_the_same_twice_and_differs_by_a_weight(make_trial: Any) -> None:
    one, again, other = (effect_of_trial(make_trial(seed=seed)) for seed in (0, 0, 1))
    assert looks_same(one, again)
    assert not looks_same(one, other)
