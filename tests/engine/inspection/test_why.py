"""`stlab plan --why` names the field or the file that sets a planned trial apart from those that a storage has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab.execution.run_study import plan_study
from stlab.inspection.why import why_new
from stlab.storage import Store, TrialDirectory
from stlab.study.file import load_study
from stlab.study.identity import trial_id
from stlab.study.plan import Plan

STUDY = """\
name: small
base:
  data: {path: small.npz}
  model: {name: st_vfm, backbone: vit_test, weights: random}
seeds: [0, 1]
baselines: []
"""


@pytest.fixture
def storage(tmp_path: Path, grid: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Store:
    """A storage that has the two trials of the study, as far as their records go."""
    monkeypatch.chdir(tmp_path)
    np.savez("small.npz", **grid)
    Path("small.yaml").write_text(STUDY)
    store = Store(tmp_path / "runs")
    for trial in planned().trials:
        record = {**trial.spec.model_dump(mode="json"), **trial.identity}
        TrialDirectory(store, trial.trial_id).write_trial(record)
    return store


def planned(*overrides: str) -> Plan:
    return plan_study(load_study("small.yaml", overrides))


def asked(plan: Plan, store: Store, seed: int = 0) -> tuple[str | None, list[tuple[str, str, str]]]:
    """The seed of the most similar trial, and the differences."""
    found = why_new(plan, next(trial.trial_id for trial in plan.trials if trial.spec.seed == seed), store)
    return found.nearest and found.nearest["seed"], [(one.what, one.there, one.here) for one in found.differences]


def test_a_trial_that_is_there_is_not_new(storage: Store) -> None:
    assert why_new(planned(), planned().trials[0].trial_id, storage).is_there


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("train.lr=0.5", ("train.lr", "0.0003", "0.5")),
        ("model.flow_weight=0.25", ("model.flow_weight", "0.5", "0.25")),
        ("train.flow_loss_weight=0.25", ("model.flow_weight", "0.5", "0.25")),
        ("data.horizon=4", ("data.horizon", "6", "4")),
    ],
)
def test_a_field_is_named(storage: Store, override: str, difference: tuple[str, str, str]) -> None:
    assert asked(planned(override), storage, seed=1) == (1, [difference])


def test_a_seed_is_named(storage: Store) -> None:
    seed, differences = asked(planned("seeds=[5]"), storage, seed=5)
    assert differences == [("seed", str(seed), "5")]


def test_other_data_are_named(storage: Store, grid: dict[str, np.ndarray]) -> None:
    np.savez("other.npz", **{**grid, "data": grid["data"] + 1})
    _, differences = asked(planned("data.path=other.npz"), storage)
    assert [what for what, _, _ in differences] == ["content of the data"]


def test_a_file_is_named(storage: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import stlab.study.identity as identity

    digests = identity.source_digests
    changed = {"stmodels/layers/flow.py": "0123"}
    monkeypatch.setattr(identity, "source_digests", lambda config: {**digests(config), **changed})
    _, ((what, _, here),) = asked(planned(), storage)
    assert (what, here) == ("code of stmodels/layers/flow.py", "0123")


def test_a_record_of_an_earlier_version_is_compared_as_far_as_it_goes(storage: Store) -> None:
    for name in storage.names("trials"):
        record = TrialDirectory(storage, name).read("trial.json") or {}
        record["train"]["flow_loss_weight"] = record["model"].pop("flow_weight")
        del record["code"]
        storage.write_json(f"trials/{name}/trial.json", record)
        storage_id = f"trials/{'0' * 15}{name[-1]}/trial.json"
        storage.write_json(storage_id, record)
    plan = planned("train.lr=0.5")
    _, differences = asked(plan, storage)
    assert [what for what, _, _ in differences] == ["train.lr", "code"]


def test_every_difference_of_two_ids_is_told(storage: Store) -> None:
    """Nothing else than what `why` compares goes into an id."""
    trial = planned().trials[0]
    from stlab.catalog import create_config

    config = create_config(trial.spec.model)
    assert trial_id(trial.spec, config, trial.identity["data_sha256"]) == trial.trial_id
    for change in ({"study": "other"}, {"variant": "other"}, {"axis_values": {"train.lr": 1}}):
        assert trial_id(trial.spec.model_copy(update=change), config, trial.identity["data_sha256"]) == trial.trial_id


def test_the_command_line_tells_it(storage: Store, say: Callable[..., Any]) -> None:
    trial = planned("train.lr=0.5").trials[0].trial_id
    answer = say("plan", "small.yaml", "--set", "train.lr=0.5", "--storage", "runs", "--why", trial[:6])
    assert answer.code == 0, answer
    assert f"{trial} (base, seed 0) is new. The most similar trial" in answer.out
    assert "train.lr" in answer.out
    there = say("plan", "small.yaml", "--storage", "runs", "--why", planned().trials[0].trial_id)
    assert "nothing makes it new" in there.out
    nowhere = say("plan", "small.yaml", "--storage", "elsewhere", "--why", planned().trials[0].trial_id)
    assert "has no trial of st_vfm" in nowhere.out
    wrong = say("plan", "small.yaml", "--storage", "runs", "--why", "zzz")
    assert (wrong.code, "small has no such trial" in wrong.err) == (2, True)
