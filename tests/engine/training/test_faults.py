"""What strikes a trial while it trains: a notice, a kill, memory that runs out, a step that hangs, a bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stlab.catalog import create_model
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.storage.schema import trials_table
from stlab.study.spec import TrialSpec
from stlab.training import run_trial, watchdog
from stlab.training import step as step_module
from stlab.training import trial as trial_module
from stlab.training.batches import BatchPlan
from stlab.training.setup import TrainingSetup
from stlab.training.step import OptimiserStep, make_optimiser
from stmodels.rng import initialise
from stmodels.st_vfm.config import STVFMConfig
from stmodels.types import Batch, Forecast
from tests.support.trials import Notice, assert_same_numbers, count_steps, train_until_killed, whole_checkpoints
from tests.support.warm_processes import run_python

MakeTrial = Callable[..., TrialSpec]
STEPS = 5  # an epoch: 157 windows in batches of 32


@pytest.fixture
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of windows of each step that is made."""
    return count_steps(monkeypatch)


def run(trial: TrialSpec, folder: Path, **more: Any) -> tuple[TrialDirectory, TrialStatus]:
    directory = TrialDirectory(Store(folder), "a")
    return directory, run_trial(trial, {}, directory, test=True, **more)


def test_stopped_between_any_steps_it_goes_on_to_the_last_digit(
    make_trial: MakeTrial, tmp_path: Path, steps_made: list[int]
) -> None:
    """With dropout and two loss terms; in the first step, in mid-epoch, in its last step, in validation, between epochs, in the test."""
    trial = make_trial(model={"dropout": 0.2}, max_epochs=3, checkpoint_seconds=1e9)
    whole, status = run(trial, tmp_path / "whole")
    assert status is TrialStatus.FINISHED
    assert len(steps_made) == 3 * STEPS
    steps_made.clear()
    stopped = TrialDirectory(Store(tmp_path / "stopped"), "a")
    told: list[list[int]] = []
    folders = []
    for at in (1, 2, 3, 1, 1, STEPS + 2, 1, 1, 99):
        status = run_trial(
            trial, {}, stopped, test=True, stop=Notice(at), report=lambda event: told.append([row["epoch"] for row in event["rows"]])
        )
        if status is TrialStatus.STARTED:
            folders.append(stopped.store.names(f"{stopped.prefix}/checkpoint")[-1])
    assert status is TrialStatus.FINISHED
    assert "000000.000001" in folders
    assert "000000.000005" in folders, "in the validation"
    assert "failed.json" not in stopped.store.names(stopped.prefix)
    assert len(steps_made) == 3 * STEPS, "no step is made twice"
    assert_same_numbers(stopped, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_mid_epoch_it_goes_on_from_there(make_trial: MakeTrial, tmp_path: Path, steps_made: list[int]) -> None:
    """A single epoch of 79 steps, killed beyond the 50 after which the losses are read, while it writes a checkpoint."""
    trial = make_trial(model={"dropout": 0.2}, max_epochs=1, batch_size=2, checkpoint_seconds=1e-6)
    directory = TrialDirectory(Store(tmp_path / "killed"), "a")
    train_until_killed(trial, directory, "000000.000060/optimiser.pt")
    assert whole_checkpoints(directory) == ["000000.000058", "000000.000059"]
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
    assert len(steps_made) == 79 - 59
    (note,) = (directory.read("result.json") or {})["notes"]
    assert note.startswith("checkpoint 000000.000060 cannot be used (no state.json: its writing was cut short)")
    whole, _ = run(trial.model_copy(update={"train": trial.train.model_copy(update={"checkpoint_seconds": 1e9})}), tmp_path / "whole")
    assert_same_numbers(directory, whole, notes=False)


def grads(step: OptimiserStep, index: Tensor) -> tuple[dict[str, float], dict[str, float], Tensor]:
    logged, norms = step(index, 0.0, with_term_norms=True)
    flat = torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None])
    return {k: v.item() for k, v in logged.items()}, {k: v.item() for k, v in norms.items()}, flat


