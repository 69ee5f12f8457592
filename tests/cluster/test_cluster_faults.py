"""What dies on a cluster (a worker, a node, the driver) costs the time since the last checkpoint, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.warm_processes import WarmProcess, start_python
from tests.support.watched_runs import EPOCHS, Runs, on_two_nodes, trials_of

GRACE_SECONDS = 30  # what Slurm and Kubernetes give by default

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

HOLD = """\
import sys, time
from stlab.execution import ray
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store

with ray.connection(sys.argv[1]), ray.study_actor_lock(Store("s3://bucket/runs?region=x"), "mine", LockOwner.this_process()):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
"""A driver whose storage has no locks."""


@pytest.fixture(scope="module")
def runs(two_nodes: Any, long_text: str, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("faults"), two_nodes, long_text, undisturbed)


@pytest.fixture(autouse=True)
def tidy(runs: Runs) -> Iterator[None]:
    """What one test leaves behind takes nothing from the next: drivers, and nodes beyond the first two."""
    yield
    runs.end()
    for node in runs.nodes.nodes[2:]:
        if node.poll() is None:
            runs.nodes.kill(node)


def test_a_driver_whose_study_is_run_twice_and_that_is_killed(runs: Runs) -> None:
    """Slow: three drivers start. Another is refused while the first lives; what the first leaves is no loss."""
    run = runs.in_the_middle("driver", 2)
    again = runs.start("driver")
    runs.wait_for(lambda: again.poll() is not None, run, "driver")
    assert "StudyRunning: the study long is being run" in runs.said("driver")
    assert f"process {run.pid}" in runs.said("driver")
    assert set(runs.attempts("driver").values()) == {1}
    run.kill()
    runs.go_on()
    runs.ends_well(runs.start("driver"), "driver")
    runs.same_as_undisturbed("driver")
    runs.went_on("driver", disturbed=2)
    assert len(runs.heard("driver", "ended")) == 2, "no trial ended twice"


def test_a_name_on_the_cluster_where_the_storage_has_no_locks(runs: Runs) -> None:
    """Slow: three drivers start."""
    def driver(seconds: int) -> WarmProcess:
        return start_python(["-c", HOLD, runs.nodes.address, str(seconds)], runs.folder, runs.nodes.environment)

    first = driver(600)
    while not first.output():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    assert first.output() == "held\n"
    out, err = driver(0).communicate(timeout=300)
    assert out == ""
    assert f"the study mine is being run already: process {first.pid} on " in err
    first.kill()
    out, err = driver(0).communicate(timeout=300)
    assert out == "held\n", err


def test_workers_and_nodes_that_die_or_are_told_to_go(runs: Runs) -> None:
    """A node with two trials loses its power, a worker is killed, a node is drained and a worker gets SIGTERM, all at once.

    Slow: six trials, of which five start on two cores at the same time. As there are more trials than groups, those that start late
    have one too.
    """
    lost, leaving = runs.nodes.add(2), runs.nodes.add(1)
    run = runs.in_the_middle("faults", 5, "seeds=[0, 1, 2]", "train.checkpoint_seconds=0.5")
    trained = runs.trained_by("faults")
    (killed,), (told,), (drained,) = (runs.nodes.trainers(node) for node in (*runs.nodes.nodes[:2], leaving))
    failed = {trained[pid] for pid in (*runs.nodes.trainers(lost), killed)}
    assert len(failed) == 3
    at = time.time()
    leaving.terminate()  # as Kubernetes does: Ray drains the node for 30 s
    runs.nodes.kill(lost)
    os.kill(killed, signal.SIGKILL)
    os.kill(told, signal.SIGTERM)
    runs.go_on()
    runs.wait_for(lambda: not {told, drained} & set(runs.nodes.trainers()), run, "faults")
    assert time.time() - at < GRACE_SECONDS
    assert all(runs.left_with_a_checkpoint("faults", trained[pid], at) for pid in (told, drained))
    runs.ends_well(run, "faults")
    runs.same_as_undisturbed("faults")
    runs.went_on("faults", disturbed=3)
    assert {trial for trial, attempts in runs.attempts("faults").items() if attempts > 1} == failed, "a preemption is no failure"
    assert sorted(runs.attempts("faults").values()) == [1, 1, 1, 2, 2, 2]


