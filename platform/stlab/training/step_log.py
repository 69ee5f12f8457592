"""What the steps of an epoch said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stlab.errors import TrialFailed
from stlab.training.workers import world_size

CHECK_EVERY = 50  # steps between looks at the losses: each look waits for the device


class NonFiniteLoss(TrialFailed):
    """The loss became infinite or NaN; says at which step and learning rate.

    Args:
        step: the first that was broken, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StepLog:
    """What the steps of an epoch said, read from the device only now and then.

    Args:
        names: of the columns of ``read`` and ``waiting``, where an epoch goes on.
        read: (steps, columns) means over the workers, on the CPU.
        waiting: (steps, columns) this worker's own, on its device.

    Raises:
        NonFiniteLoss: from :meth:`add` or :meth:`means`, on every worker alike.
    """

    def __init__(
        self,
        first_step: int,
        learning_rate: Callable[[int], float],
        names: Sequence[str] = (),
        read: Tensor | None = None,
        waiting: Tensor | None = None,
    ) -> None:
        self.first_step = first_step
        self.learning_rate = learning_rate
        self.names = list(names)
        self.read: list[Tensor] = [] if read is None or not len(read) else [read]
        self.waiting: list[Tensor] = [] if waiting is None else list(waiting)

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(rows) for rows in self.read)

    def add(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.waiting.append(torch.stack([value.float() for value in values.values()]))
        if len(self.waiting) == CHECK_EVERY:
            self._look()

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps."""
        self._look()
        return dict(zip(self.names, torch.cat(self.read).double().mean(0).tolist(), strict=True))

    def contents(self) -> tuple[Tensor, Tensor]:
        """``read`` and this worker's ``waiting``, both on the CPU: what another log needs to go on as this one would."""
        none = torch.zeros(0, len(self.names))
        return (torch.cat(self.read) if self.read else none), (torch.stack(self.waiting).cpu() if self.waiting else none)

    def _look(self) -> None:
        if not self.waiting:
            return
        rows = torch.stack(self.waiting)
        if (world := world_size()) > 1:
            dist.all_reduce(rows)
            rows /= world
        bad = (~rows[:, 0].isfinite()).nonzero()
        if len(bad):
            step = self.first_step + len(self) - len(rows) + int(bad[0])
            value = rows[int(bad[0]), 0].item()
            raise NonFiniteLoss(f"the loss is {value} at step {step + 1}, learning rate {self.learning_rate(step):.3g}", step + 1)
        self.read.append(rows.cpu())
        self.waiting = []
