"""A worker that is told to go: by SIGTERM, as Slurm, Kubernetes and spot machines do it, or because its node is drained."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_told = threading.Event()


class Preempted(Exception):
    """The worker was told to go, and its trial has a checkpoint to go on from. Not an error."""


def is_told_to_go() -> bool:
    """Whether this worker, or the node of one of its group, is about to be taken away. Called between steps, so it is quick."""
    from ray.train.v2._internal.execution.context import get_train_context

    # ray.train.get_preemption_info says the same, but all workers have to call it together, and each call is a round trip.
    return _told.is_set() or get_train_context().preemption_context.preemption_info is not None


def heed_signals() -> None:
    """Have the first SIGTERM noted, and the second end the process as Ray would at the first.

    Python lets only the main thread set this. Training runs in another thread of a Train worker; its main thread serves the
    controller's questions, many a second, and so comes to run the handler soon.
    """
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        if _told.is_set() and callable(before):
            before(number, frame)
        _told.set()

    signal.signal(signal.SIGTERM, note)