def test_two_studies_share_a_cluster_and_the_trials_they_have_in_common(runs: Runs, undisturbed: Path) -> None:
    """Slow: two drivers start, each with a worker group."""
    half = runs.start("shared", "resources.max_cpus=1")
    other = runs.start_as("other", "shared", "name=other", "resources.max_cpus=1")
    runs.ends_well(half, "shared")
    runs.ends_well(other, "other")
    tables = [runs.folder / "shared" / "studies" / name / "results" / "trials.parquet" for name in ("long", "other")]
    mine, others = (pd.read_parquet(table).set_index("trial_id").sort_index() for table in tables)
    assert mine.index.tolist() == others.index.tolist()
    pd.testing.assert_frame_equal(mine[["test_mae", "val_rmse"]], others[["test_mae", "val_rmse"]], check_exact=True)
    pd.testing.assert_series_equal(mine["val_rmse"], trials_of(undisturbed).loc[mine.index, "val_rmse"], check_exact=True)
    epochs = [(e["trial_id"], row["epoch"]) for name in ("shared", "other") for e in runs.heard(name, "epochs") for row in e["rows"]]
    assert sorted(epochs) == sorted((trial, epoch) for trial in mine.index for epoch in range(1, EPOCHS + 1)), "each is trained once"
    assert [runs.heard(name, "begin")[0]["concurrency"] for name in ("shared", "other")] == [1, 1]


def test_the_second_of_two_workers_that_is_killed(runs: Runs) -> None:
    """The first notices by an error in the middle of a step; that is none of the trial's. Two workers train as one does.

    Slow: two workers start three times.
    """
    run = runs.in_the_middle("second", 1, "resources.workers=2")
    workers = on_two_nodes(runs, run, "second")
    (second,) = set(workers) - set(runs.trained_by("second"))
    os.kill(second, signal.SIGKILL)
    runs.go_on()
    runs.ends_well(run, "second")
    runs.close_to_undisturbed("second", 1e-5)
    runs.went_on("second", disturbed=1)
    assert sorted(runs.attempts("second").values()) == [1, 2]


def test_a_worker_that_the_kernel_kills_for_its_memory(runs: Runs, no_memory: Callable[[int], None]) -> None:
    """Slow: the worker group starts anew with smaller batches."""
    run = runs.in_the_middle("memory", 2)
    pid, trial = next(iter(runs.trained_by("memory").items()))
    no_memory(pid)
    runs.go_on()
    runs.ends_well(run, "memory")
    assert sorted(runs.attempts("memory").values()) == [1, 2]
    rows = runs.trials("memory")
    assert "killed for want of memory: batches are divided into 2 parts" in rows.notes[trial]
    halved = rows.micro_batch.to_dict()
    assert halved.pop(trial) * 2 == halved.popitem()[1]
    runs.close_to_undisturbed("memory", 1e-4)
    runs.went_on("memory", disturbed=1)


@pytest.fixture
def no_memory() -> Iterator[Callable[[int], None]]:
    """Gives a process not a page more, so that the kernel kills it; in a control group of its own, which harms nobody else."""
    kinds = [(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")]
    parent, limit = next((kind for kind in kinds if os.access(kind[0] / "cgroup.procs", os.W_OK)), (None, ""))
    if parent is None:
        pytest.skip("needs a control group for memory that it may write to")
    group = parent / f"stlab-{os.getpid()}"
    group.mkdir()
    if not (group / limit).exists():
        group.rmdir()
        pytest.skip("control groups here do not limit memory")

    def squeeze(pid: int) -> None:
        (group / limit).write_text("0")
        (group / "cgroup.procs").write_text(str(pid))

    yield squeeze
    until = time.monotonic() + 30
    while (group / "cgroup.procs").read_text().strip() and time.monotonic() < until:
        time.sleep(0.2)
    group.rmdir()
