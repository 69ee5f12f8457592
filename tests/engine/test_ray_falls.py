"""What Ray says of dead workers, as the board is told it. Without a cluster: Ray's own exceptions."""

from __future__ import annotations

import pytest

ray_exceptions = pytest.importorskip("ray.exceptions")

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError  # noqa: E402

from stlab.execution.ray.falls import cause_of, found_in, is_preemption  # noqa: E402
from stlab.execution.ray.notice import Preempted  # noqa: E402


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
    assert is_preemption(Preempted("told to go"))
    assert is_preemption(ray_exceptions.RayActorError(error_msg="reclaimed", preempted=True))
    assert not is_preemption(ray_exceptions.RayActorError(error_msg="killed"))
    assert not is_preemption(RuntimeError("x"))
