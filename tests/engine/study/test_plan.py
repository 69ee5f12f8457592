"""From a study to its trials: what an id is made of, what is refused and with which words, how packs are dealt."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from stlab import catalog
from stlab.errors import ModelError, StudyError
from stlab.study.file import parse
from stlab.study.identity import absolute
from stlab.study.packs import make_packs
from stlab.study.plan import DataFacts, Plan, PlannedTrial, make_plan
from stlab.study.source import StudySource
from stlab.study.spec import DataSpec, ResourcesSpec, StudySpec
from stmodels.baselines.config import BASELINES
from stmodels.st_vfm.config import STVFMConfig
from stmodels.types import SeriesInfo

STUDY = """\
name: bikes
base:
  data: {path: grid.npz}
  model: {name: st_vfm, backbone: vit_test, weights: random}
variants:
  full: {}
  plain: {model.flow: false, model.cross_prompt_layers: 0}
seeds: [0, 1]
"""


def facts(data: DataSpec, **changes: Any) -> DataFacts:
    """Eight weeks of hours on 16×8 cells."""
    shape = (2, 16, 8) if data.family == "grid" else (207, 1)
    info = SeriesInfo(data.family, shape, data.history, data.horizon, 24, 0.1, 5, 0.1, -1.0, 900)
    protocol = {"family": data.family, "history": data.history}
    return DataFacts("bikes", "c0ffee", False, False, protocol, info._replace(**changes))


def planned(text: str = STUDY, *overrides: str, facts_of: Any = facts) -> Plan:
    source = StudySource.from_text(text, "study.yaml", overrides)
    return make_plan(parse(source), facts_of, source)


def ids(result: Plan) -> list[str]:
    return [trial.trial_id for trial in result.trials if not trial.spec.baseline]


def one_id(*overrides: str, facts_of: Any = facts) -> str:
    return ids(planned(STUDY, "variants={only: {}}", "seeds=[0]", "baselines=[]", *overrides, facts_of=facts_of))[0]


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[1]",
        "train.lr=1e-3",
        "model.flow_weight=0.4",
        "train.max_epochs=199",
        "train.batch_size=16",
        "train.precision=bf16",
        "train.weight_decay=0",
        "train.clip_norm=0.05",
        "train.patience=3",
        "train.warmup_epochs=0",
        "train.min_lr=0",
        "data.train_ratio=0.5",
        "data.split=[0.6, 0.2, 0.2]",
        "data.history=4",
        "data.horizon=4",
        "data.scale=1000",
        "data.null=0",
        "model.patch=4",
        "model.rank=4",
        "model.peft=lora",
        "model.peft=none",
        "model.prompts=all",
        "model.prompts=8",
        "model.cross_prompt_layers=1",
        "model.decoder=mlp",
        "model.temporal_context=false",
        "model.weights_seed=1",
        "model.dropout=0.1",
        "model.calendar=true",
        "model.seasonal_residual=true",
        "model.use_cls=true",
        "model.backbone=dinov2_s",
    ],
)
def test_an_id_changes_with_what_changes_the_numbers(override: str) -> None:
    assert one_id(override) != one_id()


@pytest.mark.parametrize(
    "override",
    [
        "resources.cpus=4",
        "resources.workers=2",
        "resources.gpus=1",
        "data.path=elsewhere/same.npz",
        "name=another",
        "description=x",
        "variants={renamed: {}}",
        "train.checkpoint_seconds=0",
        "model.rank=64",
        "seeds=[0]",
        "data.history=6",
    ],
)
def test_an_id_does_not_change_with_anything_else(override: str) -> None:
    assert one_id(override) == one_id()


@pytest.mark.parametrize(
    ("switch", "inert"),
    [
        (["model.flow=false", "model.cross_prompt_layers=0"], "model.flow_weight=0.9"),
        (["model.peft=none"], "model.rank=5"),
        (["model.cross_prompt_layers=0"], "model.prompts=3"),
        (["model.weights=pretrained"], "model.weights_seed=3"),
        (["model.temporal_context=false", "model.decoder=mlp"], "model.temporal_heads=2"),
        (["model.temporal_context=false", "model.decoder=mlp"], "model.temporal_layers=1"),
        (["model.temporal_context=false", "model.decoder=mlp"], "model.dropout=0.3"),
    ],
)
def test_a_field_without_effect_is_no_part_of_the_id(switch: list[str], inert: str) -> None:
    assert one_id(*switch, inert) == one_id(*switch)
    assert one_id(inert) != one_id()  # and with the switch on, it is


def test_an_id_is_made_of_contents(tmp_path: Path) -> None:
    def other(data: DataSpec) -> DataFacts:
        return dataclasses.replace(facts(data), sha256="beef")

    assert one_id(facts_of=other) != one_id()
    first, copy = tmp_path / "a.pt", tmp_path / "b.pt"
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    before = one_id(f"model.weights={first}")
    assert one_id(f"model.weights={copy}") == before
    first.write_bytes(b"weightz")
    assert one_id(f"model.weights={first}") != before
    assert before != one_id()


def test_trials_are_variants_by_axes_by_seeds_in_the_order_of_the_tables() -> None:
    result = planned(STUDY, "axes.data.train_ratio=[0.1, 1.0]", "axes.train.lr=[1e-3, 1e-4, 1e-5]", "baselines=[]")
    found = [(t.spec.variant, t.spec.data.train_ratio, t.spec.train.lr, t.spec.seed) for t in result.trials]
    assert found == [
        (variant, ratio, lr, seed)
        for variant in ("full", "plain")
        for ratio in (0.1, 1.0)
        for lr in (1e-3, 1e-4, 1e-5)
        for seed in (0, 1)
    ]
    assert len(result.unique()) == len(result.trials) == 24
    first = result.trials[0]
    assert first.spec.axis_values == {"data.train_ratio": 0.1, "train.lr": 1e-3}
    assert first.label == "full, train_ratio=0.1, lr=0.001, seed 0"
    assert result.trials[12].spec.model["flow"] is False


def test_a_field_is_set_by_a_variant_or_by_an_axis_but_not_by_both() -> None:
    text = STUDY.replace("plain: {", "plain: {train.lr: 0.5, ")
    with pytest.raises(StudyError, match=r"variants\.plain: 'plain' sets train\.lr, which is an axis"):
        planned(text, "axes.train.lr=[0.1, 0.2]", "baselines=[]")


def test_an_axis_that_changes_nothing_is_refused() -> None:
    text = STUDY.replace("full: {}", "full: {model: {flow: false, cross_prompt_layers: 0, rank: 4}}")
    with pytest.raises(StudyError, match=r"axes\.model\.flow_weight: changes nothing in any variant"):
        planned(text, "axes.model.flow_weight=[0.1, 0.5]", "baselines=[]")


def test_paths_are_absolute_since_workers_run_elsewhere(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"weights")
    spec = planned(STUDY, f"model.weights={os.path.relpath(weights)}").trials[-1].spec
    assert Path(spec.data.path).is_absolute()
    assert spec.model["weights"] == str(Path(os.path.relpath(weights)).absolute())


def test_a_folder_of_weights_counts_by_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "encoder").mkdir(parents=True)
        (tmp_path / name / "encoder" / "model.safetensors").write_bytes(name.encode())
    first, second = (one_id(f"model.weights={tmp_path / name}") for name in ("a", "b"))
    assert first != second
    with pytest.raises(ModelError, match="there is no such file"):
        one_id(f"model.weights={tmp_path / 'c'}")


def test_baselines_of_a_variant_with_data_of_its_own_are_rows_of_their_own() -> None:
    text = STUDY.replace("plain: {", "plain: {data.train_ratio: 0.5, ")
    names = [t.spec.variant for t in planned(text, "baselines=[last_value]").trials if t.spec.baseline]
    assert names == ["last_value", "last_value · plain"]


def test_a_trial_that_two_rows_share_is_listed_twice_and_trained_once() -> None:
    result = planned(STUDY, "axes.model.flow_weight=[0.1, 0.5]", "baselines=[]")
    assert len(result.trials) == 8
    unique = result.unique()
    assert len(unique) == 6  # two seeds of the variant without flow at one λ or the other
    assert [t.trial_id for t in unique] == list(dict.fromkeys(ids(result)))


def test_twins_are_refused_by_name_and_line() -> None:
    text = STUDY.replace("seeds:", "  rank_of_nothing: {model.peft: adapter, model.rank: 64}\nseeds:")
    with pytest.raises(
        StudyError, match=r"study\.yaml:8: variants\.rank_of_nothing: the same trials as 'full'.*Remove one"
    ):
        planned(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: st_vfm", "name: st_vfmm", r"study\.yaml:4: .*st_vfmm.*Did you mean 'st_vfm'"),
        ("weights: random", "wieghts: random", r"study\.yaml:4: base\.model\.wieghts: unknown field\. Did you mean 'weights'"),
        ("model.flow: false", "model.flwo: false", r"study\.yaml:7: variants\.plain\.model\.flwo: unknown field\. Did you mean 'flow'"),
        ("model.flow: false", "model.flow: maybe", r"study\.yaml:7: variants\.plain\.model\.flow: must be true or false"),
        ("plain: {model.flow: false, model.cross_prompt_layers: 0}", "plain: {model.flow: false}", r"study\.yaml:7: .*needs the flow"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nbaselines: [ridgge]", r"study\.yaml:9: baselines: there is no baseline 'ridgge'"),
        ("seeds: [0, 1]", "axes: {model.patch: [2, 3]}", r"study\.yaml:8: axes\.model\.patch: grid\.npz: .*patches of 3×3"),
        ("path: grid.npz", "path: grid.npz, history: 5", r"study\.yaml:.*temporal_patch=2 does not divide data\.history=5"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_with_its_line(old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(StudyError, match=message):
        planned(STUDY.replace(old, new))


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = STUDY.replace("model.flow: false", "model.flwo: false").replace("full: {}", "full: {model.patch: 0}")
    with pytest.raises(StudyError) as caught:
        planned(text)
    assert len(str(caught.value).splitlines()) == 2


def test_baselines_stand_first_once_a_data_set() -> None:
    result = planned(STUDY)
    leading = result.trials[: len(BASELINES)]
    assert [t.spec.variant for t in leading] == list(BASELINES)
    assert all(t.spec.baseline and t.spec.seed == 0 for t in leading)
    assert not any(t.spec.baseline for t in result.trials[len(BASELINES) :])
    assert result.notes == ()
    again = planned(STUDY, "train.lr=0.1")
    assert [t.trial_id for t in again.trials[: len(BASELINES)]] == [t.trial_id for t in leading]
    ratios = planned(STUDY, "axes.data.train_ratio=[0.5, 1.0]", "baselines=[ridge]")
    found = [(t.spec.data.train_ratio, t.spec.axis_values) for t in ratios.trials if t.spec.baseline]
    assert found == [(0.5, {"data.train_ratio": 0.5}), (1.0, {"data.train_ratio": 1.0})]


def test_a_baseline_that_the_data_does_not_allow_is_a_note() -> None:
    result = planned(STUDY, facts_of=lambda data: facts(data, slots_per_day=None, season_count=0))
    assert [t.spec.variant for t in result.trials if t.spec.baseline] == ["last_value", "last_window", "ridge"]
    assert len(result.notes) == len(BASELINES) - 3
    assert "No baseline slot_of_week_mean: the data has no timestamps." in result.notes
    short = planned(STUDY, facts_of=lambda data: facts(data, lookback=100, season_count=1))
    assert [t.spec.variant for t in short.trials if t.spec.baseline] == [
        "slot_of_week_mean",
        "same_slot_yesterday",
        "last_value",
        "last_window",
        "ridge",
    ]


def test_facts_are_read_once_a_data_set() -> None:
    asked: list[DataSpec] = []
    planned(STUDY, "axes.data.train_ratio=[0.5, 1.0]", facts_of=lambda data: (asked.append(data), facts(data))[1])
    assert sorted(data.train_ratio for data in asked) == [0.5, 1.0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyFamilyConfig(STVFMConfig):
    name: str = "any"
    depth: int = 1

    def check(self, info: SeriesInfo) -> None:
        """Runs on anything."""


@pytest.fixture
def any_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second model, which takes any data."""
    monkeypatch.setitem(catalog.MODELS, "any", f"{__name__}:AnyFamilyConfig")


