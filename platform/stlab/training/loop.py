"""The training loop: epochs of optimiser steps and a validation, early stopping, checkpoints, and exact resumption."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from stlab.errors import DataError, PeerLost
from stlab.training.checkpoint import Checkpoints, Midway, Progress, Weights, load_trainable_state, trainable_state
from stlab.training.device import PeakMemory
from stlab.training.epoch import EpochInProgress
from stlab.training.interruption import Interruption, Report, TrialPruned, TrialStopped
from stlab.training.metrics import Errors, evaluate
from stlab.training.schedule import covered_horizon, curriculum_end
from stlab.training.setup import TrainingSetup
from stlab.training.step import OptimiserStep, make_optimiser
from stlab.training.step_log import NonFiniteLoss
from stlab.training.watchdog import Watchdog
from stlab.training.workers import gathered


class Loop:
    """Trains a model until its validation stops improving, and then, if asked, through a decay of the learning rate from the best weights.

    It goes on from the trial's last checkpoint if there is one.

    Args:
        setup: model, data and how to train.
        checkpoints: where to go on from, and where to write.
        report: called on the first worker with the rows of epochs as they end.
        prunable: whether an answer to a report stops the training.
        stop: whether to write a checkpoint and end now.
        watchdog: told of every step and validation batch.
        validates: whether validation selects and stops, and epochs are reported. If not, all epochs are trained and the last weights count.

    Raises:
        PeerLost: the workers of the trial go on from different checkpoints.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        checkpoints: Checkpoints,
        *,
        report: Report = lambda event: None,
        prunable: bool = False,
        stop: Callable[[], bool] | None = None,
        watchdog: Watchdog | None = None,
        validates: bool = True,
    ) -> None:
        self.setup, self.train, self.validates = setup, setup.train, validates
        self.checkpoints, self.report, self.prunable = checkpoints, report, prunable
        self.watchdog = watchdog or Watchdog(None, lambda stack: None)
        self.windows = setup.windows("train")
        if not len(self.windows):
            raise DataError(f"no window of the train segment has the {setup.past} steps before it that the model reads. Give more data.")
        self.validation = setup.windows("validation")
        self.is_first_worker, self.has_peers = setup.batches.rank == 0, setup.batches.workers > 1
        self.optimiser = make_optimiser(setup)
        restored = checkpoints.restore(setup.model, self.optimiser)
        self.best, self.progress = trainable_state(setup.model), Progress()
        self.midway: Midway | None = None
        if restored is not None:
            self.best, self.progress, self.midway = restored.best, restored.progress, restored.midway
        self.is_saved = restored is not None
        self.steps = self.progress.step + (self.midway.steps if self.midway is not None else 0)
        """Optimiser steps done."""
        self.step = OptimiserStep(setup, self.optimiser, self.windows)
        self.interruption = Interruption(self.train.checkpoint_seconds, stop, setup.device)
        self._check_same_start()

    def run(self) -> Weights:
        """Train until validation stops improving or epochs run out; returns the best weights. ``progress`` says the rest.

        Raises:
            NonFiniteLoss: a loss or the validation error is not finite; says at which step and learning rate.
            TrialPruned: the search has no more use for the trial. Its checkpoint is written, so that it could go on.
            TrialStopped: it was asked to stop. Its checkpoint is written.
            HungStep: a step took too long.
        """
        progress = self.progress
        reason = self._report_epochs(progress.rows)
        if self._goes_on():
            self._prune_if(reason)
        memory = PeakMemory(self.setup.device)
        while self._goes_on() or self._begins_decay():
            row = self._epoch()
            error = row[f"val_{self.train.select_by}"] if self.validates else -progress.epoch
            if error < progress.best_error:
                progress.best_error, progress.best_epoch = error, progress.epoch
                self.best = trainable_state(self.setup.model)
            progress.rows.append(row)
            progress.peak_memory_bytes = max(progress.peak_memory_bytes, memory.bytes())
            self.is_saved = False
            reason = self._report_epochs([row])
            if self.is_first_worker and (reason is not None or self.interruption.is_save_time()):
                self._save()
            if self._goes_on():
                self._prune_if(reason)
                if self.interruption.due(now=True).stop:
                    self._save()
                    raise TrialStopped
        self._save()
        return self.best

    def _epoch(self) -> dict[str, Any]:
        """One pass over the train windows, or over those that are left, and one over the validation windows; the epoch's row."""
        self.setup.model.train()
        epoch = EpochInProgress.begin(self.setup, self.windows, self.progress, self.midway)
        self.midway = None
        steps_an_epoch = self.setup.batches.steps_an_epoch(self.windows)
        with self.watchdog.watching():
            for index in epoch.batches:
                is_first = len(epoch.log) == 0
                covered = covered_horizon(self.steps, steps_an_epoch, self.train, self.setup.dataset.info.horizon)
                self.setup.model.progresses(min(1.0, self.steps / (self.train.max_epochs * steps_an_epoch)))
                epoch.add(self.step(index, epoch.learning_rate(self.steps), covered, with_term_norms=is_first))
                self.steps, self.is_saved = self.progress.step + len(epoch.log), False
                self.watchdog.tick()
                self._interrupt(epoch)
        means, trained_seconds = epoch.means(), epoch.seconds()
        errors = self._validate(epoch, trained_seconds) if self.validates else None
        self.progress.epoch, self.progress.step = self.progress.epoch + 1, self.steps
        return {
            "epoch": self.progress.epoch,
            "step": self.steps,
            **means,
            **({} if errors is None else {"val_mae": errors["mae"], "val_rmse": errors["rmse"]}),
            "lr": self._last_learning_rate(),
            "seconds": epoch.seconds(),
            "samples_per_second": len(self.windows) / trained_seconds,
            "micro_batch": self.setup.batches.micro_batch,
        }

    def _validate(self, epoch: EpochInProgress, trained_seconds: float) -> Errors:
        """Validation errors.

        Raises:
            NonFiniteLoss: the validation error is not finite.
            TrialStopped: the checkpoint is the one before the validation, which draws no random number.
        """

        def batch_ended() -> None:
            self.watchdog.tick()
            if self.interruption.due().stop:
                raise TrialStopped

        setup = self.setup
        try:
            with self.watchdog.watching():
                errors = evaluate(
                    self.step.compiled, setup.dataset, self.validation, setup.batches.evaluated, setup.autocast, None, batch_ended
                )
        except TrialStopped:
            self._save(epoch.midway(trained_seconds))
            raise
        if not math.isfinite(errors["rmse"]):
            # A loss is taken before its update, so damage by the last update shows here first; unchecked, those weights could be selected.
            message = (
                f"the validation RMSE is {errors['rmse']} after step {self.steps}, learning rate {self._last_learning_rate():.3g}"
            )
            raise NonFiniteLoss(message, self.steps)
        return errors

    def _goes_on(self) -> bool:
        epoch, train = self.progress.epoch, self.train
        if self.progress.decay_from:
            return epoch < self.progress.decay_from + train.decay_epochs
        changes_until = math.ceil(self.setup.model.changing_share * train.max_epochs)
        waits_since = max(self.progress.best_epoch, changes_until, curriculum_end(train, self.setup.dataset.info.horizon))
        return epoch < train.max_epochs and epoch - waits_since < train.patience

    def _begins_decay(self) -> bool:
        """Go back to the best weights, with the rate of their epoch, where patience has run out and a decay is asked for."""
        progress = self.progress
        if progress.decay_from or not self.validates or not self.train.decay_epochs or progress.epoch >= self.train.max_epochs:
            return False
        progress.decay_from, progress.decay_rate = progress.epoch, progress.rows[progress.best_epoch - 1]["lr"]
        load_trainable_state(self.setup.model, self.best)
        self.optimiser.state.clear()  # its moments are those of other weights
        self.is_saved = False
        return True

    def _last_learning_rate(self) -> float:
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    def _report_epochs(self, rows: Sequence[dict[str, Any]]) -> str | None:
        """Report epochs, first those of a restored checkpoint. Returns the reason to stop, and None on all workers but the first."""
        return self.report({"kind": "epochs", "rows": rows}) if rows and self.is_first_worker and self.validates else None

    def _prune_if(self, reason: str | None) -> None:
        """Raise TrialPruned on all workers if the first one was given a reason to stop."""
        if not self.prunable:
            return
        box = [reason]
        if self.has_peers:
            dist.broadcast_object_list(box, src=0)
        if box[0] is not None:
            raise TrialPruned(box[0])

    def _interrupt(self, epoch: EpochInProgress) -> None:
        """Between two steps: write a checkpoint if it is time, and stop if that was asked."""
        due = self.interruption.due()
        if due.save or due.stop:
            with self.watchdog.resting():
                self._save(epoch.midway(epoch.seconds()))
                if self.has_peers:  # the first worker writes, and the others would wait for it in their next step
                    dist.all_reduce(torch.zeros(1, device=self.setup.device))
        if due.stop:
            raise TrialStopped

    def _save(self, midway: Midway | None = None) -> None:
        """Write a checkpoint, unless nothing happened since the last one."""
        if self.is_first_worker and not self.is_saved:
            with self.watchdog.resting():
                self.checkpoints.save(self.setup.model, self.optimiser, self.best, self.progress, midway)
        self.is_saved = True
        self.interruption.saved()

    def _check_same_start(self) -> None:
        """Raise PeerLost if the workers go on from different checkpoints: one may see a network's newest file later than another."""
        steps = gathered(self.steps)
        if len(set(steps)) > 1:
            raise PeerLost(f"the workers see different checkpoints, after {', '.join(map(str, steps))} steps")
