"""The queue of a search without Ray: which group gets which trial, what is pruned and selected; and the figures of the results."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stlab.errors import StudyError
from stlab.execution.collect import search_rows
from stlab.execution.events import Recorded, Resumed
from stlab.execution.queue import Assignment, TrialQueue
from stlab.execution.run_search import histories, is_searching, prepare
from stlab.execution.search_supply import SearchSupply, SearchWork
from stlab.execution.supply import WAIT
from stlab.report.figures.search import draw_search, read_search
from stlab.report.page.search_text import search_content
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus
from stlab.study.plan import Plan
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from tests.support.searches import finish, planned

VARIANTS = "variants={full: {}, w/o flow: {model.flow: false, model.cross_prompt_layers: 0}}"


def queue_of(store: Store, plan: Plan, groups: int = 2) -> TrialQueue:
    resources = plan.branches[0].template.spec.resources
    todo = tuple(trial for trial in plan.trials if not TrialDirectory(store, trial.trial_id).is_over())
    work = SearchWork(plan.study, plan.branches, todo, (resources,) * groups)
    return TrialQueue(functools.partial(SearchSupply, store, work))


def train(store: Store, taken: Assignment) -> str:
    """Write what a worker leaves behind, without the training."""
    directory = TrialDirectory(store, taken.task.trial_id)
    if directory.status() is not TrialStatus.FINISHED:
        finish(directory, {f"train.{name}": value for name, value in taken.task.trial.spec.train.model_dump().items()})
    if taken.task.test:
        store.write_json(f"trials/{taken.task.trial_id}/test.json", {"rmse": 1.0})
    return "finished"


def run_all(store: Store, queue: TrialQueue, groups: int = 2) -> list[Assignment]:
    """All groups take and end in turn, until none is given anything."""
    done, running = [], dict.fromkeys(range(groups))
    for _ in range(1000):
        for pack in list(running):
            if running[pack] is not None:
                queue.end(pack, train(store, running[pack]))
            taken = queue.take(pack)
            if taken is None:
                del running[pack]
            elif isinstance(taken, Assignment):
                running[pack] = taken
                done.append(taken)
            else:
                running[pack] = None
        if not running:
            return done
    raise AssertionError("the search does not end")


def test_baselines_then_both_searches_then_what_they_select(tmp_path: Path) -> None:
    plan = planned(VARIANTS, "seeds=[0, 1]", "baselines=[last_value]", "search.max_trials=8")
    store = Store(tmp_path)
    done = run_all(store, queue_of(store, plan))
    assert done[0].task.trial.identity["weights"] == "none", "the baseline leads"
    searched, measured = [d for d in done if not d.task.test], [d for d in done if d.task.test]
    assert len(searched) == 16
    assert len({d.task.trial_id for d in searched}) == 16, "no trial is given out twice"
    assert len(measured) == 1 + 2 * 2, "the baseline, and two seeds of each selection"
    assert not is_searching(plan, store)
    for history in histories(plan, store):
        best = history.best(history.entries())
        assert best is not None
        tested = [e.number for e in history.entries() if TrialDirectory(store, e.trial_id or "").is_tested()]
        assert tested == [best.number], "the test segment is read by the selected configuration alone"
    assert run_all(store, queue_of(store, plan)) == [], "nothing is left to do"


def test_a_killed_board_goes_on_with_what_was_running(tmp_path: Path) -> None:
    plan, store = planned("search.max_trials=10", "seeds=[0]"), Store(tmp_path)
    first = queue_of(store, plan)
    taken = [first.take(0), first.take(1)]
    first.end(0, train(store, taken[0]))
    running = [first.take(0), taken[1]]
    second = queue_of(store, plan)
    first.end(1, train(store, running[1]))
    assert first.take(1) is None, "a group whose queue was left behind is given nothing new"
    assert first.take(0) is None, "nor its trial again, if its workers died over it: the other queue's groups train that"
    again = second.take(0)
    assert isinstance(again, Assignment)
    assert again.task.trial_id == running[0].task.trial_id, "the finished one is told at once, the other is run again"
    second.end(0, train(store, again))
    run_all(store, second)
    (history,) = histories(plan, store)
    assert [entry.number for entry in history.entries()] == list(range(10))
    assert len({entry.trial_id for entry in history.entries()}) == 10
    assert all(entry.told for entry in history.entries())


def test_an_equal_point_is_not_trained_twice_and_groups_wait_for_the_selection(tmp_path: Path) -> None:
    one = "search={space: {model.peft: {categorical: [adapter, none]}}, sampler: random, max_trials: 12}"
    plan, store = planned(one, "seeds=[0, 1, 2]"), Store(tmp_path)
    queue = queue_of(store, plan, groups=3)
    taken = [queue.take(0), queue.take(1)]
    assert len({t.task.trial_id for t in taken if isinstance(t, Assignment)}) == 2
    assert queue.take(2) is WAIT, "both points are being trained; a selection will come"
    for pack in (0, 1):
        queue.end(pack, train(store, taken[pack]))
    chosen = [queue.take(pack) for pack in range(3)]
    assert all(isinstance(c, Assignment) and c.task.test for c in chosen)
    assert sorted(c.task.trial.spec.seed for c in chosen if isinstance(c, Assignment)) == [0, 1, 2]
    events = queue.drain()
    assert events[0] == Resumed(0)
    assert sum(isinstance(event, Recorded) for event in events) == 12


def test_the_pruner_stops_what_falls_behind(tmp_path: Path) -> None:
    plan, store = planned("search.pruner=median", "search.pruner_warmup=3", "search.max_trials=7"), Store(tmp_path)
    queue = queue_of(store, plan, groups=1)
    for number in range(7):
        taken = queue.take(0)
        assert isinstance(taken, Assignment)
        assert taken.task.prunable
        error = float(number)  # every trial is worse than all before
        answers = [queue.report(0, [{"epoch": e, "val_rmse": error, "seconds": 1.0}]) for e in (1, 2, 3)]
        directory = TrialDirectory(store, taken.task.trial_id)
        directory.write_trial({})
        directory.write_epochs([{"epoch": e, "val_rmse": error, "seconds": 1.0} for e in (1, 2, 3)])
        if number < 5:
            assert answers == [None] * 3, "the median needs five trials"
            directory.write_result({"val_rmse": error, "device_seconds": 3.0})
        else:
            assert answers[:2] == [None, None], "warm-up"
            assert "median" in answers[2]
            directory.write_pruned({"reason": answers[2], "epoch": 3})
        queue.end(0, directory.status().value)
    assert [e.status for e in queue.drain() if isinstance(e, Recorded)] == ["complete"] * 5 + ["pruned"] * 2


def test_a_search_whose_base_changed_is_set_aside(tmp_path: Path) -> None:
    plan, store = planned("search.max_trials=2"), Store(tmp_path)
    run_all(store, queue_of(store, plan))
    assert prepare(plan, store, retry_failed=False) is None
    other = planned("search.max_trials=2", "train.patience=3")
    assert is_searching(other, store)
    assert prepare(other, store, retry_failed=False)


@pytest.fixture
def searched(tmp_path: Path) -> tuple[Store, Plan]:
    overrides = [VARIANTS, "seeds=[0, 1]", "search.max_trials=24", "search.objectives=[val_rmse, device_seconds]"]
    space = "search.space.model.patch={categorical: [1, 2]}"
    plan, store = planned(*overrides, space), Store(tmp_path)
    run_all(store, queue_of(store, plan))
    return store, plan


def test_rows_are_the_selection_and_apart_from_it_every_trial(searched: tuple[Store, Plan]) -> None:
    store, plan = searched
    rows = search_rows(plan, store)
    table = [row for row in rows if not row["searched"]]
    assert [(row["variant"], row["seed"]) for row in table] == [("full", 0), ("full", 1), ("w/o flow", 0), ("w/o flow", 1)]
    assert all(row["test_rmse"] == 1.0 for row in table)
    others = [row for row in rows if row["searched"]]
    assert all(row["test_rmse"] is None for row in others)
    assert len({row["trial_id"] for row in rows}) == len(rows)
    assert len(others) + 2 == len({e.trial_id for history in histories(plan, store) for e in history.entries()})
    StudyDirectory(store, "bikes").write_trials(rows)
    kept = StudyDirectory(store, "bikes").read_trials()
    assert sum(kept["searched"].to_pylist()) == len(others)


def test_the_page_shows_the_search(searched: tuple[Store, Plan]) -> None:
    store, plan = searched
    search_rows(plan, store)
    found = read_search(store, "bikes")
    assert found is not None
    assert found.branches == ["full", "w/o flow"]
    figures = draw_search(found)
    assert [one.name for one in figures] == ["search_history", "search_slices", "search_parallel", "search_front"]
    counts = {branch: len({row["trial_id"] for row in found.complete() if row["arm"] == branch}) for branch in found.branches}
    missing = ", ".join(f"{50 - count} of '{branch}'" for branch, count in counts.items())
    assert f"from 50 finished trials on; missing are {missing}." in figures[1].caption
    rows = [{"arm": "full", "field": "train.lr", "objective": "val_rmse", "importance": 1.0, "low": 0.7, "high": 1.0, "trials": 50}]
    assert "search_importance" in [one.name for one in draw_search(replace(found, importance=rows))]
    content = search_content(found)
    assert "24 trials by tpe" in content["sentences"][0]
    assert "read once" in content["test_use"]
    assert [line["selected"] for line in content["best"]].count(True) == 2
    assert read_search(store, "other") is None


def test_a_pruned_trial_can_be_trained_to_its_end(
    make_trial: Callable[..., TrialSpec], directory: TrialDirectory, tmp_path: Path
) -> None:
    trial = make_trial(max_epochs=4, patience=10)

    def stop_after_two(event: Any) -> str | None:
        return "worse than others" if event["rows"][-1]["epoch"] == 2 else None

    assert run_trial(trial, {}, directory, test=False, report=stop_after_two, prunable=True) is TrialStatus.PRUNED
    assert [row["epoch"] for row in directory.read_epochs()] == [1, 2]
    assert directory.row()["status"] == "pruned"
    assert directory.row()["epochs"] == 2
    assert not directory.is_tested()
    assert run_trial(trial, {}, directory, test=False, prunable=True) is TrialStatus.PRUNED, "as it was"
    assert run_trial(trial, {}, directory, test=False) is TrialStatus.FINISHED, "another study wants it whole"
    undisturbed = TrialDirectory(Store(tmp_path / "other"), "whole")
    assert run_trial(trial, {}, undisturbed, test=False, report=stop_after_two) is TrialStatus.FINISHED, "its answers do not count"
    ours, theirs = (d.read("result.json") or {} for d in (directory, undisturbed))
    assert (ours["val_rmse"], ours["epochs"]) == (theirs["val_rmse"], theirs["epochs"])
    assert math.isfinite(ours["val_rmse"])


def test_captions_keep_capitals_and_no_ordinary_trial_is_cut_off(tmp_path: Path) -> None:
    """Late in a search many points are chosen again; they must not narrow the figure to themselves."""
    plan, store = planned("search.objectives=[val_mae]", "search.max_trials=12"), Store(tmp_path)
    run_all(store, queue_of(store, plan))
    search_rows(plan, store)
    found = read_search(store, "bikes")
    assert found is not None
    again = [dict(min(found.complete(), key=found.value)) for _ in range(30)]
    values = [2.155, 2.157, 2.159, 2.163, 2.164, 2.173, 2.19, 2.212, 2.23, 2.24]
    for row, value in zip(found.rows, values, strict=False):
        row["value.val_mae"] = value
    for row in again:
        row["value.val_mae"] = values[0]
    crowded = replace(found, rows=[*found.rows[: len(values)], *again])
    figures = {one.name: one for one in draw_search(crowded)}
    assert figures["search_history"].caption.startswith("Validation MAE")
    low, high = figures["search_history"].figure.axes[0].get_ylim()
    assert low < values[0] < values[-1] < high
    crowded.rows[9]["value.val_mae"] = 900.0
    low, high = draw_search(crowded)[0].figure.axes[0].get_ylim()
    assert values[-2] < high < 900


CITIES = "datasets={bikes: {path: bikes.npz}, taxis: {path: taxis.npz}, trains: {path: trains.npz}}"


def train_on(store: Store, taken: Assignment) -> str:
    """As ``train``: the optimal rate is the data set's own, and so is the size of its errors."""
    spec, directory = taken.task.trial.spec, TrialDirectory(store, taken.task.trial_id)
    if directory.status() is not TrialStatus.FINISHED:
        size, best = {"bikes": (1.0, -3.5), "taxis": (50.0, -3.0), "trains": (1000.0, -2.5)}[spec.dataset_entry]
        error = size * (1 + (math.log10(spec.train.lr) - best) ** 2)
        directory.write_trial({})
        directory.write_epochs([{"epoch": 1, "val_rmse": error, "val_mae": error, "seconds": 1.0}])
        directory.write_result({"val_rmse": error, "val_mae": error, "device_seconds": 2.0})
    if taken.task.test:
        store.write_json(f"trials/{taken.task.trial_id}/test.json", {"rmse": 1.0})
    return "finished"


