"""Fields that have moved: an old study means what it meant, says so, and its errors still name their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlab.errors import StudyError
from stlab.study.aliases import trial_with_current_fields
from stlab.study.file import parse
from stlab.study.plan import make_plan
from stlab.study.source import StudySource
from tests.engine.study.test_plan import facts

OLD = """\
name: old
base:
  data: {path: grid.npz}
  model: {name: st_vfm, backbone: vit_test, weights: random}
  train:
    flow_loss_weight: 0.25
    max_epochs: 3
variants:
  full: {}
  dotted: {train.flow_loss_weight: 0.75}
  nested: {train: {flow_loss_weight: 1.0, lr: 0.001}}
baselines: []
"""


def lambdas(text: str, *overrides: str) -> dict[str, float]:
    source = StudySource.from_text(text, "old.yaml", overrides)
    return {trial.spec.variant: trial.spec.model["flow_weight"] for trial in make_plan(parse(source), facts, source).trials}


def test_base_and_variants_mean_what_they_meant() -> None:
    assert lambdas(OLD) == {"full": 0.25, "dotted": 0.75, "nested": 1.0}


@pytest.mark.parametrize(
    ("override", "full"),
    [
        ("train.flow_loss_weight=0.5", 0.5),
        ("model.flow_weight=0.5", 0.5),
        ("variants.full.train.flow_loss_weight=2", 2),
        ("variants={full: {train.flow_loss_weight: 3}}", 3),
        ("axes.train.flow_loss_weight=[4]", 4),
        ("axes={train.flow_loss_weight: [5]}", 5),
    ],
)
def test_an_override_may_use_either_name(override: str, full: float) -> None:
    text = OLD if "variants={" in override or "axes" not in override else OLD.split("  dotted")[0] + "baselines: []\n"
    assert lambdas(text, override)["full"] == full


def test_a_search_may_use_the_old_name() -> None:
    search = (
        "search:\n  max_trials: 2\n  space:\n    train.flow_loss_weight: {float: [0.1, 1.0]}\n"
        "    train.lr: {float: [0.001, 0.01], when: {train.flow_loss_weight: 0.5}}\n"
        "  points: [{train.flow_loss_weight: 0.5, train.lr: 0.002}]\n"
    )
    spec = parse(StudySource.from_text(OLD.split("variants")[0] + search, "old.yaml"))
    assert spec.search is not None
    assert list(spec.search.space) == ["model.flow_weight", "train.lr"]
    assert spec.search.space["train.lr"].when == {"model.flow_weight": 0.5}
    assert spec.search.points == [{"model.flow_weight": 0.5, "train.lr": 0.002}]


def test_the_plan_says_that_a_field_has_moved() -> None:
    source = StudySource.from_text(OLD, "old.yaml")
    assert make_plan(parse(source), facts, source).notes == (
        "train.flow_loss_weight is model.flow_weight now. The old name goes on working.",
    )
    current = StudySource.from_text(OLD.split("  train:")[0] + "baselines: []\n", "new.yaml", ["model.flow_weight=0.25"])
    assert make_plan(parse(current), facts, current).notes == ()


@pytest.mark.parametrize(
    ("text", "line"), [(OLD.replace("0.25", "-1"), 6), (OLD.replace("0.75", "-1"), 10), (OLD.replace("1.0,", "-1,"), 11)]
)
def test_an_error_names_the_line_where_the_old_name_stands(text: str, line: int) -> None:
    with pytest.raises(StudyError, match=rf"old\.yaml:{line}: .*model\.flow_weight must be 0 or more"):
        lambdas(text)


def test_both_names_in_one_place_are_refused() -> None:
    both = OLD.replace("weights: random}", "weights: random, flow_weight: 0.3}")
    with pytest.raises(StudyError, match=r"old\.yaml:6: base\.train\.flow_loss_weight: unknown field"):
        lambdas(both)


@pytest.mark.parametrize(("name", "weight"), [("st_vfm", {"flow_weight": 0.3}), ("lstm", {})])
def test_a_record_of_before_is_read(name: str, weight: dict[str, float]) -> None:
    record = {"trial_id": "a", "model": {"name": name}, "train": {"flow_loss_weight": 0.3, "lr": 1.0}}
    assert trial_with_current_fields(record) == {"trial_id": "a", "model": {"name": name, **weight}, "train": {"lr": 1.0}}
    assert record["train"] == {"flow_loss_weight": 0.3, "lr": 1.0}


def test_an_axis_of_the_bases_model_leaves_another_model_alone(tmp_path: Path) -> None:
    text = OLD.split("variants")[0].replace("  train:\n    flow_loss_weight: 0.25\n    max_epochs: 3\n", "")
    text += "variants:\n  full: {}\n  other: {model.name: last_value}\naxes: {model.flow_weight: [0, 1]}\nbaselines: []\n"
    source = StudySource.from_text(text, "s.yaml")
    plan = make_plan(parse(source), facts, source)
    ids = {(t.spec.variant, t.spec.axis_values["model.flow_weight"]): t.trial_id for t in plan.trials}
    assert ids["other", 0] == ids["other", 1]
    assert ids["full", 0] != ids["full", 1]
    wrong = StudySource.from_text(text.replace("last_value}", "last_value, model.flow_weight: 1}"), "s.yaml", ["axes={}"])
    with pytest.raises(StudyError, match=r"s\.yaml:7: variants\.other\.model\.flow_weight: unknown field"):
        make_plan(parse(wrong), facts, wrong)
