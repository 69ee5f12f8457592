"""Where several workers train a trial: how many there are, what they agree on, and what one of them sees of another's end."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

# As gloo and NCCL say it where PyTorch raises no DistError.
_SAID = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

_size = 1  # of the group that this process was last seen in

Value = TypeVar("Value")


class PeerLost(Exception):
    """Another worker of the group is gone. No error of the trial's: whoever started the workers knows why that one went."""


class FailedHere(Exception):
    """The trial failed on one of several workers, and that is on record. The others wait for it, so all have to start anew."""


def world_size() -> int:
    """Workers of this process's group; 1 where it has none.

    Raises:
        PeerLost: it had one of several, which has been taken apart: what is left of it must not go on as if it were alone.
    """
    global _size
    if dist.is_available() and dist.is_initialized():
        _size = dist.get_world_size()
    elif _size > 1:
        raise PeerLost("the group of workers was taken apart")
    return _size


def rank_here() -> int:
    """Number of this worker in its group; 0 where it has none.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    return dist.get_rank() if world_size() > 1 else 0


def agreed(value: Value) -> Value:
    """What the first worker has, on all of them. To be called by all.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """What each worker has, by rank. To be called by all.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    found = [value] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error says that another worker could not be reached, or came of the group's end: whoever ends it takes it apart first."""
    if isinstance(error, (PeerLost, dist.DistError)) or not dist.is_initialized():
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
