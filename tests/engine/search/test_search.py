"""A search's space, samplers and history agree with Optuna's, and are the same after any interruption."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from stlab.errors import StudyError
from stlab.execution.run_search import is_over
from stlab.inspection.cost import left_to_search
from stlab.search.history import History, State
from stlab.search.samplers import create_sampler, settle
from stlab.search.space import Space, as_optuna, as_params
from stlab.search.study import BranchSearch
from stlab.search.table import Tried, importance_table, pareto, search_table
from stlab.storage import Store, TrialDirectory
from stlab.study.file import dump_study, parse
from stlab.study.source import StudySource
from stlab.study.spec import Distribution, SearchSpec
from tests.support.searches import CONDITIONAL, asked, finish, planned, searching, step, value_of


def seen(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.params, t.distributions, t.state, t.values, t.intermediate_values) for t in study.trials]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"float": [0.1, 2]}, FloatDistribution(0.1, 2.0)),
        ({"float": [1e-4, 1e-2], "log": True}, FloatDistribution(1e-4, 1e-2, log=True)),
        ({"float": [0, 1], "step": 0.25}, FloatDistribution(0.0, 1.0, step=0.25)),
        ({"int": [2, 64], "log": True}, IntDistribution(2, 64, log=True)),
        ({"int": [0, 8], "step": 2}, IntDistribution(0, 8, step=2)),
        ({"categorical": ["adapter", None, 3, True]}, CategoricalDistribution(["adapter", None, 3, True])),
        ({"categorical": [["dtw"], ["dtw", "spectrum"]]}, CategoricalDistribution(['["dtw"]', '["dtw", "spectrum"]'])),
    ],
)
def test_distributions_are_optunas(written: dict[str, Any], expected: Any) -> None:
    assert as_optuna(Distribution(**written)) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.space.train.lr={float: [1, 2], int: [1, 2]}", "this has float and int"),
        ("search.space.train.lr={float: [2, 1]}", "low must be below high"),
        ("search.space.train.lr={float: [0, 1], log: true}", "log needs a low above 0"),
        ("search.space.train.lr={categorical: [1, 1]}", "all different"),
        ("search.space.train.lr={floot: [1, 2]}", "Did you mean 'float'"),
        ("search.space.train.lrr={float: [1, 2]}", "Did you mean 'lr'"),
        ("search.space.model.rnak={int: [1, 2]}", "Did you mean 'rank'"),
        ("search.space.data.history={int: [1, 9]}", "data.history cannot be searched"),
        ("search.space.resources.cpus={int: [1, 2]}", "resources.cpus cannot be searched"),
        ("search.space.model.temporal_patch={int: [2, 4]}", "temporal_patch=4 does not divide"),
        ("search.space.model.dropout={float: [0, 1.5]}", "model.dropout must lie in [0, 1)"),
        ("search.space.model.rank={int: [2, 8], when: {model.pefd: lora}}", "Did you mean 'model.peft'"),
        ("search.space.model.rank={int: [2, 8], when: {train.lr: 7}}", "the condition never holds"),
        ("search.space={model.rank: {int: [2, 8], when: {model.patch: 1}}, model.patch: {int: [1, 2], when: {model.rank: 2}}}", "cycle"),
        ("search.objectives=[device_seconds]", "the first objective selects"),
        ("search={space: {train.lr: {float: [1, 2]}}}", "a search needs an end"),
        ("search={space: {train.lr: {float: [1, 2]}}, max_trials: 3, objectives: [val_rmse, device_seconds], pruner: median}",
         "pruner: median compares one error"),
        ("search={space: {train.lr: {float: [1, 2]}}, max_trials: 3, objectives: [val_rmse, device_seconds], sampler: cmaes}",
         "sampler: cmaes minimises one objective"),
        ("search={space: {train.lr: {float: [1, 2]}}, max_trials: 3, sampler: nsga2, pruner: median}",
         "pruner: median stops trials that sampler: nsga2"),
        ("search.points=[{train.lr: 1.0}]", "1.0 is not within 1e-05 and 0.1"),
        ("search.points=[{model.rank: 4}]", "model.rank is not in the space"),
        ("axes.train.lr=[1, 2]", "is an axis too"),
        ("variants={a: {train.lr: 1.0}, b: {train.lr: 2.0}}", "every variant sets this field"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(override: str, words: str) -> None:
    with pytest.raises(StudyError, match=words.replace("[", r"\[").replace("(", r"\(").replace(")", r"\)")):
        planned(override)


def test_a_search_is_read_again_as_it_was_written() -> None:
    study = planned(CONDITIONAL).study
    assert parse(StudySource.from_text(dump_study(study))) == study


def test_conditional_fields_are_drawn_only_under_their_conditions(tmp_path: Path) -> None:
    plan = planned(CONDITIONAL, "search.sampler=random", "search.max_trials=40", "variants={free: {}, fixed: {model.peft: adapter}}")
    free, fixed = (BranchSearch(Store(tmp_path), plan.study, branch) for branch in plan.branches)
    points = []
    while (entry := (found := asked(free))[0]) is not None:
        trial = found[1]
        assert trial is not None
        assert all(trial.spec.model[path.partition(".")[2]] == value for path, value in entry.params.items())
        points.append(entry.params)
    assert len(points) == 40
    assert {point["model.peft"] for point in points} == {"adapter", "lora"}
    assert all(("model.rank" in point) == (point["model.peft"] == "lora") for point in points)
    assert all(2 <= point["model.rank"] <= 64 for point in points if "model.rank" in point)
    assert [entry.params for entry, _ in [asked(fixed)] if entry] == [{}], "nothing is left to search here"


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsga2", "gp"])
def test_an_interrupted_search_is_the_same_search(tmp_path: Path, sampler: str) -> None:
    trials = 12 if sampler == "gp" else 25
    objectives = "[val_rmse, device_seconds]" if sampler == "nsga2" else "[val_rmse]"
    plan = planned(
        f"search.sampler={sampler}", f"search.max_trials={trials}", f"search.objectives={objectives}",
        "search.points=[{train.lr: 3.0e-4, model.flow_weight: 1.0}, {train.lr: 2.0e-2}]",
    )  # fmt: skip
    whole = searching(Store(tmp_path / "whole"), plan)
    while step(whole):
        pass

    torn_store, moments = Store(tmp_path / "torn"), ["ask", "tell", "finish", "tell", "tell", "ask", "ask"]
    for index in range(200):
        torn = searching(torn_store, plan)  # all that is known is on disk
        for _ in range(index % 3):
            if not step(torn):
                break
        if not step(torn, moments[index % len(moments)]):
            break
    torn = searching(torn_store, plan)
    assert seen(torn.study) == seen(whole.study)
    assert len(seen(torn.study)) == trials
    if sampler != "nsga2":  # whose children are now and then their parents again
        assert len({e.trial_id for e in torn.entries}) == trials

    # Optuna itself, in memory and never interrupted, with the same seeds.
    study = optuna.create_study(study_name=whole.name, directions=["minimize"] * (2 if sampler == "nsga2" else 1))
    study.enqueue_trial({"train.lr": 3e-4, "model.flow_weight": 1.0})
    study.enqueue_trial({"train.lr": 2e-2})
    for number in range(trials):
        study.sampler = create_sampler(plan.study.search, whole.name, number)  # type: ignore[arg-type]
        settle(study.sampler, study)
        trial = study.ask()
        point = {"train.lr": trial.suggest_float("train.lr", 1e-5, 1e-1, log=True),
                 "model.flow_weight": trial.suggest_float("model.flow_weight", 0.0, 2.0)}  # fmt: skip
        study.tell(trial, list(value_of(point)) if sampler == "nsga2" else value_of(point)[0])
    assert [t.params for t in whole.study.trials] == [t.params for t in study.trials]
    assert [t.values for t in whole.study.trials] == [t.values for t in study.trials]


def test_tpe_finds_the_bottom_of_the_bowl(tmp_path: Path) -> None:
    search = searching(Store(tmp_path), planned("search.max_trials=60"))
    while step(search):
        pass
    assert search.study.best_value < 0.05
    best = search.selected()
    assert [trial.spec.seed for trial in best] == [0]
    assert best[0].trial_id == search.history.best(search.entries).trial_id  # type: ignore[union-attr]


def test_pruned_and_failed_trials_are_told_as_such(tmp_path: Path) -> None:
    plan = planned("search.pruner=median", "search.max_trials=4")
    search = searching(Store(tmp_path), plan)
    statuses = ["finished", "pruned", "failed", "diverged"]
    for status in statuses:
        entry, trial = asked(search)
        assert entry is not None
        assert trial is not None
        directory = TrialDirectory(search.history.store, trial.trial_id)
        if status == "finished":
            finish(directory, entry.params)
        else:
            directory.write_trial({})
            directory.write_epochs([{"epoch": 1, "val_rmse": 9.0, "seconds": 1.0}, {"epoch": 2, "val_rmse": 8.0, "seconds": 1.0}])
        if status == "pruned":
            directory.write_pruned({"reason": "median", "epoch": 2})
        elif status == "failed":
            directory.write_failure({"reason": "out of memory", "log_tail": []})
        elif status == "diverged":
            directory.write_result({"val_rmse": math.inf, "device_seconds": 1.0})
        search.tell(entry.number)
    expected = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    for study in (search.study, searching(search.history.store, plan).study):
        assert [trial.state for trial in study.trials] == expected
        assert study.trials[1].intermediate_values == {1: 9.0, 2: 8.0}
    assert search.next(0.0) is None
    # Another search of the same trials without a pruner trains the pruned one to its end.
    again = searching(search.history.store, planned("search.max_trials=4"))
    entry, _ = asked(again)
    assert entry is not None
    assert entry.number == 1


def test_a_failed_trial_is_run_again_under_its_number_when_asked(tmp_path: Path) -> None:
    plan, store = planned("search.max_trials=2"), Store(tmp_path)
    search = searching(store, plan)
    entry, trial = asked(search)
    assert entry is not None
    assert trial is not None
    TrialDirectory(store, trial.trial_id).write_failure({"reason": "no memory"})
    search.tell(0)
    History(store, plan.study, plan.branches[0]).retry_failed()
    again, same = asked(searching(store, plan))
    assert again is not None
    assert again.number == 0
    assert same is not None
    assert same.trial_id == trial.trial_id


def test_what_failed_of_the_selection_is_run_again_when_asked(tmp_path: Path) -> None:
    """Without a retry, a failed seed or test of the selection would stay failed forever."""
    plan, store = planned("search.max_trials=2", "seeds=[0, 1]"), Store(tmp_path)
    search = searching(store, plan)
    while step(search):
        pass
    history = History(store, plan.study, plan.branches[0])
    best = history.best(history.entries())
    assert best is not None
    first, second = (TrialDirectory(store, trial.trial_id) for trial in history.selected(best))
    first.write_failure({"reason": "at its test"})
    second.write_failure({"reason": "in training"})
    assert first.is_over()
    assert second.is_over()
    assert is_over(history, 0.0)
    history.retry_failed()
    assert not first.is_over()
    assert not second.is_over()
    assert not is_over(history, 0.0)


def test_what_a_search_has_left_is_forecast(tmp_path: Path) -> None:
    plan, store = planned("search.max_trials=5", "seeds=[0, 1, 2]", CONDITIONAL), Store(tmp_path)
    (left,), unbounded = left_to_search(plan, store)
    assert (left.label, left.count, unbounded) == ("base", 5 + 2, [])
    assert {trial.spec.model["peft"] for trial in left.corners} == {"adapter", "lora"}
    search = searching(store, plan)
    while step(search):
        pass
    (left,), _ = left_to_search(plan, store)
    assert left.count == 3, "the selected configuration with three seeds, none of them measured"
    endless = planned("search={space: {train.lr: {float: [1.0e-5, 0.1], log: true}}, max_wall: 1}")
    assert left_to_search(endless, store) == ([], ["base"])


@pytest.mark.parametrize(("gpus", "trials"), [(0, 3), (0.5, 6), (2, 2)])
def test_gpu_hours_are_hours_of_gpus(tmp_path: Path, gpus: float, trials: int) -> None:
    """With a budget of one hour and 1300 s per trial, a GPU that two trials share serves twice as many trials."""
    hours = "search={space: {train.lr: {float: [1.0e-5, 0.1], log: true}}, sampler: random, max_gpu_hours: 1}"
    search = searching(Store(tmp_path), planned(hours, f"resources.gpus={gpus}"))
    begun = 0
    while (entry := (found := asked(search))[0]) is not None:
        trial = found[1]
        assert trial is not None
        finish(TrialDirectory(search.history.store, trial.trial_id), entry.params, seconds=1300)
        search.tell(entry.number)
        begun += 1
    assert begun == trials


def test_budgets_end_a_search(tmp_path: Path) -> None:
    unbounded = "search={space: {train.lr: {float: [1.0e-5, 0.1], log: true}}, sampler: random"
    hours = searching(Store(tmp_path / "hours"), planned(f"{unbounded}, max_gpu_hours: 1}}"))
    for number in range(3):
        entry, trial = asked(hours)
        assert entry is not None, number
        assert trial is not None
        finish(TrialDirectory(hours.history.store, trial.trial_id), entry.params, seconds=1300)
        hours.tell(entry.number)
    assert hours.next(0.0) is None, "3 × 1300 s is more than an hour"
    wall = searching(Store(tmp_path / "wall"), planned(f"{unbounded}, max_wall: 0.5}}"))
    assert wall.next(1799.0) is not None
    assert wall.next(1801.0) is None
    # Four points are all there is: the search ends, though it has hours left.
    four = "{model.patch: {categorical: [1, 2]}, model.peft: {categorical: [adapter, none]}}"
    small = f"search={{space: {four}, sampler: random, max_gpu_hours: 9}}"
    used_up = searching(Store(tmp_path / "small"), planned(small))
    while step(used_up):
        pass
    assert len({entry.trial_id for entry in used_up.entries}) == 4


def test_a_search_of_another_base_starts_anew_and_a_wider_space_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = planned("search.max_trials=3")
    search = searching(store, first)
    while step(search):
        pass
    wider = planned("search.space.train.lr={float: [1.0e-6, 1.0], log: true}")
    assert History(store, wider.study, wider.branches[0]).keep_or_move() is None
    assert [t.params for t in searching(store, wider).study.trials] == [t.params for t in search.study.trials]
    other = planned("train.clip_norm=0.05")
    kept = History(store, other.study, other.branches[0]).keep_or_move()
    assert kept is not None
    assert len(store.names(kept)) == 3
    assert not History(store, other.study, other.branches[0]).entries()


def test_an_optuna_storage_shows_the_search_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'search.db'}"
    plan = planned(f"search.storage={url}", "search.max_trials=4")
    for _ in range(3):  # every start builds the study again
        step(searching(Store(tmp_path / "runs"), plan))
    (name,) = optuna.get_all_study_names(url)
    shown = optuna.load_study(storage=url, study_name=name)
    assert [trial.state for trial in shown.trials] == [TrialState.COMPLETE] * 3
    assert shown.metric_names == ["val_rmse"]
    optuna.delete_study(storage=url, study_name=name)
    optuna.create_study(storage=url, study_name=name)
    with pytest.raises(StudyError, match="stlab did not make"):
        searching(Store(tmp_path / "runs"), plan)
    with pytest.raises(StudyError, match="cannot be used"):
        searching(Store(tmp_path / "runs"), planned("search.storage=nosuch://x"))


def test_the_front_and_the_importance(tmp_path: Path) -> None:
    assert pareto({0: (1.0, 5.0), 1: (2.0, 4.0), 2: (2.0, 6.0), 3: (3.0, 3.0), 4: (3.0, 4.0)}) == {0, 1, 3}
    assert pareto({0: (3.0,), 1: (1.0,)}) == {1}
    plan = planned("search.max_trials=120", "search.sampler=random", "search.space.model.dropout={float: [0.0, 0.5]}")
    search = searching(Store(tmp_path), plan)
    while step(search):
        pass
    entries = [(entry, search.history.outcome(entry)) for entry in search.entries]
    best = search.history.best(search.entries)
    assert best is not None
    tried = Tried(search.history, entries, best.number)
    rows = importance_table([tried]).to_pylist()
    assert all(0 <= row["low"] <= row["importance"] <= row["high"] for row in rows)
    assert all(0 < row["high"] - row["low"] < 0.9 for row in rows)
    assert importance_table([replace(tried, entries=entries[:49])]).num_rows == 0
    found = {row["field"]: row["importance"] for row in rows}
    assert sum(found.values()) == pytest.approx(1.0)
    # The error spans 4 along log10(lr) and 2.25 along λ, and does not change with dropout.
    assert min(found["train.lr"], found["model.flow_weight"]) > 2 * found["model.dropout"]
    table = search_table(plan.study, [tried])
    assert table["value.val_rmse"].to_pylist() == [value_of(entry.params)[0] for entry in search.entries]
    assert [row["number"] for row in table.to_pylist() if row["selected"]] == [best.number]
    assert set(table["state"].to_pylist()) == {State.COMPLETE.value}


def test_a_field_that_changes_nothing_is_not_searched_there() -> None:
    variants = "variants={full: {}, w/o flow: {model.flow: false, model.cross_prompt_layers: 0}}"
    plan = planned(variants)
    assert ["model.flow_weight" in branch.fixed for branch in plan.branches] == [False, True]
    assert [note for note in plan.notes if "w/o flow" in note] == [
        "'w/o flow' does not search model.flow_weight: it changes nothing there."
    ]
    with pytest.raises(StudyError, match=r"search\.space\.model\.flow_weight: changes nothing in any variant"):
        planned("model.flow=false", "model.cross_prompt_layers=0")
    # Where the switch itself is searched, the weight counts at one of its values.
    both = planned("model.flow=false", "model.cross_prompt_layers=0", "search.space.model.flow={categorical: [true, false]}")
    assert both.branches[0].fixed == {}


def test_a_point_is_the_spaces_own(tmp_path: Path) -> None:
    plan = planned(CONDITIONAL)
    assert plan.study.search is not None
    space = Space(plan.study.search, plan.branches[0])
    assert list(space.fields) == ["model.peft", "model.rank"], "what a condition reads comes first"
    assert space.holds({"model.peft": "lora", "model.rank": 8})
    assert not space.holds({"model.peft": "lora"})
    assert not space.holds({"model.peft": "adapter", "model.rank": 8})
    assert not space.holds({"model.peft": "lora", "model.rank": 65})
    assert as_params({"model.channels": ["dtw"], "train.lr": 0.1}) == {"model.channels": '["dtw"]', "train.lr": 0.1}


def test_a_field_set_to_null_is_not_searched() -> None:
    found = SearchSpec.model_validate(
        {
            "space": {"train.lr": {"float": [1e-4, 1e-2]}, "model.rank": None},
            "points": [{"train.lr": 1e-3, "model.rank": 4}],
            "max_trials": 3,
        }
    )
    assert list(found.space) == ["train.lr"]
    assert found.points == [{"train.lr": 1e-3}]
