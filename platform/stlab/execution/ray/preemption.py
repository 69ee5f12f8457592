"""Preemption of a worker: by SIGTERM, as Slurm, Kubernetes and spot machines announce it, or because its node is drained."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_sigterm_received = threading.Event()


class Preempted(Exception):
    """The worker was preempted, and its trial has a checkpoint to go on from. Not an error."""


def is_preempted() -> bool:
    """Whether this worker, or the node of a worker of its group, is about to be taken away. Called between steps, so it is quick."""
    from ray.train.v2._internal.execution.context import get_train_context

    # ray.train.get_preemption_info says the same, but all workers have to call it together, and each call is a round trip.
    return _sigterm_received.is_set() or get_train_context().preemption_context.preemption_info is not None


def handle_sigterm() -> None:
    """Take the first SIGTERM as the announcement of a preemption; the second ends the process as Ray would at the first.

    Python lets only the main thread set this. Training runs in another thread of a Train worker; its main thread serves the
    controller's questions, many a second, and so comes to run the handler soon.
    """
    before = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: FrameType | None) -> None:
        if _sigterm_received.is_set() and callable(before):
            before(number, frame)
        _sigterm_received.set()

    signal.signal(signal.SIGTERM, handler)
