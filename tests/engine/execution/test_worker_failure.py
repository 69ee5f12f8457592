"""How Ray's own exceptions about workers reach the trial queue; without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

ray_exceptions = pytest.importorskip("ray.exceptions")

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError  # noqa: E402

from stlab.errors import FailedHere, NeedsSmallerBatches, PeerLost  # noqa: E402
from stlab.execution.events import Ended  # noqa: E402
from stlab.execution.queue import Assignment, TrialQueue  # noqa: E402
from stlab.execution.ray import worker_failure  # noqa: E402
from stlab.execution.ray.preemption import Preempted  # noqa: E402
from stlab.execution.ray.worker_failure import (  # noqa: E402
    GroupGivenUp,
    WorkerFailures,
    cause_of,
    found_in,
    is_preemption,
)
from stlab.study.spec import ResourcesSpec  # noqa: E402
from tests.support.queues import pack_queue  # noqa: E402

DEATH = ray_exceptions.RayActorError(error_msg="The actor died.")


def test_a_worker_that_was_killed_for_its_memory() -> None:
    killed = ray_exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
    others = [RuntimeError("Connection closed by peer"), found_in(WorkerHealthCheckFailedError("A worker", killed))]
    assert cause_of(others) == ("Task was killed due to the node running low on memory.", True)


def test_the_dead_are_the_cause_and_not_those_that_miss_them() -> None:
    death = ray_exceptions.RayActorError(error_msg="The actor died\n  because its node has died.")
    died = found_in(WorkerHealthCheckFailedError("A worker", death))
    cause, of_memory = cause_of([RuntimeError("Connection closed by peer"), died])
    assert cause == "The actor died because its node has died."
    assert not of_memory
    assert cause_of([KeyError("x")]) == ("KeyError: 'x'", False)


def test_what_was_announced_is_a_preemption() -> None:
    assert is_preemption(Preempted("its node is drained"))
    assert is_preemption(ray_exceptions.RayActorError(error_msg="reclaimed", preempted=True))
    assert not is_preemption(ray_exceptions.RayActorError(error_msg="killed"))
    assert not is_preemption(RuntimeError("x"))


class Remote:
    """A queue as the handle of its actor: ``queue.worker_died.remote(…)``."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self._queue, name))})


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> TrialQueue:
    monkeypatch.setattr(worker_failure.ray, "get", lambda answer: answer)
    monkeypatch.setattr(worker_failure, "_SAME_SECONDS", -1.0)
    return pack_queue([["a"]], ResourcesSpec(gpus=0, workers=2, infrastructure_retries=2, trial_retries=1))


def _next(queue: TrialQueue) -> Assignment:
    taken = queue.take(0)
    assert isinstance(taken, Assignment)
    return taken


def test_smaller_batches_cost_nothing_however_often(queue: TrialQueue) -> None:
    failures = WorkerFailures(Remote(queue), 0)
    for _ in range(6):
        assert _next(queue).attempt == 1
        failures.after_exception(None, {1: NeedsSmallerBatches("half")})


def test_an_error_of_one_worker_is_the_trials_own_and_not_a_death(queue: TrialQueue) -> None:
    failures = WorkerFailures(Remote(queue), 0)
    _next(queue)
    failures.after_exception(None, {0: PeerLost("closed"), 1: FailedHere("a bug")})
    again = _next(queue)
    assert (again.attempt, again.failed_before, again.given_up) == (2, True, None)
    failures.after_exception(None, {1: FailedHere("a bug")})
    assert queue.take(0) is None, "trial_retries: 1"
    assert [e.status for e in queue.drain() if isinstance(e, Ended)] == ["failed"]


def test_a_worker_that_misses_a_dead_one_is_no_failure_of_the_trial(queue: TrialQueue) -> None:
    failures = WorkerFailures(Remote(queue), 0)
    for errors in ({0: PeerLost("closed"), 1: DEATH}, {0: PeerLost("closed")}, {0: FailedHere("something of NCCL's"), 1: DEATH}):
        assert _next(queue).given_up is None
        failures.after_exception(None, errors)
    assert "its workers died 3 times (resources.infrastructure_retries: 2)" in (_next(queue).given_up or "")


def test_the_same_death_counts_once(queue: TrialQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_failure, "_SAME_SECONDS", 60.0)
    failures = WorkerFailures(Remote(queue), 0)
    _next(queue)
    for _ in range(5):
        failures.after_exception(None, {1: DEATH})
    assert _next(queue).attempt == 2


def test_a_group_that_never_has_a_trial_is_given_up(queue: TrialQueue) -> None:
    failures = WorkerFailures(Remote(queue), 0)
    for _ in range(3):
        failures.after_exception(None, {0: ImportError("no such module")})
    with pytest.raises(GroupGivenUp, match="ImportError: no such module"):
        failures.after_exception(None, {0: ImportError("no such module")})