@pytest.mark.parametrize("parts", [2, 3, 64])
@pytest.mark.parametrize("kind", ["grid", "missing readings"])
def test_a_divided_step_is_the_undivided_one(make_trial: MakeTrial, kind: str, parts: int) -> None:
    given: dict[str, Any] = {}
    if kind != "grid":
        given = {"model": {"name": "lstm", "hidden": 8}, "data": {"family": "sensors", "null": 5.0}}
    trial = make_trial(**given)
    dataset = trial_module.dataset_for(trial.data)
    steps = [step_of(trial, dataset, n) for n in (1, parts)]
    seen: list[int] = []
    steps[1].setup.model.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0].start)))
    index = torch.arange(3, 33)  # of 30: not a multiple
    whole, divided = (grads(step, index) for step in steps)
    for one, other in zip(whole[:2], divided[:2], strict=True):
        assert one.keys() == other.keys()
        assert other == pytest.approx(one, rel=2e-5)
    assert (whole[2] - divided[2]).norm() < 2e-6 * whole[2].norm()
    assert max(seen) == -(-32 // parts)
    assert sum(seen) == 30
    if kind != "grid":
        mask = dataset.windows("train").gather(index).target_mask
        assert mask is not None
        assert len(mask.flatten(1).sum(1).unique()) > 1, "parts have to differ in readings"


def step_of(trial: TrialSpec, dataset: Any, parts: int) -> OptimiserStep:
    model = create_model(trial.model, dataset.info)
    initialise(model, 0)
    train = trial.train.model_copy(update={"clip_norm": 1e9})
    setup = TrainingSetup(model, dataset, train, 0, torch.device("cpu"), BatchPlan.of(train, dataset, parts))
    return OptimiserStep(setup, make_optimiser(setup), dataset.windows("train"))


ERRORS: dict[str, Callable[[], Exception]] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it"),
    "host": MemoryError,
    "allocator": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
}


