"""What a study will cost: measured shapes, the sums that follow, and estimated beside actual cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stlab.errors import ResourceError
from stlab.execution.capacity import groups_here
from stlab.execution.time_left import shape_of
from stlab.inspection import cost as probe
from stlab.inspection.cost import Measured, ToSearch, estimate_cost, measure, write_cost_estimate
from stlab.report.page.cost import cost_text, estimated_and_actual_cost, read_cost_estimates
from stlab.storage import Store
from stlab.study.plan import PlannedTrial
from stlab.study.spec import ResourcesSpec, TrialSpec

MEASURED = Measured(0.1, 10, 2.0, 1.0, 2**30, "a CPU, 1 threads")


def test_a_shape_is_what_costs(make_trial: Callable[..., TrialSpec]) -> None:
    base = shape_of(make_trial())
    assert shape_of(make_trial(seed=3, lr=1e-4, max_epochs=7, patience=2, model={"flow_weight": 0.1})) == base
    for other in (make_trial(batch_size=16), make_trial(precision="bf16"), make_trial(model={"rank": 3})):
        assert shape_of(other) != base
    priced = make_trial().model_copy(update={"resources": ResourcesSpec(gpus=0, price_per_gpu_hour=2.0)})
    assert shape_of(priced) == base


def test_a_few_steps_say_what_an_epoch_takes(make_trial: Callable[..., TrialSpec]) -> None:
    trial = make_trial(batch_size=32)
    found = measure(trial)
    windows = math.floor(0.7 * 240) - 12 + 1  # the train segment, less a window's length
    assert found.steps_an_epoch == math.ceil(windows / 32)
    assert found.epoch_seconds > found.steps_an_epoch * found.step_seconds > 0
    assert found.trial_seconds(trial) == trial.train.max_epochs * found.epoch_seconds + found.test_seconds
    assert found.peak_memory_bytes > 0 or not Path("/proc/self/status").exists()


def planned(trials: list[TrialSpec]) -> list[PlannedTrial]:
    return [PlannedTrial(trial, f"{number:016x}", {}) for number, trial in enumerate(trials)]


def test_sums_are_those_of_a_hand(make_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(spec: TrialSpec) -> Measured:
        seen.append(shape_of(spec))
        return replace(MEASURED, epoch_seconds=2.0 if spec.model["rank"] == 2 else 5.0)

    monkeypatch.setattr(probe, "measure", fake)
    resources = ResourcesSpec(workers=2, cpus=3, gpus=0.5, price_per_gpu_hour=10)
    slow = {"rank": 3}
    trials = [make_trial(max_epochs=10), make_trial(seed=1, max_epochs=10), make_trial(model=slow, max_epochs=10)]
    todo = planned([trial.model_copy(update={"resources": resources}) for trial in trials])
    todo.append(PlannedTrial(todo[0].spec.model_copy(update={"baseline": True}), "b", {}))
    made = estimate_cost(todo, {resources: 2})
    assert len(seen) == len(set(seen)) == 2  # seeds share a shape; a baseline is not measured
    assert list(made.seconds.values()) == [21.0, 21.0, 51.0]
    assert made.wall_seconds == 51.0  # 51 | 21 + 21
    assert made.core_hours == pytest.approx(93 / 3600 * 6)
    assert made.gpu_hours == pytest.approx(93 / 3600)  # 2 workers × 0.5
    assert made.price == pytest.approx(93 / 3600 * 10)
    assert (made.ends_at - made.made_at).total_seconds() == 51.0


def test_a_search_counts_as_so_many_of_its_dearest_trials(make_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda spec: replace(MEASURED, epoch_seconds=2.0 if spec.model["rank"] == 2 else 5.0))
    corners = planned([make_trial(max_epochs=10), make_trial(model={"rank": 3}, max_epochs=10)])
    made = estimate_cost([], {corners[0].spec.resources: 2}, searches=[ToSearch("full", tuple(corners), 3)])
    assert list(made.seconds.values()) == [51.0] * 3
    assert made.wall_seconds == 102.0
    assert made.document()["trials"] == {}, "nobody knows their ids"


def test_a_second_estimate_keeps_the_first_ones_trials(
    make_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "measure", lambda spec: MEASURED)
    todo, store = planned([make_trial(), make_trial(seed=1)]), Store(tmp_path)
    slots = {todo[0].spec.resources: 1}
    write_cost_estimate(store, "small", estimate_cost(todo, slots))
    write_cost_estimate(store, "small", estimate_cost(todo[1:], slots))
    assert read_cost_estimates(store, ["small"]).keys() == {trial.trial_id for trial in todo}


def test_this_machine_runs_as_many_as_its_gpus_and_the_quota_let_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cases = [({}, 2), ({"gpus": 0}, 16), ({"gpus": 0.2}, 10), ({"workers": 2}, 1), ({"cpus": 12}, 1), ({"gpus": 0, "max_cpus": 3}, 3)]
    cases += [({"gpus": 0.1, "max_gpus": 0.5}, 5), ({"gpus": 8}, 1)]
    assert [groups_here(ResourcesSpec(**given)) for given, _ in cases] == [most for _, most in cases]


def test_no_price_and_no_gpu_mean_no_money(make_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure", lambda spec: MEASURED)
    todo = planned([make_trial()])
    made = estimate_cost(todo, {todo[0].spec.resources: 1})
    assert made.gpu_hours == 0
    assert made.price is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_here_cannot_be_measured(make_trial: Callable[..., TrialSpec]) -> None:
    trial = make_trial().model_copy(update={"resources": ResourcesSpec(gpus=1)})
    with pytest.raises(ResourceError, match=r"resources\.gpus=1"):
        measure(trial)


def row(trial_id: str, **values: Any) -> dict[str, Any]:
    return {
        "trial_id": trial_id, "status": "finished", "variant": "full", "seed": 0, "epochs": 6, "wall_seconds": 18.0,
        "val_rmse": 1.0, "test_rmse": 1.0, "param.resources.gpus": 1.0, "param.resources.workers": 2,
        "param.resources.price_per_gpu_hour": 3.0, "param.train.max_epochs": 10, **values,
    }  # fmt: skip


def test_estimated_and_actual_cost_stand_together(
    make_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from stlab.report import summarise

    monkeypatch.setattr(probe, "measure", lambda spec: MEASURED)
    todo = planned([make_trial(max_epochs=10), make_trial(seed=1, max_epochs=10)])
    store = Store(tmp_path)
    write_cost_estimate(store, "small", estimate_cost(todo, {todo[0].spec.resources: 1}))
    estimates = read_cost_estimates(store, ["small", "never measured"])
    assert {one["seconds_at_most"] for one in estimates.values()} == {21.0}
    rows = [row(todo[0].trial_id), row(todo[1].trial_id, seed=1, status="failed"), row("another", seed=2)]
    block = estimated_and_actual_cost(store, ["small"], rows, summarise(rows, []))
    assert block is not None
    line = block["table"][0]
    assert (line["epoch_estimate"], line["epoch"]) == ("2.0 s", "3.0 s")
    assert (line["trial_estimate"], line["trial"]) == ("21 s", "18 s")
    # One of three trials has an estimate and has finished: 18 s × 2 GPUs at 3 an hour.
    assert block["sentence"].startswith("1 trial, one after the other: estimated at most 21 s, took 18 s")
    assert f"took {36 / 3600:.3g}" in block["sentence"]
    assert f"spent {3 * 36 / 3600:.2f}" in block["sentence"]
    assert cost_text(estimates, rows[1:]) == ""
    assert estimated_and_actual_cost(store, ["other"], rows, summarise(rows, [])) is None
