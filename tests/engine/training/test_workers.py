"""One of several workers dies, or fails alone: what the other makes of it, and what is on record. Real processes, over gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from tests.support.warm_processes import start_python

LATE = 12  # seconds until a group is ended, on a cluster that has much to do

WORKER = f"LATE = {LATE}" + """
import os, signal, sys, time
import torch
import torch.distributed as dist
from stlab.errors import DataError
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from stlab.training.checkpoint import Checkpoints
from stlab.training.step import OptimiserStep

rank, folder, trial, what = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{what}", rank=rank, world_size=2)
steps, step = 0, OptimiserStep.__call__

def faulty(self, *given, **more):
    global steps
    steps += 1
    if rank == 1 and steps == 4 and what not in ("slow", "apart"):
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "lacks":
            raise DataError("not here")
        if what == "hungry":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if what != "torn":
            raise ZeroDivisionError("only here")
    if rank == 0 and steps == 4 and what == "torn":
        dist.destroy_process_group()
    return step(self, *given, **more)

OptimiserStep.__call__ = faulty
if what == "slow" and rank == 0:
    save = Checkpoints.save

    def slow(self, *given):
        Checkpoints.save = save
        time.sleep(LATE)
        return save(self, *given)

    Checkpoints.save = slow
if what == "apart" and rank == 1:
    Checkpoints.restore = lambda *given: None
directory = TrialDirectory(Store(f"{folder}/runs"), what)
try:
    print(run_trial(TrialSpec.model_validate_json(trial), {}, directory, test=True, on_hang=lambda recorded: os._exit(0)))
except Exception as error:
    print(type(error).__name__)
    sys.stdout.flush()
    if what == "hungry":
        time.sleep(LATE)
    os._exit(0)  # as a worker group is ended: the other never hears a word
"""


def _two_workers(folder: Path, trial: TrialSpec, what: str) -> list[str]:
    """What each of two workers ends with."""
    (folder / "worker.py").write_text(WORKER)
    workers = [start_python(["worker.py", str(rank), str(folder), trial.model_dump_json(), what], folder) for rank in range(2)]
    said = [worker.communicate(timeout=240) for worker in workers]
    assert all(worker.returncode in (0, -9) for worker in workers), said
    return [out.strip() for out, _ in said]


@pytest.mark.timeout(300)
def test_the_death_of_another_worker_is_no_failure_of_the_trial(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    assert _two_workers(tmp_path, make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"}), "dies") == ["PeerLost", ""]
    directory = TrialDirectory(Store(tmp_path / "runs"), "dies")
    assert directory.status() is TrialStatus.STARTED


@pytest.mark.timeout(300)
def test_an_error_of_another_worker_is_the_one_on_record(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    trial = make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"})
    assert _two_workers(tmp_path, trial, "fails") == ["PeerLost", "FailedHere"]
    failure = TrialDirectory(Store(tmp_path / "runs"), "fails").read("failed.json") or {}
    assert failure["reason"] == "ZeroDivisionError: only here"
    assert "raise ZeroDivisionError" in "\n".join(failure["log_tail"])


@pytest.mark.timeout(300)
def test_what_only_one_worker_lacks_ends_the_group_and_keeps_nobody_waiting(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    trial = make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"})
    assert _two_workers(tmp_path, trial, "lacks") == ["PeerLost", "FailedHere"]
    assert (TrialDirectory(Store(tmp_path / "runs"), "lacks").read("failed.json") or {})["reason"] == "not here"


@pytest.mark.timeout(300)
def test_a_group_that_is_taken_apart_is_no_failure_of_the_trial(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    """Ray ends the process group before the processes; what calls it meanwhile gets an error that names no other worker."""
    trial = make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"})
    assert _two_workers(tmp_path, trial, "torn") == ["PeerLost", "PeerLost"]
    assert TrialDirectory(Store(tmp_path / "runs"), "torn").status() is TrialStatus.STARTED


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_waits_for_one_without_memory_does_not_hang(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    """The group is ended later than a step may take: the trial goes on with smaller batches all the same."""
    trial = make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"}, step_timeout=LATE / 3)
    assert _two_workers(tmp_path, trial, "hungry") == ["PeerLost", "NeedsSmallerBatches"]
    directory = TrialDirectory(Store(tmp_path / "runs"), "hungry")
    assert (directory.status(), directory.micro_batches()) == (TrialStatus.STARTED, 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nobody_hangs_while_the_first_writes_a_checkpoint(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    """A slow store keeps the others' next step waiting longer than a step may take."""
    trial = make_trial(
        model={"name": "lstm", "hidden": 4}, data={"family": "sensors"}, step_timeout=LATE / 3, checkpoint_seconds=0.01, max_epochs=2
    )  # fmt: skip
    first, second = _two_workers(tmp_path, trial, "slow")
    assert first == "finished"
    assert second in ("finished", "started"), "it may look before the first has written the result, and was not ended"


@pytest.mark.timeout(300)
def test_workers_that_see_different_checkpoints_do_not_go_on(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    trial = make_trial(model={"name": "lstm", "hidden": 4}, data={"family": "sensors"})
    store = Store(tmp_path / "runs")
    steps = iter(range(10))
    assert run_trial(trial, {}, TrialDirectory(store, "apart"), test=True, stop=lambda: next(steps) == 5) is TrialStatus.STARTED
    assert _two_workers(tmp_path, trial, "apart") == ["PeerLost", "PeerLost"]
    assert TrialDirectory(store, "apart").status() is TrialStatus.STARTED
