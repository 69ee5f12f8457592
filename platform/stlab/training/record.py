"""How a trial's attempts end, and what is written down about it: failures, hung steps, pruning, and memory that ran out."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stlab.errors import FailedHere, NeedsSmallerBatches, PeerLost, TrialFailed, UserError, first_line
from stlab.storage import TrialDirectory, TrialStatus
from stlab.training.batches import BatchPlan
from stlab.training.interruption import Report, TrialPruned, TrialStopped
from stlab.training.memory import OutOfMemory, is_out_of_memory
from stlab.training.step_log import NonFiniteLoss
from stlab.training.watchdog import HungStep, Watchdog
from stlab.training.workers import agreed, is_peer_lost, rank_here, world_size

if TYPE_CHECKING:
    from stlab.study.spec import TrialSpec
    from stlab.training.loop import Loop

logger = logging.getLogger(__name__)

_TAIL_LINES = 15
_HANG_SECONDS = 10.0  # the other workers wait longer by this, so that the first has time to write down the cause


class TrialRecord:
    """The knowledge of this worker about a trial, over all of its attempts. There is one attempt unless memory runs out.

    Args:
        report: called with a note where something was mended that the user should know of.
        on_hang: called from the watchdog's thread when no step ends; see :func:`stlab.training.run_trial`.
    """

    def __init__(
        self, trial: TrialSpec, directory: TrialDirectory, report: Report, on_hang: Callable[[bool], None] | None
    ) -> None:
        self.trial, self.directory, self.report, self.on_hang = trial, directory, report, on_hang
        self.has_peers = world_size() > 1
        self.is_first_worker = rank_here() == 0
        self.parts = 1
        """Number of parts into which a worker's share of a batch is divided."""
        self.notes: list[str] = []
        """Notes for the user from this call alone."""
        self.has_failed = False
        """Whether this worker has written a failure down."""
        self.batches: BatchPlan | None = None
        """How the attempt divides batches; None until everything is built."""
        self.loop: Loop | None = None
        """The attempt's training; None before it begins, and for a model without trainable parameters."""
        self.stage = ""
        """The stage that the training is of; empty for the one that the study describes."""

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write ``trial.json``, unless an earlier attempt did."""
        if self.is_first_worker and self.directory.read("trial.json") is None:
            self.directory.write_trial({**_plain(self.trial), **identity})

    def watchdog(self) -> Watchdog:
        """A watchdog that writes a hung step down."""
        timeout = self.trial.train.step_timeout
        seconds = None if timeout is None else timeout + (0.0 if self.is_first_worker else _HANG_SECONDS)
        return Watchdog(seconds, self._hung)

    def note(self, text: str) -> None:
        """Log and report something that the user should know, and keep it with the result."""
        logger.warning("trial %s: %s", self.directory.trial_id, text)
        self.notes.append(text)
        self.report({"kind": "note", "text": text})

    def all_notes(self) -> list[str]:
        """Notes for the user, those of earlier calls included."""
        return list(dict.fromkeys([*(self.loop.progress.notes if self.loop is not None else ()), *self.notes]))

    def set_aside_damaged(self) -> None:
        """Move damaged files of the directory out of the way, so that they are made again."""
        if self.is_first_worker:
            for damaged in self.directory.set_aside_damaged():
                self.note(f"{damaged}: done again")

    def divide(self, asked: int) -> None:
        """Take up the division of batches that the directory knows, or a finer one that is asked for."""
        self.parts = agreed(self.directory.micro_batches())
        if self.parts > 1:
            self.notes += self.directory.memory_notes()
        if asked > self.parts:
            self.parts = asked
            if self.is_first_worker:
                text = f"killed for want of memory: batches are divided into {asked} parts"
                self.directory.write_micro_batches(asked, text)
                self.note(text)

    def check_division(self, batches: BatchPlan) -> None:
        """Keep the attempt's plan.

        Raises:
            MemoryError: there was one window at a time already when the workers were killed, so no smaller parts can help.
        """
        self.batches = batches
        if self.parts > 1 and not batches.divided_into(self.parts // 2).is_divisible:
            if self.is_first_worker:  # with more memory, another time, the trial may go on with the smallest parts there are
                self.directory.write_micro_batches(self.parts // 2, f"there are no {self.parts} parts of a batch")
            raise MemoryError("its workers were killed")

    def ended_by(self, error: Exception) -> TrialStatus | None:
        """Write down how an exception ended the attempt; the trial's status, or None if it goes on with smaller parts of batches.

        Raises:
            NeedsSmallerBatches, FailedHere, PeerLost, HungStep: other workers wait for this one, and all have to be started anew.
        """
        try:
            return self._ended_by(error)
        finally:
            self.stage = ""
            self.loop = self.batches = None  # all that the attempt held in memory is free before the next one begins

    def _ended_by(self, error: Exception) -> TrialStatus | None:
        if isinstance(error, TrialStopped):
            logger.info("trial %s stopped; it can go on from its last checkpoint", self.directory.trial_id)
            return TrialStatus.STARTED
        if isinstance(error, TrialPruned):
            self._pruned(str(error))
            return self.directory.status()
        if isinstance(error, HungStep):
            return self._hung_step_ended(error)
        if self.batches is not None and is_out_of_memory(error):
            return self._out_of_memory(error, self.batches)
        return self._failed(error)

    def _pruned(self, reason: str) -> None:
        if self.is_first_worker and self.loop is not None:
            progress = self.loop.progress
            self.directory.write_epochs(progress.rows)
            self.directory.write_pruned({"reason": reason, "epoch": progress.epoch, "pruned_at": datetime.now(UTC).isoformat()})

    def _out_of_memory(self, error: Exception, batches: BatchPlan) -> TrialStatus | None:
        """Halve the number of windows that go through the model at once. Any worker of several may be the one short of memory."""
        cause = f"out of memory ({first_line(error)})"
        size, before = batches.batch_size, batches.micro_batch
        if not batches.is_divisible:
            why = f"{before} window at a time, of a batch of {size}: there is no smaller one"
            if batches.why_whole:
                why = f"a batch of {size} windows, which the model needs whole ({batches.why_whole}): lower train.batch_size"
            failure = OutOfMemory(f"{cause} with {why}")
            return self._failed(failure.with_traceback(error.__traceback__), is_anywhere=True)
        self.parts *= 2
        now = batches.divided_into(self.parts).micro_batch
        text = f"{cause} with {before} windows at a time; gone on with {now}, at the same batch of {size}"
        self.directory.write_micro_batches(self.parts, text)
        if self.has_peers and self.directory.status() is not TrialStatus.FINISHED:  # the first worker measures the test segment alone
            raise NeedsSmallerBatches(text) from None
        self.note(text)
        return None

    def _failed(self, error: Exception, is_anywhere: bool = False) -> TrialStatus:
        """Write a failure down. The first worker does so if all workers meet it.

        Args:
            is_anywhere: whether this worker may be the only one to meet it, as with a file that one node lacks.
        """
        if self.has_peers and is_peer_lost(error):
            raise PeerLost(first_line(error)) from error
        is_plain = isinstance(error, (TrialFailed, UserError))
        is_anywhere = is_anywhere or not isinstance(error, TrialFailed)
        if self.is_first_worker or (is_anywhere and self.directory.read("failed.json") is None):
            if self.is_first_worker and self.loop is not None and self.loop.validates and self.loop.progress.rows:
                self.directory.write_epochs(self.loop.progress.rows)
            tail = "".join(traceback.format_exception(error)).splitlines()
            step = error.step if isinstance(error, NonFiniteLoss) else None
            self._write_failure(str(error) if is_plain else f"{type(error).__name__}: {error}", tail, step)
        logger.error("trial %s failed: %s", self.directory.trial_id, error)
        if self.has_peers and is_anywhere:
            raise FailedHere(str(error)) from error
        return TrialStatus.FAILED

    def _write_failure(self, reason: str, tail: list[str], step: int | None = None) -> None:
        epochs, steps = self._position()
        self.has_failed = True
        self.directory.write_failure(
            {
                "reason": f"in the stage {self.stage}: {reason}" if self.stage else reason,
                "epoch": epochs,
                "step": steps if step is None else step,
                "failed_at": datetime.now(UTC).isoformat(),
                "log_tail": tail[-_TAIL_LINES:],
                "notes": self.all_notes(),
            }
        )

    def _position(self) -> tuple[int, int]:
        """Epochs that have ended, and optimiser steps done."""
        return (0, 0) if self.loop is None else (self.loop.progress.epoch, self.loop.steps)

    def _is_ended_by_peer(self) -> bool:
        """Whether another worker has written down that it failed or ran out of memory. This one waited for it and is to end too."""
        if not self.has_peers or self.has_failed:
            return False
        return self.directory.micro_batches() > self.parts or self.directory.read("failed.json") is not None

    def _hung(self, stack: list[str]) -> None:
        """Write a hung step down and end the process. The watchdog calls this while the thread that trains hangs."""
        epochs, steps = self._position()
        timeout = self.trial.train.step_timeout
        text = f"a step hung: in epoch {epochs + 1}, after step {steps}, none ended for {timeout:g} s (train.step_timeout)"
        logger.error("trial %s: %s\n%s", self.directory.trial_id, text, "\n".join(stack))
        ends, is_recorded = True, False
        try:
            if self._is_ended_by_peer():
                ends = False  # whoever started the workers knows of the other's end, and ends this one
            elif self.is_first_worker:
                self._write_failure(text, stack)
                is_recorded = True
        finally:  # the process ends even if the storage cannot be reached
            if ends and self.on_hang is not None:
                self.on_hang(is_recorded)

    def _hung_step_ended(self, error: HungStep) -> TrialStatus:
        """A step that hung did end after all."""
        if self._is_ended_by_peer():
            raise PeerLost("another worker's end kept the step") from error
        logger.error("trial %s: %s", self.directory.trial_id, error)
        if self.directory.read("failed.json") is None:
            self._failed(error)  # it could not be written down when the watchdog noticed it
        if self.has_peers:
            raise error  # the others may still wait
        return TrialStatus.FAILED


def _plain(trial: TrialSpec) -> dict[str, Any]:
    """The specification as ``trial.json`` holds it. Images without pydantic give it as frozen dataclasses of the same fields."""
    return dataclasses.asdict(trial) if dataclasses.is_dataclass(trial) else trial.model_dump(mode="json")