def cities(*overrides: str) -> Plan:
    space = "search.space={train.lr: {float: [1.0e-5, 1.0e-1], log: true}}"
    return planned(CITIES, space, "search.max_trials=12", "seeds=[0, 1]", *overrides)


def test_a_search_is_one_for_each_data_set_or_one_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.execution.test_search_supply.train", train_on)
    assert [branch.label for branch in cities().branches] == ["bikes: base", "taxis: base", "trains: base"]
    plan, store = cities("search.over=datasets"), Store(tmp_path)
    assert [branch.label for branch in plan.branches] == ["base"]
    done = run_all(store, queue_of(store, plan, groups=4), groups=4)
    (history,) = histories(plan, store)
    entries = history.entries()
    assert len(entries) == 12
    assert all(len(entry.trial_ids) == 3 and entry.told for entry in entries)
    trained = [taken for taken in done if not taken.task.test]
    assert len({taken.task.trial_id for taken in trained}) == len(trained) == 36
    best = history.best(entries)
    assert best is not None
    for entry in entries:  # the geometric mean, from the errors that each directory holds
        errors = [TrialDirectory(store, trial_id).read("result.json")["val_rmse"] for trial_id in entry.trial_ids]  # type: ignore[index]
        assert history.outcome(entry).values == pytest.approx([math.prod(errors) ** (1 / 3)])  # type: ignore[union-attr]
        assert history.outcome(entry).device_seconds == 6.0  # type: ignore[union-attr]
    assert abs(math.log10(best.params["train.lr"]) + 3) < 0.5, "the largest errors do not decide it alone"
    tested = [(taken.task.trial.spec.dataset_entry, taken.task.trial.spec.seed) for taken in done if taken.task.test]
    assert sorted(tested) == [(name, seed) for name in ("bikes", "taxis", "trains") for seed in (0, 1)]
    assert {taken.task.trial.spec.train.lr for taken in done if taken.task.test} == {best.params["train.lr"]}
    assert not is_searching(plan, store)
    rows = search_rows(plan, store)
    assert len(rows) == 3 * 12 + 3  # the second seed of the selection was not among the points
    sentence = " ".join(search_content(read_search(store, "bikes"))["sentences"])  # type: ignore[arg-type]
    assert "12 points, each trained on every data set" in sentence


