"""One trial, from its specification to its directory: build, train, select, test."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stlab.catalog import create_config, create_model
from stlab.data import Dataset, load_dataset
from stlab.errors import StorageError
from stlab.storage import TrialDirectory, TrialStatus
from stlab.training.batches import BatchPlan
from stlab.training.checkpoint import Checkpoints, Progress, load_trainable_state, trainable_state
from stlab.training.device import PeakMemory, arithmetic, device_name, pick_device, pick_precision
from stlab.training.interruption import Report, TrialStopped
from stlab.training.loop import Loop
from stlab.training.loss import set_criterion
from stlab.training.memory import is_out_of_memory
from stlab.training.metrics import Errors, Keep, evaluate
from stlab.training.model_input import model_input_of_window
from stlab.training.predictions import KeptPredictions, by_horizon, ignore
from stlab.training.prepared import prepare
from stlab.training.record import TrialRecord
from stlab.training.setup import TrainingSetup
from stlab.training.stages import train_of
from stlab.training.step import trainable
from stlab.training.watchdog import Watchdog
from stlab.training.workers import agreed
from stmodels.base import Forecaster
from stmodels.config import Stage
from stmodels.rng import initialise

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec, TrialSpec

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
    parts: int = 1,
) -> TrialStatus:
    """Train one trial, resuming from the last checkpoint in its directory, and measure it on the test segment if asked.

    An error inside the trial is written to its directory and ends this trial alone. If memory runs out, the trial goes on from its
    last checkpoint with half as many windows at once, at the same batch size, down to one window.

    Args:
        trial: the resolved specification.
        identity: what ``trial.json`` says beside the specification: fingerprints, versions.
        directory: where everything is written.
        test: whether a study reports this trial on the test segment.
        report: called on the first worker with ``{"kind": "epochs", "rows": [...]}`` as epochs end, and with
            ``{"kind": "note", "text": ...}`` where something was mended that the user should know of.
        prunable: if true, a reason that ``report`` returns stops the trial, and a trial that was pruned before is left as it is. If
            false, a pruned trial is trained to its end.
        stop: asked between steps. Once it says yes on any worker, a checkpoint is written and STARTED is returned.
        on_hang: called as ``on_hang(is_recorded)`` on every worker, in a thread of its own, when no step ended within
            ``train.step_timeout``. It may end the process. Without it the trial ends when the step does.
        parts: the least number of parts that a worker's share of a batch is divided into. A larger number in the directory
            (:meth:`TrialDirectory.micro_batches`) wins; after a death for want of memory, pass twice that number.

    Raises:
        StorageError: the directory cannot be read or written; the trial stays as it last was.
        NeedsSmallerBatches: memory ran out on one of several workers; they all have to be started anew, and go on with smaller ones.
        FailedHere: it failed on one of several workers, which is written down; all have to be started anew, for other trials.
        PeerLost: another worker is gone; they all have to be started anew, and go on from the last checkpoint.
        HungStep: a step of one of several workers hung, which is written down; all have to be started anew, for other trials.
    """
    if over := agreed(_status_if_over(directory, test, prunable)):  # in a network's folder a worker may see files later than another
        return over
    record = TrialRecord(trial, directory, report, on_hang)
    record.set_aside_damaged()
    record.divide(parts)
    trainer: TrialTrainer | None
    while True:
        try:
            with record.watchdog() as watchdog:
                record.begin(identity)
                trainer = TrialTrainer(trial, record, watchdog, stop, identity.get("code"))
                if not trainer.has_selected(for_test=test):
                    trainer.train(prunable)
                if test and record.is_first_worker:
                    trainer.test()
        except StorageError:  # the trial is not at fault, and nothing can be written: it goes on from its last checkpoint another time
            raise
        except Exception as error:  # noqa: BLE001 - one trial's error must not end the others; it is written down in full
            if (status := record.ended_by(error)) is not None:
                return status
        else:
            return directory.status()
        trainer = None  # the next attempt needs the memory of this one
        _free_memory()


def _status_if_over(directory: TrialDirectory, test: bool, prunable: bool) -> TrialStatus | None:
    """The status of a trial for which nothing is left to do."""
    status = directory.status()
    is_finished = status is TrialStatus.FINISHED and (not test or directory.is_tested())
    is_over = is_finished or status is TrialStatus.FAILED or (prunable and status is TrialStatus.PRUNED)
    return status if is_over else None


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class TrialTrainer:
    """One attempt at a trial, with everything that training and test need. It is built here, once."""

    def __init__(
        self,
        trial: TrialSpec,
        record: TrialRecord,
        watchdog: Watchdog,
        stop: Callable[[], bool] | None,
        code: Mapping[str, str] | None = None,
    ) -> None:
        """``code``: file → digest of the code that the trial runs."""
        self.code = code
        self.trial, self.record, self.watchdog, self.stop = trial, record, watchdog, stop
        self.directory, self.checkpoints = record.directory, Checkpoints(record.directory)
        device, dataset = pick_device(trial.resources.gpus), dataset_for(trial.data)
        config = create_config(trial.model)
        self.setup = TrainingSetup(
            _drawn_model(trial, dataset, device), dataset, trial.train, trial.seed, device,
            batches=BatchPlan.of(trial.train, dataset, record.parts, config.WHOLE_BATCHES),
            loss_weights=config.loss_weights(),
            precision=pick_precision(trial.train.precision, device),
            past=config.past(dataset.info),
        )  # fmt: skip
        self.stages = [(stage, self._setup_of(stage)) for stage in config.stages()]
        plans = [self.setup.batches, *(setup.batches for _, setup in self.stages)]
        record.check_division(max(plans, key=lambda plan: plan.share))
        prepare(self.setup.model, trial, dataset, record.directory.store, code)

    def _setup_of(self, stage: Stage) -> TrainingSetup:
        train = train_of(stage, self.setup.train)
        batches = BatchPlan.of(train, self.setup.dataset, self.record.parts, self.setup.batches.why_whole)
        return dataclasses.replace(self.setup, train=train, batches=batches, pretrains=stage.reads_pretrain)

    def has_selected(self, for_test: bool) -> bool:
        """Whether the trial has been trained. For a test, its selected weights must be whole, too.

        The first worker decides for all, because it alone tests, and because the others may see its files later.
        """
        return agreed(self._has_selected(for_test) if self.record.is_first_worker else False)

    def _has_selected(self, for_test: bool) -> bool:
        if self.directory.status() is not TrialStatus.FINISHED:
            return False
        if not for_test:
            return True
        try:
            self.checkpoints.load_best(self.setup.model)
        except (FileNotFoundError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            self.record.note(f"the selected weights cannot be used ({error}): taken from the last checkpoint again")
            # They may have been loaded in part.
            setup = self.setup
            self.setup = dataclasses.replace(setup, model=_drawn_model(self.trial, setup.dataset, setup.device))
            prepare(self.setup.model, self.trial, setup.dataset, self.directory.store, self.code)
            return False
        return True

    def train(self, prunable: bool) -> None:
        """Train the model, or fit it in closed form where it has no trainable parameter; writes ``result.json`` last."""
        started_at = datetime.now(UTC).isoformat()
        model, record = self.setup.model, self.record
        parameters = list(model.parameters())
        ever_trained = trainable(model)  # in whichever stage
        if not trainable(model):
            result = self._fit_alone()
        else:
            chosen = self._fit()
            before = self._train_stages()
            loop = Loop(
                self.setup, self.checkpoints, report=record.report, prunable=prunable, stop=self.stop, watchdog=self.watchdog
            )
            record.loop = loop
            if record.is_first_worker and self.checkpoints.note is not None:
                record.note(self.checkpoints.note)
            loop.progress.notes = record.all_notes()
            best = loop.run()
            load_trainable_state(model, best)
            result = {**_summary(loop.progress, self.trial, before), "chosen": chosen}
            if record.is_first_worker:
                self.checkpoints.save_best(best)
                self.directory.write_epochs(loop.progress.rows)
        if record.is_first_worker:
            self.directory.write_result(
                {
                    **result,
                    "trainable_params": sum(p.numel() for p in ever_trained),
                    "total_params": sum(p.numel() for p in parameters),
                    "precision": self.setup.precision,
                    "device": device_name(self.setup.device),
                    "arithmetic": arithmetic(self.setup.device),
                    "started_at": started_at,
                    "micro_batch": self.setup.batches.micro_batch,
                    "notes": record.all_notes(),
                }
            )

    def _train_stages(self) -> list[Progress]:
        """Train the stages that come before the training that the study describes, each from its last checkpoint if it has one."""
        model, record = self.setup.model, self.record
        if not self.stages:
            return []
        model.stored = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        done = []
        for stage, setup in self.stages:
            self._begin(stage.name, setup)
            checkpoints = Checkpoints(self.directory, stage.name)
            loop = record.loop = Loop(
                dataclasses.replace(setup, model=model), checkpoints, stop=self.stop, watchdog=self.watchdog, validates=False
            )
            if record.is_first_worker and checkpoints.note is not None:
                record.note(f"stage {stage.name}: {checkpoints.note}")
            load_trainable_state(model, loop.run())
            if record.is_first_worker:
                self.directory.write_epochs(loop.progress.rows, stage.name)
            done.append(loop.progress)
        self._begin("", self.setup)
        return done

    def _begin(self, stage: str, setup: TrainingSetup) -> None:
        """Enter a stage.

        Raises:
            ValueError: something is trained in it that was frozen when the model was built, and so is in no checkpoint.
        """
        model = self.setup.model
        model.zero_grad(set_to_none=True)
        model.begin(stage)
        set_criterion(model, setup.train, setup.dataset)
        self.record.stage, self.record.batches = stage, setup.batches
        unknown = [n for n, p in model.named_parameters() if p.requires_grad and model.stored is not None and n not in model.stored]
        if unknown:
            raise ValueError(
                f"{type(model).__name__} is built with {unknown[0]} frozen and trains it in a stage. Build it trainable; begin() may "
                "freeze it."
            )

    def _fit(self) -> dict[str, float]:
        """Fit in closed form what the model has of that; returns what it chose by validation error."""
        self.setup.model.fit(self.setup.windows("train"))
        return self.setup.model.choose(self.setup.windows("validation"), self.trial.train.select_by)

    def _fit_alone(self) -> dict[str, Any]:
        """Fit a model without trainable parameters in closed form, if it fits anything, and measure its validation error."""
        memory, started = PeakMemory(self.setup.device), time.perf_counter()
        chosen = self._fit()
        with self.watchdog.watching():
            errors = self._evaluate("validation", None, self.watchdog.tick)
        if self.record.is_first_worker:
            self.checkpoints.save_best(trainable_state(self.setup.model))
        seconds = time.perf_counter() - started
        return {
            "val_mae": errors["mae"],
            "val_rmse": errors["rmse"],
            "epochs": 0,
            "wall_seconds": seconds,
            "device_seconds": seconds,
            "peak_memory_bytes": memory.bytes(),
            "chosen": chosen,
        }

    def test(self) -> None:
        """Measure the selected weights on the test segment: once, after all selection."""
        setup, directory = self.setup, self.directory
        self.checkpoints.load_best(setup.model)
        self._fit()  # for what is fitted in closed form and in no checkpoint
        windows = self.setup.windows("test")
        kept = KeptPredictions(setup.dataset, windows)
        with self.watchdog.watching():
            validation = self._evaluate("validation", ignore, self._test_batch_ended)
            errors = self._evaluate("test", kept, self._test_batch_ended)
        horizon = [*by_horizon("validation", validation), *by_horizon("test", errors)]
        summary = {key: errors[key] for key in ("mae", "rmse", "mape", "mae_unmasked", "rmse_unmasked")}
        seen = model_input_of_window(setup.model, setup.dataset, windows, kept.busiest(), setup.autocast)
        if seen is not None:
            directory.write_model_input(seen)
        about = {"windows": len(windows), "tested_at": datetime.now(UTC).isoformat(), "notes": self.record.notes}
        directory.write_test({**summary, **about}, horizon, kept.table())

    def _evaluate(self, segment: str, keep: Keep | None, ended: Callable[[], None]) -> Errors:
        setup = self.setup
        return evaluate(setup.model, setup.dataset, setup.windows(segment), setup.batches.evaluated, setup.autocast, keep, ended)

    def _test_batch_ended(self) -> None:
        """Only the first worker tests, so it need not ask the others whether to stop."""
        self.watchdog.tick()
        if self.stop is not None and self.stop():
            raise TrialStopped


def _drawn_model(trial: TrialSpec, dataset: Dataset, device: torch.device) -> Forecaster:
    """The trial's model on its device, with the initial weights that follow from its seed."""
    model = create_model(trial.model, dataset.info)
    initialise(model, trial.seed)
    set_criterion(model, trial.train, dataset)
    return model.to(device)


def _summary(progress: Progress, trial: TrialSpec, before: Sequence[Progress]) -> dict[str, Any]:
    """The fields of ``result.json`` that describe a training. ``before``: the stages that came before it, which cost time, too."""
    rows, train = progress.rows, trial.train
    seconds = sum(row["seconds"] for one in (*before, progress) for row in one.rows)
    chosen = rows[progress.best_epoch - 1]
    return {
        "val_mae": chosen["val_mae"],
        "val_rmse": chosen["val_rmse"],
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "stopped": _why_stopped(progress, train),
        "wall_seconds": seconds,
        "device_seconds": seconds * trial.resources.workers,
        "peak_memory_bytes": max(one.peak_memory_bytes for one in (*before, progress)),
        "samples_per_second": float(np.mean([row["samples_per_second"] for row in rows])),
    }


def _why_stopped(progress: Progress, train: TrainSpec) -> str:
    if progress.decay_from:
        return f"no better validation {train.select_by.upper()} after epoch {progress.decay_from}, and the learning rate has decayed"
    return f"no better validation {train.select_by.upper()}" if progress.epoch < train.max_epochs else "max_epochs"