def break_model(monkeypatch: pytest.MonkeyPatch, forward: Callable[[Any, Batch, Callable[[Batch], Forecast]], Forecast]) -> None:
    """Every model that a trial makes goes through ``forward(model, batch, the model's own forward)``."""

    def create(*arguments: Any) -> Any:
        model = create_model(*arguments)
        own = model.forward
        model.forward = lambda batch: forward(model, batch, own)  # type: ignore[method-assign]
        return model

    monkeypatch.setattr(trial_module, "create_model", create)


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_goes_on_with_half_the_windows_at_once(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_made: list[int], kind: str
) -> None:
    trial = make_trial(max_epochs=3)
    whole, _ = run(trial, tmp_path / "whole")
    steps_made.clear()
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def hungry(model: Any, batch: Batch, own: Callable[[Batch], Forecast]) -> Forecast:
        alive.append(sum(tensor() is not None for tensor in held))
        forecast = own(batch)
        if len(steps_made) > STEPS + 2 and len(batch.start) > 8:  # in the second epoch
            held.append(weakref.ref(forecast.value))
            raise ERRORS[kind]()
        return forecast

    break_model(monkeypatch, hungry)
    notes: list[str] = []
    directory, status = run(
        trial, tmp_path / "hungry", report=lambda event: notes.append(event["text"]) if event["kind"] == "note" else None
    )
    assert status is TrialStatus.FINISHED
    assert len(held) == 2
    assert max(alive) == 0, "what the failed step held is freed before the next is made"
    assert [note[-57:] for note in notes] == [
        " with 32 windows at a time; gone on with 16, at the same batch of 32"[-57:],
        " with 16 windows at a time; gone on with 8, at the same batch of 32"[-57:],
    ]
    assert len(steps_made) == 3 * STEPS + 3 + 1  # the three of the second epoch that were lost, then the one that was lost again
    assert [row["micro_batch"] for row in directory.read_epochs()] == [32, 8, 8]
    result, expected = directory.read("result.json") or {}, whole.read("result.json") or {}
    assert (result["micro_batch"], result["notes"]) == (8, notes)
    assert directory.micro_batches() == 4
    assert result["val_rmse"] == pytest.approx(expected["val_rmse"], rel=1e-4)
    for one, other in zip(directory.read_epochs(), whole.read_epochs(), strict=True):
        for name in ("loss", "loss.flow", "grad_norm", "grad_norm.flow", "val_rmse"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    row = trials_table([directory.row()]).to_pylist()[0]
    assert (row["micro_batch"], row["notes"]) == (8, "; ".join(notes))


def test_without_memory_for_one_window_it_fails_alone_by_name(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starving(model: Any, batch: Batch, own: Callable[[Batch], Forecast]) -> Forecast:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")

    with monkeypatch.context() as patch:
        break_model(patch, starving)
        directory, status = run(make_trial(max_epochs=1), tmp_path / "starving")
    assert status is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert failure["reason"] == (
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.) with 1 window at a time, of a batch of 32: there is no smaller one"
    )
    assert any("in starving" in line for line in failure["log_tail"])
    assert directory.micro_batches() == 32
    assert run(make_trial(max_epochs=1), tmp_path / "next")[1] is TrialStatus.FINISHED


@pytest.mark.parametrize("killed", [False, True])
def test_a_batch_that_must_stay_whole_is_not_divided(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    def starving(model: Any, batch: Batch, own: Callable[[Batch], Forecast]) -> Forecast:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(STVFMConfig, "WHOLE_BATCHES", "its norm sees all windows")
        if not killed:
            break_model(patch, starving)
        directory, status = run(make_trial(max_epochs=1), tmp_path / "whole", parts=2 if killed else 1)
    assert status is TrialStatus.FAILED
    cause = "its workers were killed" if killed else "CUDA out of memory."
    assert (directory.read("failed.json") or {})["reason"] == (
        f"out of memory ({cause}) with a batch of 32 windows, which the model needs whole (its norm sees all windows): "
        "lower train.batch_size"
    )
    assert directory.micro_batches() == 1


def test_the_caller_asks_for_smaller_batches_after_a_kill(make_trial: MakeTrial, tmp_path: Path) -> None:
    trial = make_trial(max_epochs=1)
    directory, status = run(trial, tmp_path / "asked", parts=2)
    assert status is TrialStatus.FINISHED
    result = directory.read("result.json") or {}
    assert (result["micro_batch"], directory.micro_batches()) == (16, 2)
    assert result["notes"] == ["killed for want of memory: batches are divided into 2 parts"]
    directory, status = run(trial, tmp_path / "one window", parts=64)
    assert status is TrialStatus.FAILED
    assert "with 1 window at a time, of a batch of 32" in (directory.read("failed.json") or {})["reason"]
    # With more memory, another time, it goes on; what nobody can be asked for is not on record.
    directory.clear_failure()
    again, status = run(trial, tmp_path / "one window")
    assert status is TrialStatus.FINISHED
    assert (again.read("result.json") or {})["micro_batch"] == 1


LIMITED = """
import json, resource, sys
import torch
torch.set_num_threads(1)
import stlab.training.trial as module
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec

create = module.create_model

def hungry(*arguments):
    model = create(*arguments)
    own = model.forward
    def forward(batch):
        room = torch.empty(len(batch.start), 64 << 20, dtype=torch.uint8)  # 64 MiB a window, never written to
        return own(batch)
    model.forward = forward
    return model

module.create_model = hungry
trial = TrialSpec.model_validate_json(sys.argv[1])
found = []
for name in ("whole", "limited"):
    directory = TrialDirectory(Store(sys.argv[2]), name)
    if name == "limited":
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (768 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
    status = module.run_trial(trial, {}, directory, test=True)
    found.append([status.value, directory.read("result.json"), directory.read("failed.json"), directory.read("test.json")])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_allocation_that_really_fails(make_trial: MakeTrial, tmp_path: Path) -> None:
    """Address space is limited to 768 MiB more than there is: 16 windows at 64 MiB lack 256 MiB, 8 leave as much to all else."""
    trial = make_trial(model={"name": "lstm", "hidden": 8}, data={"family": "sensors"}, max_epochs=2)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, trial.model_dump_json(), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (status, whole, _, whole_test), (limited_status, limited, failure, limited_test) = json.loads(done.stdout.splitlines()[-1])
    assert status == "finished"
    assert limited_status == "finished", failure
    assert whole["micro_batch"] == 32
    assert limited["micro_batch"] == 8
    assert "can't allocate memory" in limited["notes"][0]
    assert limited["val_rmse"] == pytest.approx(whole["val_rmse"], rel=1e-5)
    assert limited_test["rmse"] == pytest.approx(whole_test["rmse"], rel=1e-5)


def test_a_hung_step_is_recorded_with_its_stack_while_it_hangs(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_made: list[int]
) -> None:
    directory = TrialDirectory(Store(tmp_path / "hung"), "a")
    ended: list[float] = []
    ahead = [0.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))

    def wait_for_nobody() -> None:
        ahead[0] = 601.0
        deadline = time.monotonic() + 120
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)

    def hang(model: Any, batch: Batch, own: Callable[[Batch], Forecast]) -> Forecast:
        if len(steps_made) == STEPS + 3:
            wait_for_nobody()
        return own(batch)

    def on_hang(is_recorded: bool) -> None:
        assert is_recorded
        assert directory.status() is TrialStatus.FAILED, "on record before the process may be ended"
        ended.append(time.monotonic())

    break_model(monkeypatch, hang)
    status = run_trial(make_trial(step_timeout=600.0), {}, directory, test=True, on_hang=on_hang)
    assert status is TrialStatus.FAILED
    assert len(ended) == 1
    failure = directory.read("failed.json") or {}
    assert failure["reason"] == "a step hung: in epoch 2, after step 7, none ended for 600 s (train.step_timeout)"
    assert (failure["epoch"], failure["step"]) == (1, 7)
    assert any("in wait_for_nobody" in line for line in failure["log_tail"])
    assert len(steps_made) == STEPS + 3


HANGS = """
import os, sys, time
import torch
torch.set_num_threads(1)
from types import SimpleNamespace
import stlab.training.trial as module
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec
from stlab.training import watchdog

create = module.create_model
ahead = [0.0]
watchdog.time = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])

