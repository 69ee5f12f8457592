"""An epoch in progress: its data order, learning rate, random numbers, and what its steps have logged.

An epoch that was interrupted goes on from a checkpoint in its middle with the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stlab.data import Windows
from stlab.training.checkpoint import Midway, Progress
from stlab.training.schedule import decay, learning_rate
from stlab.training.setup import TrainingSetup
from stlab.training.step import StepValues
from stlab.training.step_log import StepLog
from stlab.training.workers import gathered
from stmodels.rng import named_seed, permutation


@dataclass
class EpochInProgress:
    """Made by :meth:`begin` at the start of an epoch, or where an interrupted one goes on."""

    device: torch.device
    batches: Sequence[Tensor]
    """Window numbers of the global batches that are left."""
    learning_rate: Callable[[int], float]
    """Optimiser step, from 0 at the start of the training → learning rate."""
    log: StepLog
    """Losses and gradient norms of the steps so far, those before an interruption included."""
    term_norms: dict[str, Tensor]
    """Gradient norms of the loss terms in the epoch's first step."""
    started: float
    seconds_before: float
    """Seconds that the epoch had taken before it was interrupted."""

    @classmethod
    def begin(cls, setup: TrainingSetup, windows: Windows, progress: Progress, midway: Midway | None) -> EpochInProgress:
        """Begin the epoch after ``progress``, or go on from ``midway`` in it. Seeds the generators that dropout draws from."""
        started = time.perf_counter()
        number, plan = progress.epoch + 1, setup.batches
        order = permutation(len(windows), setup.seed, number).to(setup.device)
        batches = windows.batches(order, plan.batch_size)
        rate = _rate(setup, plan.steps_an_epoch(windows), progress)
        # Seed, epoch and worker determine dropout's random numbers, so they are the same after an interruption.
        name = f"epoch/{number}/{plan.rank}"
        if midway is None:
            torch.manual_seed(named_seed(setup.seed, name))
            return cls(setup.device, batches, rate, StepLog(progress.step, rate), {}, started, 0.0)
        torch.manual_seed(named_seed(setup.seed, f"{name}/{midway.steps}"))
        log = _resumed_log(setup, midway, progress.step, rate)
        return cls(setup.device, batches[len(log) :], rate, log, midway.norms, started, midway.seconds)

    def add(self, values: StepValues) -> None:
        """Log a step.

        Raises:
            NonFiniteLoss: the loss of this step, or of one before it, is not finite.
        """
        self.log.add(values.logged)
        self.term_norms.update(values.term_norms)

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps, and the terms' gradient norms of its first step.

        Raises:
            NonFiniteLoss: a loss is not finite.
        """
        return self.log.means() | {name: norm.item() for name, norm in self.term_norms.items()}

    def seconds(self) -> float:
        """Seconds that the epoch has taken so far."""
        return self.seconds_before + time.perf_counter() - self.started

    def midway(self, seconds: float) -> Midway:
        """The state of the epoch after so many seconds, gathered from all workers, so that :meth:`begin` can go on from it."""
        read, waiting = self.log.contents()
        rows, states = zip(*gathered((waiting, random_state(self.device))), strict=True)
        return Midway(seconds, self.log.names, read, list(rows), self.term_norms, list(states))


def _rate(setup: TrainingSetup, steps_an_epoch: int, progress: Progress) -> Callable[[int], float]:
    """Optimiser step → learning rate of the epoch after ``progress``."""
    if progress.decay_from:
        first = progress.rows[progress.decay_from - 1]["step"]
        return functools.partial(decay, first=first, steps_an_epoch=steps_an_epoch, rate=progress.decay_rate, train=setup.train)
    errors = [row.get(f"val_{setup.train.select_by}", 0.0) for row in progress.rows]  # a stage without validation never reads them
    return functools.partial(learning_rate, steps_an_epoch=steps_an_epoch, train=setup.train, errors=errors)


def _resumed_log(setup: TrainingSetup, midway: Midway, first_step: int, rate: Callable[[int], float]) -> StepLog:
    """The log of the steps before the interruption. Sets the random state of this worker where the checkpoint has it."""
    plan = setup.batches
    read, waiting = midway.read, midway.waiting[plan.rank % len(midway.waiting)]
    if len(midway.random) == plan.workers:
        set_random_state(midway.random[plan.rank], setup.device)
    else:  # another number of workers draws other random numbers in any case
        read, waiting = torch.cat([read, torch.stack(midway.waiting).mean(0)]), waiting[:0]
    return StepLog(first_step, rate, midway.names, read, waiting.to(setup.device))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Device type → state, on the CPU: of the CPU's generator, and of the device's where the model is on another device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of :func:`random_state`. A trial that moved to another kind of device has no state for that device's generator."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
