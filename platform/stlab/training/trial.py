"""One trial, from its specification to its directory."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from stlab.catalog import create_model
from stlab.data import Dataset, Windows, load_dataset
from stlab.errors import StorageError, TrialFailed, UserError, first_line
from stlab.storage import TrialDirectory, TrialStatus
from stlab.training.checkpoint import Checkpoints, Progress, load_trainable_state, trainable_state
from stlab.training.device import PeakMemory, arithmetic, autocast_for, device_name, pick_device, pick_precision
from stlab.training.interruption import TrialStopped
from stlab.training.loop import Fit, Report, TrialPruned, default_batch_size
from stlab.training.memory import NeedsSmallerBatches, OutOfMemory, is_divisible, is_out_of_memory, micro_batch
from stlab.training.metrics import Errors, Keep, evaluate
from stlab.training.model_input import view_of_window
from stlab.training.predictions import KeptPredictions, by_horizon, ignore
from stlab.training.step_log import NonFiniteLoss
from stlab.training.watchdog import HungStep, Watchdog
from stlab.training.workers import FailedHere, PeerLost, agreed, is_peer_lost, world_size
from stmodels.base import Forecaster
from stmodels.rng import initialise

if TYPE_CHECKING:
    from stlab.study.spec import TrialSpec

logger = logging.getLogger(__name__)

_TAIL_LINES = 15
_HANG_SECONDS = 10.0  # the other workers of a trial wait so much longer, that the first one may write down what happened

# A worker keeps the data of the trials before; specifications are frozen and so hashable.
dataset_for = functools.lru_cache(maxsize=4)(load_dataset)


def run_trial(
    trial: TrialSpec,
    identity: Mapping[str, Any],
    directory: TrialDirectory,
    *,
    test: bool,
    report: Report = lambda event: None,
    prunable: bool = False,
    stop: Callable[[], bool] | None = None,
    on_hang: Callable[[bool], None] | None = None,
    micro_batches: int = 1,
) -> TrialStatus:
    """Train one trial, resuming where its directory left off, and measure it on the test segment if asked.

    Whatever goes wrong inside the trial is written to its directory and ends this trial alone. Where memory runs out, it goes on from
    its last checkpoint with half as many windows at once, at the same batch, down to one.

    Args:
        trial: the resolved specification.
        identity: what ``trial.json`` says beside it: fingerprints, versions.
        directory: where everything goes.
        test: whether a study reports this trial on the test segment.
        report: called on the first worker with ``{"kind": "epochs", "rows": [...]}`` as epochs end, and with
            ``{"kind": "note", "text": ...}`` where something was mended that the user should know of.
        prunable: whether the trial stops early when ``report`` answers why it should. One that was pruned before is left as it is
            then, and trained to its end otherwise.
        stop: asked between steps. Once it says yes on any worker, a checkpoint is written and STARTED is returned.
        on_hang: called on every worker, in a thread of its own, when no step ended for ``train.step_timeout``, with whether this worker
            has that on record: to end the process, say. Without it the trial ends when the step does.
        micro_batches: divide a worker's share of a batch into so many parts at the least, because it was killed for want of
            memory. What the directory says (:meth:`TrialDirectory.micro_batches`) holds where that is more: ask for twice that.

    Raises:
        StorageError: the directory cannot be read or written; the trial stays as it last was.
        NeedsSmallerBatches: memory ran out on one of several workers; they all have to be started anew, and go on with smaller ones.
        FailedHere: it failed on one of several workers, which is on record; they all have to be started anew, for other trials.
        PeerLost: another worker is gone; they all have to be started anew, and go on from the last checkpoint.
    """
    status = directory.status()
    is_trained = status is TrialStatus.FINISHED and (not test or directory.is_tested())
    is_over = is_trained or status is TrialStatus.FAILED or (prunable and status is TrialStatus.PRUNED)
    if over := agreed(status if is_over else None):  # on a network's folder one worker may see what is there later than another
        return over
    run = _Run(trial, identity, directory, test, report, prunable, stop, on_hang)
    run.divide(micro_batches)
    while (reached := run.attempt()) is None:
        gc.collect()  # what the failed step held, all of it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return reached


class _Run:
    """A trial's attempts, one unless memory runs out."""

    def __init__(
        self, trial: TrialSpec, identity: Mapping[str, Any], directory: TrialDirectory, test: bool, report: Report, prunable: bool,
        stop: Callable[[], bool] | None, on_hang: Callable[[bool], None] | None,
    ) -> None:  # fmt: skip
        self.trial, self.identity, self.directory, self.test = trial, identity, directory, test
        self.report, self.prunable, self.stop, self.on_hang = report, prunable, stop, on_hang
        self.world = world_size()
        self.lead = self.world == 1 or dist.get_rank() == 0
        self.micro_batches = 1
        self.notes: list[str] = []
        self.has_failed = False
        """Whether this worker has a failure on record."""
        self.job: _Job | None = None
        if self.lead:
            for damaged in directory.set_aside_damaged():
                self.note(f"{damaged}: done again")

    def note(self, text: str) -> None:
        """Something the user should know: told, and kept with the result."""
        logger.warning("trial %s: %s", self.directory.trial_id, text)
        self.notes.append(text)
        self.report({"kind": "note", "text": text})

    def divide(self, asked: int) -> None:
        """Take up the division of batches that the directory knows, or a finer one that is asked for."""
        self.micro_batches = agreed(self.directory.micro_batches())
        if self.micro_batches > 1:
            self.notes += self.directory.memory_notes()
        if asked > self.micro_batches:
            self.micro_batches = asked
            if self.lead:
                text = f"killed for want of memory: batches are divided into {asked} parts"
                self.directory.write_micro_batches(asked, text)
                self.note(text)

    def attempt(self) -> TrialStatus | None:
        """Run the trial as far as it goes; None where it is to go on with smaller parts of batches."""
        timeout = self.trial.train.step_timeout
        seconds = None if timeout is None else timeout + (0.0 if self.lead else _HANG_SECONDS)
        try:
            with Watchdog(seconds, self._hung) as watchdog:
                self._work(watchdog)
        except TrialStopped:
            logger.info("trial %s stopped where it is to go on from", self.directory.trial_id)
            return TrialStatus.STARTED
        except StorageError:  # no fault of the trial's, and nothing could be written down: it goes on from its last checkpoint
            raise
        except TrialPruned as reason:
            self._pruned(str(reason))
        except HungStep as error:
            if self._another_has_said():
                raise PeerLost("another worker's end kept the step") from error
            logger.error("trial %s: %s", self.directory.trial_id, error)
            if self.directory.read("failed.json") is None:
                self._failed(error)  # it could not be written down when it was noticed
            if self.world > 1:
                raise  # the others may still wait
            return TrialStatus.FAILED
        except Exception as error:  # noqa: BLE001 - one trial's error must not end the others; it is recorded in full
            if self.job is not None and is_out_of_memory(error):
                return self._out_of_memory(error, self.job.batch_size)
            return self._failed(error)
        finally:
            self.job = None
        return self.directory.status()

    def _work(self, watchdog: Watchdog) -> None:
        if self.lead and self.directory.read("trial.json") is None:
            self.directory.write_trial({**_plain(self.trial), **self.identity})
        self.job = job = _Job(self, watchdog)
        if self.micro_batches > 1 and not is_divisible(job.batch_size, self.world, self.micro_batches // 2):
            if self.lead:  # with more memory, another time, it may go on with the smallest parts there are
                self.directory.write_micro_batches(self.micro_batches // 2, f"there are no {self.micro_batches} parts of a batch")
            raise MemoryError("its workers were killed")
        is_trained = self.directory.status() is TrialStatus.FINISHED
        if is_trained and self.test and not job.has_selected():
            self.job = job = _Job(self, watchdog)
            is_trained = False
        if not is_trained:
            job.train()
        if self.test and self.lead:
            job.test()

    def _out_of_memory(self, error: Exception, batch_size: int) -> TrialStatus | None:
        """Halve what goes through the model at once. In a group, the worker that is short of memory may not be the first."""
        said = f"out of memory ({first_line(error)})"
        before = micro_batch(batch_size, self.world, self.micro_batches)
        if not is_divisible(batch_size, self.world, self.micro_batches):
            failure = OutOfMemory(f"{said} with {before} window at a time, of a batch of {batch_size}: there is no smaller one")
            return self._failed(failure.with_traceback(error.__traceback__), anywhere=True)
        self.micro_batches *= 2
        now = micro_batch(batch_size, self.world, self.micro_batches)
        text = f"{said} with {before} windows at a time; gone on with {now}, at the same batch of {batch_size}"
        self.directory.write_micro_batches(self.micro_batches, text)
        if self.world > 1 and self.directory.status() is not TrialStatus.FINISHED:  # the first alone measures the test segment
            raise NeedsSmallerBatches(text) from None
        self.note(text)
        return None

    def _pruned(self, reason: str) -> None:
        if self.lead and self.job is not None and self.job.progress is not None:
            self.directory.write_epochs(self.job.progress.rows)
            epoch = self.job.progress.epoch
            self.directory.write_pruned({"reason": reason, "epoch": epoch, "pruned_at": datetime.now(UTC).isoformat()})

    def _failed(self, error: Exception, anywhere: bool = False) -> TrialStatus:
        """Record a failure. Where it is one that all workers meet, the first does; ``anywhere``: it may be this worker's alone."""
        if self.world > 1 and is_peer_lost(error):
            raise PeerLost(first_line(error)) from error
        expected = isinstance(error, (TrialFailed, UserError))
        anywhere = anywhere or not isinstance(error, TrialFailed)  # a file that one node lacks, say
        if self.lead or (anywhere and self.directory.read("failed.json") is None):
            if self.lead and self.job is not None and self.job.progress is not None and self.job.progress.rows:
                self.directory.write_epochs(self.job.progress.rows)
            tail = "".join(traceback.format_exception(error)).splitlines()
            step = error.step if isinstance(error, NonFiniteLoss) else None
            self._write_failure(str(error) if expected else f"{type(error).__name__}: {error}", tail, step)
        logger.error("trial %s failed: %s", self.directory.trial_id, error)
        if self.world > 1 and anywhere:
            raise FailedHere(str(error)) from error
        return TrialStatus.FAILED

    def _write_failure(self, reason: str, tail: list[str], step: int | None = None) -> None:
        epochs, steps = self.job.position() if self.job is not None else (0, 0)
        self.has_failed = True
        self.directory.write_failure(
            {
                "reason": reason,
                "epoch": epochs,
                "step": steps if step is None else step,
                "failed_at": datetime.now(UTC).isoformat(),
                "log_tail": tail[-_TAIL_LINES:],
                "notes": self.job.notes() if self.job is not None else self.notes,
            }
        )

    def _another_has_said(self) -> bool:
        """Whether another worker failed or ran out of memory, which is on record: this one waited for it, and its group is to end."""
        if self.world == 1 or self.has_failed:
            return False
        return self.directory.micro_batches() > self.micro_batches or self.directory.read("failed.json") is not None

    def _hung(self, stack: list[str]) -> None:
        """Called by the watchdog, while the thread that trains hangs."""
        epochs, steps = self.job.position() if self.job is not None else (0, 0)
        text = (
            f"a step hung: in epoch {epochs + 1}, after step {steps}, none ended for {self.trial.train.step_timeout:g} s "
            "(train.step_timeout)"
        )
        logger.error("trial %s: %s\n%s", self.directory.trial_id, text, "\n".join(stack))
        ends, is_recorded = True, False
        try:
            if self._another_has_said():
                ends = False  # whoever started the workers has heard, and ends them
            elif self.lead:
                self._write_failure(text, stack)
                is_recorded = True
        finally:  # a storage that is away must not keep the process
            if ends and self.on_hang is not None:
                self.on_hang(is_recorded)


def _plain(trial: TrialSpec) -> dict[str, Any]:
    """The specification as ``trial.json`` holds it. Images without pydantic give it as frozen dataclasses of the same fields."""
    return dataclasses.asdict(trial) if dataclasses.is_dataclass(trial) else trial.model_dump(mode="json")


class _Job:
    """The parts that one attempt needs, made once for training and test."""

    def __init__(self, run: _Run, watchdog: Watchdog) -> None:
        trial = run.trial
        self.run, self.trial, self.directory, self.lead, self.watchdog = run, trial, run.directory, run.lead, watchdog
        self.fit: Fit | None = None
        self.device = pick_device(trial.resources.gpus)
        self.precision = pick_precision(trial.train.precision, self.device)
        self.autocast = autocast_for(self.precision, self.device)
        self.dataset: Dataset = dataset_for(trial.data)
        self.batch_size = trial.train.batch_size or default_batch_size(self.dataset)
        self.micro_batch = micro_batch(self.batch_size, run.world, run.micro_batches)
        self.batch_evaluated = self.batch_size if run.micro_batches == 1 else self.micro_batch
        model = create_model(trial.model, self.dataset.info)
        initialise(model, trial.seed)
        self.model: Forecaster = model.to(self.device)
        self.checkpoints = Checkpoints(run.directory)

    @property
    def progress(self) -> Progress | None:
        return None if self.fit is None else self.fit.progress

    def position(self) -> tuple[int, int]:
        """Epochs that have ended, and steps done."""
        return (0, 0) if self.fit is None else (self.fit.progress.epoch, self.fit.steps)

    def notes(self) -> list[str]:
        """What the user should know, of attempts before this one too."""
        return list(dict.fromkeys([*(self.fit.progress.notes if self.fit is not None else ()), *self.run.notes]))

    def windows(self, segment: str) -> Windows:
        return self.dataset.windows(segment, self.device)

    def train(self) -> None:
        """Train or fit, and write ``result.json`` last."""
        started_at = datetime.now(UTC).isoformat()
        is_trained = any(p.requires_grad for p in self.model.parameters())
        result = self._optimise() if is_trained else self._fit()
        if self.lead:
            parameters = list(self.model.parameters())
            self.directory.write_result(
                {
                    **result,
                    "trainable_params": sum(p.numel() for p in parameters if p.requires_grad),
                    "total_params": sum(p.numel() for p in parameters),
                    "precision": self.precision,
                    "device": device_name(self.device),
                    "arithmetic": arithmetic(self.device),
                    "started_at": started_at,
                    "micro_batch": self.micro_batch,
                    "notes": self.notes(),
                }
            )

    def _optimise(self) -> dict[str, Any]:
        train = self.trial.train
        run = self.run
        self.fit = fit = Fit(
            self.model, self.dataset, train, self.trial.seed, self.device, self.autocast, self.checkpoints, run.report, run.prunable,
            run.stop, self.watchdog, run.micro_batches,
        )  # fmt: skip
        progress = fit.progress
        if self.lead and self.checkpoints.note is not None:
            run.note(self.checkpoints.note)
        progress.notes = self.notes()
        best = fit.run()
        rows = progress.rows
        load_trainable_state(self.model, best)
        if self.lead:
            self.checkpoints.save_best(best)
            self.directory.write_epochs(rows)
        seconds = sum(row["seconds"] for row in rows)
        chosen = rows[progress.best_epoch - 1]
        return {
            "val_mae": chosen["val_mae"],
            "val_rmse": chosen["val_rmse"],
            "best_epoch": progress.best_epoch,
            "epochs": progress.epoch,
            "stopped": f"no better validation {train.select_by.upper()}" if progress.epoch < train.max_epochs else "max_epochs",
            "wall_seconds": seconds,
            "device_seconds": seconds * self.trial.resources.workers,
            "peak_memory_bytes": progress.peak_memory_bytes,
            "samples_per_second": float(np.mean([row["samples_per_second"] for row in rows])),
        }

    def _fit(self) -> dict[str, Any]:
        """Models without a trainable parameter: fitted in closed form, if at all."""
        memory, started = PeakMemory(self.device), time.perf_counter()
        self.model.fit(self.windows("train"))
        with self.watchdog.watching():
            errors = self._evaluate("validation", None, self.watchdog.tick)
        if self.lead:
            self.checkpoints.save_best(trainable_state(self.model))
        seconds = time.perf_counter() - started
        return {
            "val_mae": errors["mae"],
            "val_rmse": errors["rmse"],
            "epochs": 0,
            "wall_seconds": seconds,
            "device_seconds": seconds,
            "peak_memory_bytes": memory.bytes(),
        }

    def test(self) -> None:
        """Measure the selected checkpoint on the test segment: once, after all selection."""
        self.checkpoints.load_best(self.model)
        self.model.fit(self.windows("train"))
        windows = self.windows("test")
        kept = KeptPredictions(self.dataset, windows)
        with self.watchdog.watching():
            validation = self._evaluate("validation", ignore, self._measured)
            errors = self._evaluate("test", kept, self._measured)
        horizon = [*by_horizon("validation", validation), *by_horizon("test", errors)]
        summary = {key: errors[key] for key in ("mae", "rmse", "mape", "mae_unmasked", "rmse_unmasked")}
        view = view_of_window(self.model, self.dataset, windows, kept.busiest(), self.autocast)
        if view is not None:
            self.directory.write_view(view)
        told = {"windows": len(windows), "tested_at": datetime.now(UTC).isoformat(), "notes": self.run.notes}
        self.directory.write_test({**summary, **told}, horizon, kept.table())

    def has_selected(self) -> bool:
        """Whether the selected weights of a finished trial are still whole."""
        try:
            self.checkpoints.load_best(self.model)
        except (FileNotFoundError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if self.lead:
                self.run.note(f"the selected weights cannot be used ({error}): taken from the last checkpoint again")
            return False
        return True

    def _evaluate(self, segment: str, keep: Keep | None, ended: Callable[[], None]) -> Errors:
        windows = self.windows(segment)
        return evaluate(self.model, self.dataset, windows, self.batch_evaluated, self.autocast, keep, ended)

    def _measured(self) -> None:
        """A batch was measured by this worker alone."""
        self.watchdog.tick()
        if self.run.stop is not None and self.run.stop():
            raise TrialStopped
