"""What changes as training goes on, as functions of the step and of the validation errors so far: resuming needs no saved schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stlab.study.spec import TrainSpec

_THRESHOLD = 1e-4  # ReduceLROnPlateau's default: a relative improvement smaller than this is none


def learning_rate(step: int, steps_an_epoch: int, train: TrainSpec, errors: Sequence[float] = ()) -> float:
    """Learning rate of optimiser step ``step`` (from 0): a linear warm-up to ``lr``, then the schedule.

    Args:
        errors: the validation error that selects, for every epoch that has ended. Only ``plateau`` reads it.
    """
    warmup, total = train.warmup_epochs * steps_an_epoch, train.max_epochs * steps_an_epoch
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "plateau":
        # The warm-up changes the rate itself, so its errors say nothing about the rate that follows.
        return plateau(errors[train.warmup_epochs :], train)
    if train.schedule == "steps":
        passed = sum(step >= epoch * steps_an_epoch for epoch in train.milestones)
        return train.lr * train.milestone_factor**passed
    floor = min(train.min_lr, train.lr)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (train.lr - floor) * (1 + math.cos(math.pi * done)) / 2


def decay(step: int, first: int, steps_an_epoch: int, rate: float, train: TrainSpec) -> float:
    """Learning rate of optimiser step ``step`` of a decay that began with step ``first`` at ``rate``; its last step has ``min_lr``."""
    floor, last = min(train.min_lr, rate), train.decay_epochs * steps_an_epoch - 1
    return floor + (rate - floor) * max(0.0, 1 - (step - first) / last) if last > 0 else floor


def plateau(errors: Sequence[float], train: TrainSpec) -> float:
    """Learning rate after epochs with these errors, by the rule of ``torch.optim.lr_scheduler.ReduceLROnPlateau``.

    More than ``plateau_patience`` epochs in a row that are no better than the best before them multiply the rate by
    ``plateau_factor``, not below ``min_lr``, and the count begins anew.
    """
    rate, floor = train.lr, min(train.min_lr, train.lr)
    best, waited = math.inf, 0
    for error in errors:
        if error < best * (1 - _THRESHOLD):
            best, waited = error, 0
        else:
            waited += 1
        if waited > train.plateau_patience:
            rate, waited = max(rate * train.plateau_factor, floor), 0
    return rate


def covered_horizon(step: int, steps_an_epoch: int, train: TrainSpec, horizon: int) -> int:
    """How many steps of the horizon the loss covers in optimiser step ``step`` (from 0): all of them without a curriculum."""
    if train.curriculum_epochs is None:
        return horizon
    return min(horizon, 1 + math.floor(step / (train.curriculum_epochs * steps_an_epoch)))


def curriculum_end(train: TrainSpec, horizon: int) -> int:
    """The number of epochs that have to end before the loss covers the whole horizon throughout an epoch; 0 without a curriculum."""
    return 0 if train.curriculum_epochs is None else math.ceil(train.curriculum_epochs * (horizon - 1))
