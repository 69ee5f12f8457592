"""Actor locks: a named actor on the cluster is a lock where the storage has none. It ends with the process that made it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import ray

from stlab.execution.locks.file_lock import StudyRunning, study_lock_name
from stlab.execution.locks.owner import LockOwner
from stlab.execution.ray.cluster import ON_THE_HEAD
from stlab.storage import Store

_NAMESPACE = "stlab"
_PATIENCE_SECONDS = 20.0  # until the locks of a driver that was killed are free again
_ANSWER_SECONDS = 10.0


class _LockActor:
    """Lives as long as the process that made it."""

    def __init__(self, owner: LockOwner) -> None:
        self._owner = owner

    def owner(self) -> LockOwner:
        return self._owner


@contextlib.contextmanager
def actor_lock(store: Store, name: str, owner: LockOwner, *, patience: float = 0.0) -> Iterator[LockOwner | None]:
    """Lock ``name`` of this storage for the block; yields None, or the other owner where somebody else has the lock.

    Args:
        patience: seconds to wait for a lock that somebody else has.
    """
    full = f"{hashlib.sha256(store.location.encode()).hexdigest()[:12]}/{name}"
    until = time.monotonic() + patience
    while (taken := _take(full, owner)) is None or isinstance(taken, LockOwner):
        if isinstance(taken, LockOwner) and time.monotonic() >= until:
            yield taken
            return
        time.sleep(0.5)
    try:
        yield None
    finally:
        ray.kill(taken)


def _take(name: str, owner: LockOwner) -> Any:
    """The actor that has the name now; the other owner where the name is taken; None where the name is just changing hands."""
    # DEFAULT: a Train worker's actors go into its own placement group otherwise, which has no room for it, or dies with the worker group.
    options = {"name": name, "namespace": _NAMESPACE, "num_cpus": 0, "resources": ON_THE_HEAD, "scheduling_strategy": "DEFAULT"}
    try:
        mine: Any = ray.remote(_LockActor).options(**options).remote(owner)
        ray.get(mine.owner.remote())
    except ValueError as error:  # the name is taken
        if "Cannot schedule" in str(error):
            raise
        try:
            theirs: Any = ray.get_actor(name, namespace=_NAMESPACE)
            other: Any = ray.get(theirs.owner.remote(), timeout=_ANSWER_SECONDS)
        except (ValueError, ray.exceptions.RayActorError):
            return None
        except ray.exceptions.GetTimeoutError:
            return LockOwner("a node that does not answer", 0, "some time")
        return other
    return mine


@contextlib.contextmanager
def study_actor_lock(store: Store, study: str, owner: LockOwner) -> Iterator[None]:
    """Lock a study on this cluster for the block. A driver that has just been killed is given time to lose its lock.

    Raises:
        StudyRunning: another driver has the lock.
    """
    with actor_lock(store, study_lock_name(study), owner, patience=_PATIENCE_SECONDS) as other:
        if other is not None:
            raise StudyRunning(study, other)
        yield
