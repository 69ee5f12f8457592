"""The cost of a study before it runs, estimated from a few real training steps of each distinct shape of trial."""

from __future__ import annotations

import copy
import dataclasses
import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import torch

from stlab.catalog import create_config
from stlab.data import Windows
from stlab.errors import ResourceError
from stlab.execution.models import build_model, threads_of
from stlab.execution.run_search import histories, selected, state_of
from stlab.execution.time_left import shape_of
from stlab.storage import Store, TrialDirectory
from stlab.study.plan import Plan, PlannedTrial, plan_point
from stlab.study.spec import ResourcesSpec, TrialSpec
from stlab.training.batches import BatchPlan
from stlab.training.device import PeakMemory, device_name, pick_device, pick_precision
from stlab.training.metrics import evaluate
from stlab.training.setup import TrainingSetup
from stlab.training.step import OptimiserStep, make_optimiser
from stlab.training.trial import dataset_for
from stmodels.rng import initialise, permutation

WARM_UP_STEPS = 2  # the first steps allocate, compile and choose kernels
STEPS = 5
_EVALUATED_BATCHES = 3
_SEARCHED = "at the most"  # note of a placeholder for a trial that a search will choose


@dataclass(frozen=True)
class Measured:
    """Measured cost of a few steps of one shape, and the cost of an epoch that follows from it."""

    step_seconds: float
    """Median seconds for one optimiser step."""
    steps_an_epoch: int
    epoch_seconds: float
    """Seconds for one epoch: its steps and the validation windows."""
    test_seconds: float
    """Seconds for the end of a trial, which evaluates validation and test windows once more."""
    peak_memory_bytes: int
    """Memory of the device on a GPU, and of the process on a CPU."""
    device: str

    def trial_seconds(self, spec: TrialSpec) -> float:
        """An upper bound on the seconds of a trial; early stopping ends sooner."""
        stages = create_config(spec.model).stages()  # about as dear, an epoch
        epochs = spec.train.most_epochs + sum(stage.epochs for stage in stages)
        return epochs * self.epoch_seconds + self.test_seconds


@dataclass(frozen=True)
class ToSearch:
    """Trials that a search has still to choose. Each counts as much as the most expensive of ``corners``."""

    label: str
    corners: tuple[PlannedTrial, ...]
    """The base's trial, and the trials with one searched field at an end of its range or at one of its choices."""
    count: int


@dataclass(frozen=True)
class CostEstimate:
    """An upper bound on the cost of the trials that a study has still to run."""

    trials: dict[str, Measured]
    """Trials to train, by id. Baselines take seconds and are left out."""
    seconds: dict[str, float]
    """Trial id → upper bound in seconds."""
    wall_seconds: float
    """From start to end, with as many trials at once as the resources allow."""
    at_once: int
    core_hours: float
    gpu_hours: float
    price: float | None
    """None if no price is set or no GPU is used."""
    made_at: datetime
    searched: dict[str, PlannedTrial] = field(default_factory=dict)
    """Placeholders for the trials that searches have still to choose, by their names in ``trials``."""

    @property
    def device_hours(self) -> float:
        return math.fsum(self.seconds.values()) / 3600

    @property
    def ends_at(self) -> datetime:
        return self.made_at + timedelta(seconds=self.wall_seconds)

    def document(self) -> dict[str, Any]:
        """The estimate as ``studies/<name>/forecast.json`` holds it."""
        return {
            "made_at": self.made_at.isoformat(),
            "ends_at": self.ends_at.isoformat(),
            "wall_seconds": self.wall_seconds,
            "at_once": self.at_once,
            "core_hours": self.core_hours,
            "gpu_hours": self.gpu_hours,
            "price": self.price,
            "trials": {
                name: {**dataclasses.asdict(measured), "seconds_at_most": self.seconds[name]}
                for name, measured in self.trials.items()
                if name not in self.searched
            },
        }


