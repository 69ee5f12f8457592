"""A trial once more, a study with more seeds, trials of one study in another, and several studies on one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab.cli.options import extended
from stlab.errors import ProtocolMismatch, UserError
from stlab.execution.collect import trial_row
from stlab.execution.run_study import plan_study, write_study
from stlab.inspection.replay import relative
from stlab.report.page import joint
from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.study.file import dump_study, parse
from stlab.study.plan import Plan
from stlab.study.source import StudySource
from stlab.training import run_trial

STUDY = """\
name: tiny
base:
  data: {path: small.npz}
  model: {name: st_vfm, backbone: vit_test, weights: random, temporal_width: 8, temporal_heads: 2, temporal_layers: 1, rank: 2}
  train: {max_epochs: 2, warmup_epochs: 1, batch_size: 32, lr: 2.0e-3}
  resources: {gpus: 0}
variants: {full: {}, plain: {model: {flow: false, cross_prompt_layers: 0}}}
seeds: [0]
baselines: [last_value]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, grid: dict[str, np.ndarray]) -> Path:
    """A storage where the study above was trained, without Ray."""
    place = tmp_path_factory.mktemp("replay")
    np.savez(place / "small.npz", **grid)
    plan = planned(place)
    store = Store(place / "runs")
    for trial in plan.unique():
        run_trial(trial.spec, trial.identity, TrialDirectory(store, trial.trial_id), test=True)
    record(plan, store)
    return place


def planned(place: Path, text: str = STUDY, *overrides: str) -> Plan:
    source = StudySource.from_text(text, "tiny.yaml", [f"data.path={place}/small.npz", *overrides])
    return plan_study(parse(source), source)


def record(plan: Plan, store: Store) -> None:
    directory = StudyDirectory(store, plan.study.name)
    directory.write_study(dump_study(plan.study))
    directory.write_trials([trial_row(trial, store) for trial in plan.trials])


@pytest.fixture
def trial(folder: Path) -> TrialDirectory:
    plan = planned(folder)
    return TrialDirectory(Store(folder / "runs"), next(t.trial_id for t in plan.trials if t.spec.variant == "plain"))


def test_the_same_trial_gives_the_same_numbers(folder: Path, trial: TrialDirectory, say: Callable[..., Any]) -> None:
    answer = say("replay", trial.trial_id[:10], "--storage", str(folder / "runs"))
    assert answer.code == 0, answer.err + answer.out
    assert "The numbers agree exactly." in answer.out
    assert "validation RMSE, epoch 2" in answer.out
    assert "test RMSE" in answer.out
    assert "differs" not in answer.out


def test_a_number_that_was_another_is_told_with_its_size(folder: Path, trial: TrialDirectory, say: Callable[..., Any]) -> None:
    test, record_ = trial.read("test.json"), trial.read("trial.json")
    assert test is not None
    assert record_ is not None
    try:
        trial.store.write_json(f"{trial.prefix}/test.json", {**test, "rmse": test["rmse"] * 1.01})
        code = {**record_["code"], "stlab/training/step.py": "0"}
        older = {**record_, "libraries": {**record_["libraries"], "torch": "1.0"}, "code": code}
        trial.store.write_json(f"{trial.prefix}/trial.json", older)
        answer = say("replay", trial.trial_id, "--storage", str(folder / "runs"))
        assert answer.code == 1
        assert "do not agree: by up to 0.99 %" in answer.out
        assert "differs: torch: 1.0 then" in answer.out
        assert "other code in stlab/training/step.py" in answer.out
        assert say("replay", trial.trial_id, "--storage", str(folder / "runs"), "--tolerance", "0.02").code == 0
    finally:
        trial.store.write_json(f"{trial.prefix}/test.json", test)
        trial.store.write_json(f"{trial.prefix}/trial.json", record_)


def test_data_that_is_gone_or_another_is_refused(
    folder: Path, trial: TrialDirectory, tmp_path: Path, grid: dict[str, np.ndarray], say: Callable[..., Any]
) -> None:
    storage = str(folder / "runs")
    np.savez(tmp_path / "other.npz", **{**grid, "data": grid["data"] + 1})
    (folder / "small.npz").rename(tmp_path / "moved.npz")
    try:
        gone = say("replay", trial.trial_id, "--storage", storage)
        assert gone.code == 2
        assert "is gone" in gone.err
        assert "--data PATH" in gone.err
        other = say("replay", trial.trial_id, "--storage", storage, "--data", "other.npz")
        assert other.code == 2
        assert "its content is not what trial" in other.err
    finally:
        (tmp_path / "moved.npz").rename(folder / "small.npz")