@pytest.mark.usefixtures("any_family")
@pytest.mark.parametrize("where", ["variant", "axis"])
def test_another_family_brings_its_own_defaults(where: str) -> None:
    text = "name: s\nbase:\n  data: {path: x.npz, train_ratio: 0.5}\n  model: {name: any}\nbaselines: []\n"
    change = (
        "variants: {v: {data.horizon: 3, data.family: sensors}}"
        if where == "variant"
        else "variants: {v: {data.horizon: 3}}\naxes: {data.family: [sensors]}"
    )
    data = planned(text + change).trials[0].spec.data
    expected = DataSpec(path=absolute("x.npz"), family="sensors", train_ratio=0.5, horizon=3)
    assert (expected.history, expected.null, expected.split) == (12, "auto", (0.6, 0.2, 0.2))
    assert data == expected
    kept = planned(text.replace("x.npz,", "x.npz, history: 8,") + change).trials[0].spec.data
    assert (kept.history, kept.horizon) == (8, 3)


@pytest.mark.usefixtures("any_family")
def test_another_model_keeps_what_the_study_says_of_it_and_nothing_of_the_base() -> None:
    text = STUDY.replace("full: {}", "full: {model.depth: 3, model.name: any}").replace(
        "plain: {", "plain: {model.name: any, "
    )
    result = planned(text, "axes.model.rank=[4, 8]", "baselines=[]", "seeds=[0]")
    found = [
        (t.spec.variant, t.spec.model["depth"], t.spec.model["rank"], t.spec.model["backbone"]) for t in result.trials
    ]
    assert found == [
        ("full", 3, 4, "dinov2_s"),
        ("full", 3, 8, "dinov2_s"),
        ("plain", 1, 4, "dinov2_s"),
        ("plain", 1, 8, "dinov2_s"),
    ]