def hanging(*arguments):
    model = create(*arguments)
    own = model.forward
    def forward(batch):
        if not model.training:
            ahead[0] = 601.0
            time.sleep(10_000)
        return own(batch)
    model.forward = forward
    return model

module.create_model = hanging
trial = TrialSpec.model_validate_json(sys.argv[1])
module.run_trial(trial, {}, TrialDirectory(Store(sys.argv[2]), "a"), test=True, on_hang=lambda recorded: os._exit(70))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_validation_that_never_ends_ends_the_process(make_trial: MakeTrial, tmp_path: Path) -> None:
    """After all steps of the first epoch, which are 4 with this model's longer windows."""
    trial = make_trial(model={"name": "lstm", "hidden": 8}, data={"family": "sensors"}, step_timeout=600.0)
    done = run_python(["-c", HANGS, trial.model_dump_json(), str(tmp_path)], tmp_path, timeout=800)
    assert done.returncode == 70, done.communicate()
    failure = TrialDirectory(Store(tmp_path), "a").read("failed.json") or {}
    assert "in epoch 1, after step 4, none ended for 600 s" in failure["reason"]
    assert any("time.sleep(10_000)" in line or "in forward" in line for line in failure["log_tail"])


@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_bug_in_a_model_is_recorded_with_its_place(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_made: list[int], where: str
) -> None:
    def bug(model: Any, batch: Batch, own: Callable[[Batch], Forecast]) -> Forecast:
        if len(steps_made) == STEPS + 3 and where == "step":
            raise KeyError("no such prompt")
        if len(steps_made) == 2 * STEPS and where == "validation" and not model.training:
            raise KeyError("no such prompt")
        return own(batch)

    break_model(monkeypatch, bug)
    directory, status = run(make_trial(), tmp_path)
    assert status is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert failure["reason"] == "KeyError: 'no such prompt'"
    assert (failure["epoch"], failure["step"]) == ((1, STEPS + 2) if where == "step" else (1, 2 * STEPS))
    assert any("in bug" in line for line in failure["log_tail"])
    assert failure["log_tail"][-1] == failure["reason"]
    assert [row["epoch"] for row in directory.read_epochs()] == [1]


def test_a_loss_that_breaks_says_at_which_step(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = step_module.training_loss
    calls: list[int] = []

    def broken(*arguments: Any) -> Tensor:
        calls.append(1)
        return terms(*arguments) * (float("nan") if len(calls) == STEPS + 3 else 1.0)

    monkeypatch.setattr(step_module, "training_loss", broken)
    directory, status = run(make_trial(), tmp_path)
    assert status is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert failure["reason"].startswith(f"the loss is nan at step {STEPS + 3}, learning rate ")
    assert (failure["epoch"], failure["step"]) == (1, STEPS + 3)
    assert any("NonFiniteLoss" in line for line in failure["log_tail"])
