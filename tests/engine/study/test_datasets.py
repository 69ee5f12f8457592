"""A study on several data sets: entries, their precedence, what is refused before anything trains, and what `--datasets` chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab.errors import DataError, ProtocolMismatch, StudyError, UserError
from stlab.execution.preflight import check_protocol
from stlab.execution.run_study import plan_study, write_study
from stlab.storage import Store, StudyDirectory
from stlab.study.file import load_study_source, parse, with_datasets
from stlab.study.plan import Plan
from stlab.study.source import StudySource
from stlab.submission.order import Order, check_order

STUDY = """
name: both
base:
  model: {name: stid, width: 8}
  train: {max_epochs: 3, lr: 1e-3}
datasets:
  one: {path: "synthetic:city?seed=1&weeks=3"}
  two: {path: "synthetic:city?seed=2&weeks=3", scale: 10, train: {lr: 2e-3}, model.width: 16}
variants:
  STID: {}
  fast: {train: {lr: 3e-3}}
  norm: {model: {name: stnorm}}
axes: {train.weight_decay: [0.0, 0.1]}
seeds: [0, 1]
"""


def write_grid(path: Path) -> None:
    """Three weeks of hours on 4×4 cells, the same each time."""
    times = np.datetime64("2024-01-01T00", "s") + np.arange(504) * np.timedelta64(3600, "s")
    np.savez(path, data=np.random.default_rng(0).poisson(5, (504, 1, 4, 4)), timestamps=times)


def planned(*overrides: str, text: str = STUDY, **options: Any) -> Plan:
    source = StudySource.from_text(text, "both.yaml", overrides)
    return plan_study(parse(source), source, **options)


def test_every_variant_axis_and_seed_is_run_on_every_data_set() -> None:
    plan = planned()
    trained = [trial for trial in plan.trials if not trial.spec.baseline]
    points = {(t.spec.dataset_entry, t.spec.variant, t.spec.axis_values["train.weight_decay"], t.spec.seed) for t in trained}
    assert len(trained) == len(points) == 2 * 3 * 2 * 2
    assert len(plan.unique()) == len(plan.trials)
    assert trained[0].label == "one: STID, weight_decay=0.0, seed 0"
    assert {trial.identity["dataset"] for trial in plan.trials} == {"one", "two"}


def test_an_entry_changes_the_base_and_a_variant_comes_before_it() -> None:
    first = {(t.spec.dataset_entry, t.spec.variant): t.spec for t in planned().trials if t.spec.seed == 0}
    assert (first["one", "STID"].train.lr, first["two", "STID"].train.lr, first["two", "fast"].train.lr) == (1e-3, 2e-3, 3e-3)
    assert (first["one", "STID"].model["width"], first["two", "STID"].model["width"]) == (8, 16)
    assert first["two", "norm"].model["width"] == first["one", "norm"].model["width"]  # the base's model has that field, not this one
    assert (first["one", "norm"].data.scale, first["two", "norm"].data.scale) == (1, 10)


def test_an_entry_leaves_variants_out() -> None:
    plan = planned("datasets.two.without=[norm]")
    pairs = {(t.spec.dataset_entry, t.spec.variant) for t in plan.trials if not t.spec.baseline}
    assert pairs == {("one", "STID"), ("one", "fast"), ("one", "norm"), ("two", "STID"), ("two", "fast")}
    with pytest.raises(StudyError, match="is the reference"):
        planned("datasets.two.without=[norm]", "reference=norm")
    with pytest.raises(StudyError, match="'STID' is the reference"):
        planned("datasets.two.without=[STID]")  # the first variant, as in every table


def test_a_trial_is_the_same_in_a_study_of_its_data_set_alone() -> None:
    alone = planned("data.path=synthetic:city?seed=1&weeks=3")
    assert alone.study.datasets == {}
    assert {t.trial_id for t in alone.trials} == {t.trial_id for t in planned().trials if t.spec.dataset_entry == "one"}


def test_one_data_set_and_several_are_not_asked_for_at_once() -> None:
    with pytest.raises(StudyError, match="Give one of both"):
        planned("data.path=synthetic:city", "datasets.three.path=synthetic:city?seed=3")


def test_an_entry_is_set_and_left_out_on_the_command_line() -> None:
    plan = planned("datasets.one.train.lr=5e-3", "datasets.two=null")
    assert list(plan.study.datasets) == ["one"]
    assert {t.spec.train.lr for t in plan.trials if t.spec.variant == "STID"} == {5e-3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("datasets.two.lr=1", "datasets.two.lr: unknown field"),
        ("datasets.two.train.lr=-1", "datasets.two.train.lr: must be greater than 0"),
        ("datasets.two.scale=0", "datasets.two.scale: must be greater than 0"),
        ("datasets.two.model.width=0", "datasets.two.model.width"),
        ("datasets.t/wo={path: a.npz}", "letters, digits"),
        ("datasets.two={scale: 1}", "`path` is missing"),
        ("datasets.two.without=[norms]", "datasets.two.without: there is no variant 'norms'. Did you mean 'norm'"),
        ("datasets.two.without=[STID, norm, fast]", "leaves no variant"),
        ("datasets.two.without=norm", "must be a list of variants"),
        ("datasets.two.train.weight_decay=0.5", "is an axis"),
        ("datasets.two={path: a.npz, scale: 3, data.scale: 4}", "written twice"),
        ("datasets.two.train.lr=3e-3", r"on two\. Remove one of them, or leave one out there: `without: \[fast\]`"),
    ],
)
def test_a_wrong_entry_is_named_with_its_place(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        planned(override)


def test_data_that_cannot_be_read_are_named_before_anything_trains(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK")
    bad = f"datasets.two.path={tmp_path}/broken.npz"
    with pytest.raises(DataError, match=r"two: .*broken\.npz.*\nUsable: one\. --skip-bad-datasets"):
        planned(bad)
    plan = planned(bad, skip_bad=True)
    assert list(plan.study.datasets) == ["one"]
    assert "broken.npz" in plan.left_out["two"]
    with pytest.raises(DataError, match=r"one: .*\ntwo: "):
        planned(bad, "datasets.one.path=/nowhere.npz", skip_bad=True)  # nothing is left


def test_an_added_data_set_and_one_that_is_away_for_a_while_move_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    two, three = planned(), planned("datasets.three.path=synthetic:city?seed=3&weeks=3")
    assert {t.trial_id for t in two.trials} < {t.trial_id for t in three.trials}
    assert write_study(two, store) is None
    assert write_study(three, store) is None
    away = planned("datasets.three.path=synthetic:city?seed=3&weeks=3", f"datasets.two.path={tmp_path}/away.npz", skip_bad=True)
    assert write_study(away, store) is None
    assert list(StudyDirectory(store, "both").read_left_out()) == ["two"]
    assert write_study(three, store) is None
    assert StudyDirectory(store, "both").read_left_out() == {}
    assert write_study(two, store) is not None, "a study without one of its data sets is another one"


def test_two_data_sets_of_one_content_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_grid(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match="one and two have the same content"):
        planned(f"datasets.one.path={tmp_path}/a.npz", f"datasets.two.path={tmp_path}/b.npz")


def test_ids_do_not_depend_on_names() -> None:
    renamed = STUDY.replace("  one:", "  uno:")
    assert {t.trial_id for t in planned(text=renamed).trials} == {t.trial_id for t in planned().trials}


def test_the_command_line_chooses_files_patterns_and_entries(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    for name in ("TWO", "three.v2"):
        np.savez(tmp_path / f"{name}.npz", data=np.zeros((9, 1, 2, 2)))
    (tmp_path / "notes.txt").write_text("")
    study = str(tmp_path / "study.yaml")
    overrides = with_datasets(study, ["seeds=[0]"], [f"{tmp_path}/*.npz", "one", "synthetic:city?seed=7"])
    chosen = parse(load_study_source(study, overrides)).datasets
    assert list(chosen) == ["two", "three-v2", "one", "city-seed-7"]
    assert chosen["two"] == {"path": f"{tmp_path}/TWO.npz", "scale": 10, "train": {"lr": 2e-3}, "model.width": 16}  # the study's own entry
    for words, message in (
        (["*.txt"], "no data file matches"), ([f"{tmp_path}/*.txt"], "matches 1 other files"), (["ones"], "Did you mean 'one'"),
    ):  # fmt: skip
        with pytest.raises(StudyError, match=message):
            with_datasets(study, [], words)
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other/three-v2.npz", data=np.zeros((9, 1, 2, 2)))
    with pytest.raises(StudyError, match="would both be named three-v2"):
        with_datasets(study, [], [f"{tmp_path}/**/*.npz"])


def test_protocols_may_differ_between_data_sets_and_not_within_one() -> None:
    check_protocol(planned())
    with pytest.raises(ProtocolMismatch, match="scale is"):
        check_protocol(planned("variants.norm.data.scale=3"))


def test_an_order_takes_the_data_sets_along(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    write_grid(tmp_path / "three.npz")
    order = Order(str(tmp_path / "study.yaml"), [], "s3://bucket/runs", datasets=("one", f"{tmp_path}/*.npz"), skip_bad_datasets=True)
    assert check_order(order).notes == []
    words = order.arguments("study.yaml")
    assert words[-5:] == ["--datasets", "one", "--datasets", f"{tmp_path}/*.npz", "--skip-bad-datasets"]
    elsewhere = replace(order, datasets=("/shared/nowhere/*.npz",))
    assert any("checked on the cluster" in note for note in check_order(elsewhere).notes)
    with pytest.raises(UserError, match="holds a key"):
        check_order(replace(order, datasets=("s3://KEY:SECRET@bucket/a.npz",)))
    for study in ("st_vfm_ablation", "st_vfm_table2"):  # the relative paths of the study itself are not read
        assert check_order(replace(elsewhere, study=study)).name == study
    with pytest.raises(UserError, match="folder of this machine"):
        check_order(replace(order, datasets=("data/*.npz",)))


def test_an_entry_is_dotted_or_nested() -> None:
    text = STUDY.replace("model.width: 16", "model: {width: 16}")
    assert [t.trial_id for t in planned(text=text).trials] == [t.trial_id for t in planned().trials]
