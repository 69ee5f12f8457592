"""Between two steps: whether to write a checkpoint and whether to stop, on all workers of a trial alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from stlab.training.workers import world_size

_ASK_SECONDS = 1.0  # about so often several workers ask each other
_ASK_STEPS = 50  # and at the latest after so many steps


class TrialStopped(Exception):
    """The trial was asked to stop, and has written a checkpoint to go on from. Not an error."""


class Due(NamedTuple):
    """What is to be done before the next step."""

    save: bool
    stop: bool


class Pauses:
    """Asked after every step; one worker looks at its own clock and notice, several ask each other once a second.

    Args:
        seconds: between checkpoints within an epoch; 0: none.
        stop: whether the trial is to stop, as this worker knows. One that knows stops all.
    """

    def __init__(self, seconds: float, stop: Callable[[], bool] | None, device: torch.device) -> None:
        self.seconds, self.stop, self.device = seconds, stop, device
        self.world = world_size()
        self.rank = dist.get_rank() if self.world > 1 else 0
        self.every, self.steps = 1, 0
        self.asked_at = self.saved_at = time.monotonic()

    def saved(self) -> None:
        """A checkpoint was written: the time until the next begins."""
        self.saved_at = time.monotonic()

    def is_time(self) -> bool:
        """Whether the last checkpoint is old enough, by this worker's clock."""
        return time.monotonic() - self.saved_at >= self.seconds

    def due(self, now: bool = False) -> Due:
        """To be called by all workers after the same steps. ``now``: ask each other whenever the last time was."""
        save, stop = self.seconds > 0 and self.is_time(), self.stop is not None and self.stop()
        if self.world == 1:
            return Due(save, stop)
        self.steps += 1
        if self.steps < self.every and not now:
            return Due(False, False)
        a_step = (time.monotonic() - self.asked_at) / self.steps
        # The first worker writes the checkpoints, so its clock counts. Steps until the next question follow from what all heard.
        told = torch.tensor([save and self.rank == 0, stop, a_step], dtype=torch.float32, device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        anyone_saves, anyone_stops, slowest = told.tolist()
        self.every = max(1, min(_ASK_STEPS, int(_ASK_SECONDS / max(slowest, 1e-6))))
        self.steps, self.asked_at = 0, time.monotonic()
        return Due(bool(anyone_saves), bool(anyone_stops))