def estimate_cost(
    todo: Sequence[PlannedTrial],
    slots: Mapping[ResourcesSpec, int],
    on_shape: Callable[[int, int, PlannedTrial], None] = lambda done, total, trial: None,
    searches: Sequence[ToSearch] = (),
) -> CostEstimate:
    """Measure a few training steps of each distinct shape on this machine, and estimate the cost of all trials.

    Args:
        todo: trials to train.
        slots: resources → how many trials that ask for them run at once.
        on_shape: called before each shape is measured, with the number of shapes done, the number of all shapes and a trial of this one.
        searches: each trial that a search has still to choose counts as much as the most expensive one that it may choose.

    Raises:
        ResourceError: a trial asks for a GPU and this machine has none, or its memory does not suffice.
        StudyError: a model cannot be built.
    """
    trained = [trial for trial in todo if not trial.spec.baseline]
    corners = [trial for search in searches for trial in search.corners]
    shapes = {shape_of(trial.spec): trial for trial in reversed([*trained, *corners])}
    measured: dict[str, Measured] = {}
    for done, (shape, trial) in enumerate(reversed(shapes.items())):
        on_shape(done, len(shapes), trial)
        measured[shape] = measure(trial.spec)
    for search in searches:
        most_expensive = max(search.corners, key=lambda trial: measured[shape_of(trial.spec)].trial_seconds(trial.spec))
        trained += [replace(most_expensive, trial_id=f"{search.label} {number}", note=_SEARCHED) for number in range(search.count)]
    by_trial = {trial.trial_id: measured[shape_of(trial.spec)] for trial in trained}
    seconds = {trial.trial_id: by_trial[trial.trial_id].trial_seconds(trial.spec) for trial in trained}
    gpu_hours = math.fsum(seconds[t.trial_id] / 3600 * _gpus(t.spec.resources) * t.spec.resources.workers for t in trained)
    return CostEstimate(
        by_trial,
        seconds,
        wall_seconds=_wall(trained, seconds, slots),
        at_once=max((slots[trial.spec.resources] for trial in trained), default=0),
        core_hours=math.fsum(seconds[t.trial_id] / 3600 * t.spec.resources.cpus * t.spec.resources.workers for t in trained),
        gpu_hours=gpu_hours,
        price=_price(trained, seconds) if gpu_hours else None,
        made_at=datetime.now(UTC),
        searched={trial.trial_id: trial for trial in trained if trial.note == _SEARCHED},
    )


def measure(spec: TrialSpec) -> Measured:
    """Measure a few real training steps and validation batches of one trial.

    Raises:
        ResourceError: it asks for a GPU and this machine has none, or its memory does not suffice.
        StudyError: its model cannot be built.
    """
    if spec.resources.gpus and not torch.cuda.is_available():
        raise ResourceError(
            f"variant '{spec.variant}' asks for a GPU (resources.gpus={spec.resources.gpus:g}) and this machine has none to measure on: "
            "run --probe on a machine like those that will train, or set resources.gpus=0."
        )
    try:
        with threads_of(spec.resources):
            return _measure(spec)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"variant '{spec.variant}' does not fit this GPU's memory at train.batch_size={spec.train.batch_size or 'auto'}: {error}. "
            "Lower the batch size, or share it among more resources.workers where the model allows it."
        ) from error


def _measure(spec: TrialSpec) -> Measured:
    device, dataset = pick_device(spec.resources.gpus), dataset_for(spec.data)
    memory = PeakMemory(device)
    model = build_model(spec)
    initialise(model, spec.seed)
    plan = BatchPlan.of(spec.train, dataset)
    precision = pick_precision(spec.train.precision, device)
    config = create_config(spec.model)
    setup = TrainingSetup(
        model.to(device), dataset, spec.train, spec.seed, device, plan, config.loss_weights(), precision, config.past(dataset.info)
    )
    windows = setup.windows("train")
    step = OptimiserStep(setup, make_optimiser(setup), windows)
    step_seconds = _step_seconds(step, windows, spec)
    batches = {segment: math.ceil(len(dataset.windows(segment)) / plan.batch_size) for segment in ("validation", "test")}
    few = _first(setup.windows("validation"), _EVALUATED_BATCHES * plan.batch_size)
    started = _now(device)
    evaluate(step.compiled, dataset, few, plan.batch_size, setup.autocast)
    batch_seconds = (_now(device) - started) / math.ceil(len(few) / plan.batch_size)
    steps_an_epoch = plan.steps_an_epoch(windows)
    return Measured(
        step_seconds,
        steps_an_epoch,
        steps_an_epoch * step_seconds + batches["validation"] * batch_seconds,
        sum(batches.values()) * batch_seconds,
        memory.bytes(),
        device_name(device),
    )


