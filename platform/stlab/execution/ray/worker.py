"""The loop of a Train worker: take a trial from the queue, train it, say how it ended, and take the next."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from stlab.errors import PeerLost, StorageError
from stlab.execution.attempts import MemoryKills
from stlab.execution.events import Epochs, from_training
from stlab.execution.locks.file_lock import file_lock, trial_lock_name
from stlab.execution.locks.owner import LockOwner
from stlab.execution.queue import Assignment
from stlab.execution.ray.actor_lock import actor_lock
from stlab.execution.ray.preemption import Preempted, is_preempted
from stlab.execution.supply import WAIT, Wait
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import ResourcesSpec

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5  # between two questions of a worker group that has nothing to do
_OTHERS_SECONDS = 10.0  # before a missing worker is reported, so that the controller sees that worker's own error first
_LAST_WORDS_SECONDS = 5.0  # to tell the queue of a hung trial


@dataclass(frozen=True)
class WorkerGroup:
    """A worker group, as its driver and its workers know it."""

    number: int
    resources: ResourcesSpec
    queue: Any
    """The handle of the actor that runs the :class:`~stlab.execution.queue.TrialQueue`."""
    storage: str
    name: str
    """The name of its Train run."""
    scratch: str
    """The folder for Ray's own records."""


def train_trials(config: Mapping[str, WorkerGroup]) -> None:
    """Train trials until the queue has none left. Called on every worker of a group.

    Args:
        config: ``group``: the worker group.

    Raises:
        Preempted: the worker is about to be taken away; what it trained has a checkpoint.
    """
    import torch

    group = config["group"]
    # One thread more than cores is costly: the pools of several workers would fight over them.
    torch.set_num_threads(max(1, int(group.resources.cpus)))
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        if (device := get_device()).type == "cuda":  # every worker of a node sees all its GPUs
            torch.cuda.set_device(device)
    worker = _Worker(group)
    while True:
        try:
            if (taken := worker.take()) is None:
                break
            if isinstance(taken, Wait):
                time.sleep(_WAIT_SECONDS)
            else:
                worker.run(taken)
        except StorageError as error:  # full, or away: another trial would fare no better
            worker.halt(str(error))
        except PeerLost:
            # A worker often misses another before it is known why that one went. The reason counts, and ends this process too.
            time.sleep(_OTHERS_SECONDS)
            raise
    ray.train.report({"group": group.number})


class _Worker:
    """One worker of a group. The first of them, the lead, speaks with the queue and owns the lock of the trial that all train."""

    def __init__(self, group: WorkerGroup) -> None:
        self.queue, self.group = group.queue, group.number
        self.store = Store(group.storage)
        self.is_lead = ray.train.get_context().get_world_rank() == 0
        self.locked = contextlib.ExitStack()
        self.has_announced_preemption = False

    def take(self) -> Assignment | Wait | None:
        """The next trial, the same on every worker of the group."""
        from stlab.training.workers import agreed, gathered

        kills = tuple(found for found in gathered(MemoryKills.here()) if found is not None)
        taken = agreed(self._take(kills) if self.is_lead else None)
        if isinstance(taken, Preempted):
            raise taken
        return taken

    def halt(self, reason: str) -> None:
        """Have the whole run end: what is trained cannot be written.

        Raises:
            StorageError: other workers of the group wait for this one; they all end so.
        """
        from stlab.training.workers import world_size

        self.locked.close()
        ray.get(self.queue.halt.remote(self.group, reason))
        if world_size() > 1:
            raise StorageError(reason)

    def _take(self, kills: tuple[MemoryKills, ...]) -> Assignment | Wait | Preempted | None:
        if is_preempted():
            return Preempted("preempted between two trials")
        taken: Assignment | Wait | None = ray.get(self.queue.take.remote(self.group, kills))
        if not isinstance(taken, Assignment):
            return taken
        trial_id = taken.task.trial_id
        other_owner = self.locked.enter_context(self._lock(trial_id))
        if other_owner is not None:
            logger.info("trial %s is being trained by %s", trial_id, other_owner)
            self.locked.close()
            ray.get(self.queue.defer.remote(self.group))
            return WAIT
        if taken.failed_before:
            TrialDirectory(self.store, trial_id).clear_failure()
        return taken

    def _lock(self, trial_id: str) -> contextlib.AbstractContextManager[LockOwner | None]:
        """The trial's lock. Another study on this storage may have the trial too, and workers may outlive their driver for a while."""
        acquire = file_lock if self.store.is_local else actor_lock
        return acquire(self.store, trial_lock_name(trial_id), LockOwner.this_process())

    def run(self, taken: Assignment) -> None:
        """Train a trial, or record why it is not to be trained any more."""
        from stlab.training.workers import agreed

        directory = TrialDirectory(self.store, taken.task.trial_id)
        if taken.given_up is not None:
            if self.is_lead:
                directory.clear_failure()
                directory.write_failure({"reason": taken.given_up, "log_tail": []})
            status = "failed"
        else:
            # The others may look at the directory before the lead has written that the trial is done.
            status = agreed(self._train(taken, directory))
        self.locked.close()
        if status == TrialStatus.STARTED:  # a preemption: the trial has a checkpoint and no end
            if self.is_lead:
                ray.get(self.queue.hand_back.remote(self.group))
            raise Preempted(f"preempted while it trained {taken.task.trial_id}")
        if self.is_lead:
            ray.get(self.queue.end.remote(self.group, status))

    def _train(self, taken: Assignment, directory: TrialDirectory) -> str:
        from stlab.training import run_trial
        from stlab.training.workers import agreed

        task = taken.task
        # Only the lead reads the division and shares it: it is the one to write the new division, perhaps while others still read.
        parts = agreed(2 * directory.micro_batches() if taken.needs_less_memory and self.is_lead else 1)

        def report(said: Mapping[str, Any]) -> str | None:
            event = from_training(task.trial_id, said)
            self.queue.emit.remote(event)
            if not task.prunable or not isinstance(event, Epochs):
                return None
            stop: str | None = ray.get(self.queue.report.remote(self.group, event.rows))
            return stop

        return run_trial(
            task.trial.spec, task.trial.identity, directory,
            test=task.test,
            report=report,
            prunable=task.prunable,
            stop=self._is_to_stop,
            on_hang=self._end_process,
            parts=parts,
        ).value  # fmt: skip

    def _is_to_stop(self) -> bool:
        """Asked between steps. The queue hears of a preemption at once, so that a death after it is not counted."""
        preempted = is_preempted()
        if preempted and not self.has_announced_preemption:
            self.has_announced_preemption = True
            self.queue.announce_preemption.remote(self.group)
        return preempted

    def _end_process(self, is_recorded: bool) -> None:
        """A step hangs, which nothing but the end of the process can end."""
        if self.is_lead and is_recorded:
            with contextlib.suppress(ray.exceptions.RayError):  # if the queue is not reached, the controller sees the process die
                ray.get(self.queue.end.remote(self.group, "failed"), timeout=_LAST_WORDS_SECONDS)
        os._exit(1)
