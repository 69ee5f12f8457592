"""Why the workers of a group failed, as the trial queue is told: a preemption, an error of the trial's, or a death."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback

from stlab.errors import FailedHere, NeedsSmallerBatches
from stlab.execution.ray.preemption import Preempted

_SAME_SECONDS = 2.0  # a group takes longer than that to start; until it does, the same failure may be seen again and again
_MOST_LETTERS = 300


class GroupGivenUp(Exception):
    """A worker group dies before it has a trial, again and again."""


class WorkerFailures(UserCallback):  # type: ignore[misc]
    """Tells the queue of every failure of a group. Runs in the controller of the Train run, which outlives the workers."""

    def __init__(self, queue: Any, group: int) -> None:
        self._queue, self._group = queue, group
        self._seen_at = float("-inf")

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raises GroupGivenUp, which ends the Train run."""
        is_new, self._seen_at = time.monotonic() - self._seen_at > _SAME_SECONDS, time.monotonic()
        if not is_new:
            return
        errors = [found_in(error) for error in worker_exceptions.values()]
        if any(is_preemption(error) or isinstance(error, NeedsSmallerBatches) for error in errors):
            ray.get(self._queue.hand_back.remote(self._group))
        elif any(isinstance(error, FailedHere) for error in errors) and not any(is_death(error) for error in errors):
            ray.get(self._queue.end.remote(self._group, "failed"))
        else:
            cause, of_memory = cause_of(errors)
            if not ray.get(self._queue.worker_died.remote(self._group, cause, of_memory)):
                raise GroupGivenUp(f"its workers die before they have a trial; the last time: {cause}")


def found_in(error: Exception) -> Exception:
    """The error that a failed health check found."""
    return getattr(error, "health_check_failure", error)


def is_preemption(error: Exception) -> bool:
    """Whether a worker left because it was preempted, or died with a node whose end had been announced."""
    return isinstance(error, Preempted) or (isinstance(error, RayActorError) and bool(error.preempted))


def is_death(error: Exception) -> bool:
    """Whether a worker is gone."""
    return isinstance(error, (RayActorError, OutOfMemoryError))


def cause_of(errors: list[Exception]) -> tuple[str, bool]:
    """The cause of a group's death, in a line, and whether it was a lack of memory. Workers that only miss the dead one do not count."""
    dead = [error for error in errors if is_death(error)]
    for error in errors:
        if isinstance(error, OutOfMemoryError):
            return _line(error), True
    error = (dead or errors)[0]
    return (_line(error) if dead else f"{type(error).__name__}: {_line(error)}"), False


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + " …"