def test_a_study_made_in_python_is_refused_as_plainly() -> None:
    study = StudySpec(
        name="s", base={"data": {"path": "x"}, "model": {"name": "st_vfm"}}, variants={"a": {"modle.rank": 4}}
    )
    with pytest.raises(StudyError, match=r"variants\.a.*modle"):
        make_plan(study, facts)


def dealt(count: int, slots: int, costs: list[float] | None = None) -> tuple[list[PlannedTrial], list[Any]]:
    trials = planned(STUDY, f"seeds={list(range(count))}", "variants={only: {}}").unique()
    if costs is not None:
        trials = [dataclasses.replace(t, cost=c) for t, c in zip(trials, costs * len(trials), strict=False)]
    return trials, make_packs(trials, {trials[0].spec.resources: slots})


@pytest.mark.parametrize(("count", "slots"), [(1, 8), (5, 2), (16, 4), (3, 1), (7, 0)])
def test_every_trial_is_in_one_pack(count: int, slots: int) -> None:
    trials, packs = dealt(count, slots)
    assert sorted(t.trial_id for pack in packs for t in pack.trials) == sorted(t.trial_id for t in trials)
    assert len(packs) == min(max(1, slots), len(trials))
    assert all(pack.trials for pack in packs)
    assert packs == dealt(count, slots)[1]


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_packs_are_balanced(slots: int) -> None:
    """Graham's bound for the longest first: at most 4/3 - 1/3m of the best, which is no less than the mean or the longest."""
    trials, packs = dealt(17, slots, [1.0, 5.0, 2.5, 3.0, 0.5])
    best = max(sum(t.cost for t in trials) / slots, max(t.cost for t in trials))
    assert max(pack.cost for pack in packs) <= (4 / 3 - 1 / (3 * slots)) * best + 1e-9
    equal = dealt(16, 4, [1.0])[1]
    assert max(len(p.trials) for p in equal) - min(len(p.trials) for p in equal) <= 1


def test_baselines_lead_a_pack_then_the_cheapest_trial_then_the_costly_ones() -> None:
    trials = planned(STUDY).unique()
    (pack,) = make_packs(trials, {trials[0].spec.resources: 1})
    assert [t.spec.baseline for t in pack.trials] == [True] * len(BASELINES) + [False] * 4
    costs = [t.cost for t in pack.trials if not t.spec.baseline]
    assert costs[0] == min(costs)
    assert costs[1:] == sorted(costs[1:], reverse=True)
    assert costs[1] > costs[0]


def test_trials_of_different_resources_are_kept_apart() -> None:
    text = STUDY.replace("plain: {", "plain: {resources.cpus: 4, ")
    trials = planned(text).unique()
    packs = make_packs(trials, {ResourcesSpec(): 2, ResourcesSpec(cpus=4): 1})
    assert [pack.resources.cpus for pack in packs] == [1, 1, 4]
    assert all(t.spec.resources == pack.resources for pack in packs for t in pack.trials)
    assert sum(len(pack.trials) for pack in packs) == len(trials)
