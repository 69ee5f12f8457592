"""What a Train worker does: take a trial from the board, train it, take the next."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train

from stlab.errors import StorageError
from stlab.execution.locks.file_lock import lock, trial_lock
from stlab.execution.locks.owner import Holder
from stlab.execution.memory_kills import MemoryKills
from stlab.execution.ray.actor_lock import name_held
from stlab.execution.ray.preemption import Preempted, is_told_to_go
from stlab.execution.worker_groups import WAIT, Assignment, Wait
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import ResourcesSpec, TrialSpec

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5  # between two questions of a worker group that has nothing to do
_OTHERS_SECONDS = 10.0  # until whoever misses another worker says so itself
_LAST_WORDS_SECONDS = 5.0  # to tell the board of a hung trial


def work_off(job: Mapping[str, Any]) -> None:
    """Work off a pack, and help with others. Called on every worker of the group.

    Raises:
        Preempted: the worker is to go; what it trained has a checkpoint.
    """
    import torch

    resources = ResourcesSpec(**job["resources"])
    # One thread more than cores is costly: the pools of several workers would fight over them.
    torch.set_num_threads(max(1, int(resources.cpus)))
    from stlab.training.workers import PeerLost

    worker = _Worker(job)
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
            # Often seen before what became of the other is known. That is what counts: it ends this process, too.
            time.sleep(_OTHERS_SECONDS)
            raise
    ray.train.report({"pack": job["pack"]})


class _Worker:
    """One worker of a group; the first of them speaks with the board, and holds the trial that all train."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job, self.board, self.group = job, job["board"], job["pack"]
        self.store = Store(job["storage"])
        self.is_lead = ray.train.get_context().get_world_rank() == 0
        self.held = contextlib.ExitStack()
        self.has_told = False

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

        self.held.close()
        ray.get(self.board.halt.remote(self.group, reason))
        if world_size() > 1:
            raise StorageError(reason)

    def _take(self, kills: tuple[MemoryKills, ...]) -> Assignment | Wait | Preempted | None:
        if is_told_to_go():
            return Preempted("told to go between two trials")
        taken: Assignment | Wait | None = ray.get(self.board.take.remote(self.group, kills))
        if not isinstance(taken, Assignment):
            return taken
        held_by = self.held.enter_context(self._hold(taken.trial_id))
        if held_by is not None:
            logger.info("trial %s is being trained by %s", taken.trial_id, held_by)
            self.held.close()
            ray.get(self.board.defer.remote(self.group))
            return WAIT
        if taken.failed_before:
            TrialDirectory(self.store, taken.trial_id).clear_failure()
        return taken

    def _hold(self, trial_id: str) -> contextlib.AbstractContextManager[Holder | None]:
        """The trial's lock: another study on the same storage may have the same trial, and a driver's death may be news to its workers."""
        holder = Holder.myself()
        if self.store.is_local:
            return lock(self.store, trial_lock(trial_id), holder)
        return name_held(self.store, trial_lock(trial_id), holder)

    def run(self, taken: Assignment) -> None:
        """Train a trial, or record why it is not to be trained any more."""
        from stlab.training.workers import agreed

        directory = TrialDirectory(self.store, taken.trial_id)
        if taken.given_up is not None:
            if self.is_lead:
                directory.clear_failure()
                directory.write_failure({"reason": taken.given_up, "log_tail": []})
            status = "failed"
        else:
            # The others may look at the directory before the lead has written that it is done.
            status = agreed(self._train(taken, directory))
        self.held.close()
        if status == "started":
            if self.is_lead:
                ray.get(self.board.hand_back.remote(self.group))
            raise Preempted(f"told to go while it trained {taken.trial_id}")
        if self.is_lead:
            ray.get(self.board.end.remote(self.group, status))

    def _train(self, taken: Assignment, directory: TrialDirectory) -> str:
        from stlab.training import run_trial
        from stlab.training.workers import agreed

        if taken.spec is None:
            spec, identity = self.job["work"][taken.trial_id]
        else:
            spec, identity = taken.spec, taken.identity or {}

        # The first alone asks: what it answers is written down by it, while the others might still be reading.
        parts = agreed(2 * directory.micro_batches() if taken.needs_less_memory and self.is_lead else 1)

        def report(event: Mapping[str, Any]) -> str | None:
            self.board.say.remote({**event, "trial_id": taken.trial_id})
            if not taken.prunable or event["kind"] != "epochs":
                return None
            stop: str | None = ray.get(self.board.report.remote(self.group, event["rows"]))
            return stop

        return run_trial(
            TrialSpec(**spec), identity, directory,
            test=self.job["test"] if taken.spec is None else taken.test,
            report=report,
            prunable=taken.prunable,
            stop=self._is_to_stop,
            on_hang=self._end_process,
            micro_batches=parts,
        ).value  # fmt: skip

    def _is_to_stop(self) -> bool:
        """Asked between steps. The board hears of a notice at once: whatever it does to the trial is no failure of its."""
        told = is_told_to_go()
        if told and not self.has_told:
            self.has_told = True
            self.board.notice.remote(self.group)
        return told

    def _end_process(self, is_recorded: bool) -> None:
        """A step hangs, which nothing but the end of the process can end."""
        if self.is_lead and is_recorded:
            with contextlib.suppress(ray.exceptions.RayError):  # whatever becomes of it, the controller sees the process die
                ray.get(self.board.end.remote(self.group, "failed"), timeout=_LAST_WORDS_SECONDS)
        os._exit(1)