def test_only_finished_trials_are_replayed(folder: Path, trial: TrialDirectory, say: Callable[..., Any]) -> None:
    storage = str(folder / "runs")
    unknown = say("replay", "ffffffff", "--storage", storage)
    assert unknown.code == 2
    assert "there is no trial 'ffffffff'" in unknown.err
    failed = TrialDirectory(trial.store, "0" * 16)
    failed.write_trial(trial.read("trial.json") or {})
    failed.write_failure({"reason": "made up"})
    try:
        answer = say("replay", "0" * 16, "--storage", storage)
        assert answer.code == 2
        assert "It failed; stlab run --retry-failed repeats it." in answer.err
    finally:
        trial.store.delete_folder(failed.prefix)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(1.0, 1.0, 0), (1.0, 1.1, 1 / 11), (float("nan"), float("nan"), 0), (1.0, None, np.inf), (0.0, 0.0, 0), (-1, 1, 2)],
)
def test_a_relative_difference(one: float, other: float | None, expected: float) -> None:
    assert relative(one, other) == pytest.approx(expected)


def test_more_seeds_train_only_what_is_new(folder: Path) -> None:
    store = Store(folder / "runs")
    spec, _ = extended("tiny", None, store, 2)
    assert spec.seeds == [0, 1, 2]
    assert {t.trial_id for t in planned(folder).unique()} <= {t.trial_id for t in plan_study(spec).unique()}
    directory = StudyDirectory(store, "tiny")
    before = directory.read_study()
    try:
        assert write_study(plan_study(spec), store) is None  # nothing is moved away
        assert parse(StudySource.from_text(directory.read_study() or "")) == spec
        assert directory.read_trials().num_rows
        with pytest.raises(UserError, match=r"4 trials of 'tiny' are left to do, seeds \[0, 1, 2\]"):
            extended("tiny", None, store, 1)
        fewer = parse(StudySource.from_text(before or ""))
        assert write_study(plan_study(fewer), store) is not None  # another study
    finally:
        record(planned(folder), store)


def test_a_study_that_was_not_run_has_nothing_to_extend(folder: Path) -> None:
    with pytest.raises(UserError, match="no study 'demo' was run"):
        extended("demo", None, Store(folder / "runs"), 1)


def second(folder: Path, *overrides: str) -> Plan:
    """Another study of two variants: one is the first study's, under another name."""
    variants = "variants={ours: {}, plain: {model: {flow: false, cross_prompt_layers: 0, rank: 3}}}"
    return planned(folder, STUDY.replace("name: tiny", "name: again", 1), variants, *overrides)


def test_what_another_study_trained_is_there_and_says_so(folder: Path, say: Callable[..., Any]) -> None:
    store = Store(folder / "runs")
    rows = {row["variant"]: row for row in (trial_row(trial, store) for trial in second(folder).trials)}
    assert (rows["ours"]["status"], rows["ours"]["reused_from"]) == ("finished", "tiny")
    assert (rows["plain"]["status"], rows["plain"]["reused_from"]) == ("missing", None)
    assert rows["last_value"]["reused_from"] == "tiny"
    assert {row.get("reused_from") for row in StudyDirectory(store, "tiny").read_trials().to_pylist()} == {None}


def written(store: Store, name: str, study: dict[str, Any], notes: list[str], *, directory: StudyDirectory, papers: Any) -> str:
    """In place of the report's figures, which take seconds: what it was told."""
    page = f"<body><main>{json.dumps([study['name'], notes])}</main></body>"
    store.write(directory.report_path(), page.encode())
    return store.path(directory.report_path())


def test_two_studies_on_one_page_share_their_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "write_study_page", written)
    store = Store(folder / "runs")
    record(second(folder), store)
    path, sections = joint.write_joint_report(store, ["tiny", "again"])
    [section] = sections
    assert [row["variant"] for row in section.rows] == ["last_value", "full", "plain", "plain (again)"]
    assert section.study["several"] == ["tiny", "again"]
    assert "tiny and again share 1 trial" in Path(path).read_text()
    with pytest.raises(UserError, match="named twice"):
        joint.write_joint_report(store, ["tiny", "tiny"])


def test_other_data_is_a_section_and_another_protocol_is_refused(
    folder: Path, grid: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "write_study_page", written)
    store = Store(folder / "runs")
    np.savez(folder / "bigger.npz", **{**grid, "data": grid["data"] * 2})
    record(second(folder, f"data.path={folder}/bigger.npz"), store)
    path, sections = joint.write_joint_report(store, ["tiny", "again"])
    assert [section.rows[0]["dataset"] for section in sections] == ["small", "bigger"]
    assert Path(path).read_text().count("<main>") == 1
    assert "tiny" in Path(path).read_text()
    assert "again" in Path(path).read_text()
    record(second(folder, "data.horizon=4"), store)
    with pytest.raises(ProtocolMismatch, match="horizon is 6 for last_value"):
        joint.write_joint_report(store, ["tiny", "again"])