def _step_seconds(step: OptimiserStep, windows: Windows, spec: TrialSpec) -> float:
    """Median seconds of a few optimiser steps. Workers take their shares of a batch at the same time, so one share is measured."""
    device = step.setup.device
    step.setup.model.train()
    share = dataclasses.replace(step.setup.batches, workers=spec.resources.workers).share
    order = permutation(len(windows), spec.seed, 1).to(device)
    seconds = []
    for number in range(WARM_UP_STEPS + STEPS):
        index = order[torch.arange(number * share, (number + 1) * share, device=device) % len(order)]
        started = _now(device)
        step(index, spec.train.lr)
        seconds.append(_now(device) - started)
    return sorted(seconds[WARM_UP_STEPS:])[STEPS // 2]


def _now(device: torch.device) -> float:
    """The time in seconds, once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _first(windows: Windows, count: int) -> Windows:
    few = copy.copy(windows)
    few.starts = windows.starts[:count]
    return few


def _wall(trials: Sequence[PlannedTrial], seconds: Mapping[str, float], slots: Mapping[ResourcesSpec, int]) -> float:
    """Wall time if the most expensive trials start first and fill all slots; trials with other resources run after them."""
    total = 0.0
    for resources in dict.fromkeys(trial.spec.resources for trial in trials):
        free = [0.0] * max(1, slots[resources])
        for took in sorted((seconds[t.trial_id] for t in trials if t.spec.resources == resources), reverse=True):
            heapq.heappush(free, heapq.heappop(free) + took)
        total += max(free)
    return total


def _gpus(resources: ResourcesSpec) -> float:
    return (1.0 if torch.cuda.is_available() else 0.0) if resources.gpus is None else resources.gpus


def _price(trials: Sequence[PlannedTrial], seconds: Mapping[str, float]) -> float | None:
    prices = [
        seconds[t.trial_id] / 3600 * _gpus(t.spec.resources) * t.spec.resources.workers * t.spec.resources.price_per_gpu_hour
        for t in trials
        if t.spec.resources.price_per_gpu_hour is not None
    ]
    return math.fsum(prices) if prices else None


def write_cost_estimate(storage: Store, study: str, made: CostEstimate) -> str:
    """Write ``studies/<name>/forecast.json``, which the report compares with the actual cost.

    Trials that were estimated before stay in the file.

    Returns:
        Full path (or URI) of the file.
    """
    relative = f"studies/{study}/forecast.json"
    document = made.document()
    if storage.exists(relative):
        document["trials"] = {**storage.read_json(relative)["trials"], **document["trials"]}
    storage.write_json(relative, document)
    return storage.address(relative)


def left_to_search(plan: Plan, store: Store) -> tuple[list[ToSearch], list[str]]:
    """The trials that the searches of a study have still to choose, and the labels of searches without a maximum number of trials."""
    assert plan.study.search is not None
    found, unbounded = [], []
    for history in histories(plan, store):
        if history.search.max_trials is None:
            unbounded.append(history.branch.label)
            continue
        tried = state_of(history)
        ended = sum(outcome is not None for _, outcome in tried)
        chosen = [trial for trial in selected(history) if not TrialDirectory(store, trial.trial_id).is_over()]
        # The selected configuration is trained with every seed; one of them is trained already.
        points = [point for _, _, point in history.space.corners()]
        for branch in history.branch.everywhere:
            mine = sum(trial.spec.dataset_entry == branch.template.spec.dataset_entry for trial in chosen)
            after = mine if ended >= history.search.max_trials else len(plan.study.seeds) - 1
            if count := max(0, history.search.max_trials - ended) + after:
                corners = (branch.template, *(plan_point(plan.study, branch, point) for point in points))
                found.append(ToSearch(branch.label, corners, count))
    return found, unbounded
