"""Where several workers train a trial: what one of them meets, and what the others see of it."""

from __future__ import annotations

import torch.distributed as dist

# As gloo and NCCL say it where PyTorch raises no DistError.
_SAID = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class PeerLost(Exception):
    """Another worker of the group is gone. No error of the trial's: whoever started the workers knows why that one went."""


class FailedHere(Exception):
    """The trial failed on one of several workers, and that is on record. The others wait for it, so all have to start anew."""


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error says that another worker could not be reached, or came of the group's end: whoever ends it takes it apart first."""
    if isinstance(error, dist.DistError) or not dist.is_initialized():
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