def test_a_point_on_several_data_sets_goes_on_where_a_killed_queue_left_it(tmp_path: Path) -> None:
    plan, store = cities("search.over=datasets", "search.max_trials=2"), Store(tmp_path)
    first = queue_of(store, plan, groups=1)
    taken = first.take(0)
    assert isinstance(taken, Assignment)
    first.end(0, train_on(store, taken))
    assert isinstance(first.take(0), Assignment)  # the second data set is being trained when the queue dies
    (history,) = histories(plan, store)
    assert [entry.told for entry in history.entries()] == [False]
    second = queue_of(store, plan, groups=1)
    names = []
    while isinstance(taken := second.take(0), Assignment):
        names.append((taken.task.trial.spec.dataset_entry, taken.task.test))
        second.end(0, train_on(store, taken))
    assert names[:2] == [("taxis", False), ("trains", False)], "what was finished is not trained again"
    assert [entry.told for entry in history.entries()] == [True, True]


def test_a_data_set_on_which_a_point_fails_fails_the_point(tmp_path: Path) -> None:
    plan, store = cities("search.over=datasets", "search.max_trials=1"), Store(tmp_path)
    queue = queue_of(store, plan, groups=1)
    while isinstance(taken := queue.take(0), Assignment):
        if taken.task.trial.spec.dataset_entry == "taxis":
            TrialDirectory(store, taken.task.trial_id).write_failure({"reason": "no memory"})
            queue.end(0, "failed")
        else:
            queue.end(0, train_on(store, taken))
    (history,) = histories(plan, store)
    assert history.best(history.entries()) is None
    assert [row["status"] for row in search_rows(plan, store) if not row["searched"]] == ["missing"] * 3


@pytest.mark.parametrize(
    ("override", "words"), [("datasets={}", "names no data sets"), ("search.pruner=median", "compares epochs of one data set")]
)
def test_a_search_over_data_sets_that_cannot_be_is_refused(override: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        cities("search.over=datasets", override)
