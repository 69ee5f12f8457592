"""The workers that train a trial together: their number, values they agree on, and which errors show another worker's end."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from stlab.errors import PeerLost

# The words of gloo and NCCL where PyTorch raises no DistError.
_SAID = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")

_size = 1  # size of the group that this process was in when last asked

Value = TypeVar("Value")


def world_size() -> int:
    """Number of workers in this process's group; 1 if it has none.

    Raises:
        PeerLost: it had a group of several that has been destroyed. This worker must not go on as if it were alone.
    """
    global _size
    if dist.is_available() and dist.is_initialized():
        _size = dist.get_world_size()
    elif _size > 1:
        raise PeerLost("the group of workers was taken apart")
    return _size


def rank_here() -> int:
    """Number of this worker in its group, from 0; 0 if it has no group.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    return dist.get_rank() if world_size() > 1 else 0


def agreed(value: Value) -> Value:
    """The first worker's value, on all of them. All workers have to call this.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """Every worker's value, by rank. All workers have to call this.

    Raises:
        PeerLost: as :func:`world_size`.
    """
    found = [value] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error means that another worker could not be reached or that the group was ended, which destroys it first."""
    if isinstance(error, (PeerLost, dist.DistError)) or not dist.is_initialized():
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
