"""Names on a cluster that one process holds at a time: a lock where the storage has none. A holder's death frees its names."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import ray

from stlab.execution.locks.file_lock import StudyRunning, study_lock
from stlab.execution.locks.owner import Holder
from stlab.execution.ray.cluster import ON_THE_HEAD
from stlab.storage import Store

_NAMESPACE = "stlab"
_PATIENCE_SECONDS = 20.0  # until the names of a driver that was killed are free again
_ASK_SECONDS = 10.0


class _Name:
    """Alive as long as the process that made it."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def holder(self) -> Holder:
        return self._holder


@contextlib.contextmanager
def name_held(store: Store, name: str, holder: Holder, *, patience: float = 0.0) -> Iterator[Holder | None]:
    """Hold a name of this storage for the block; gives who holds it instead, None where it is ``holder`` now.

    Args:
        patience: seconds to wait for a name that is held.
    """
    full = f"{hashlib.sha256(store.location.encode()).hexdigest()[:12]}/{name}"
    until = time.monotonic() + patience
    while (taken := _take(full, holder)) is None or isinstance(taken, Holder):
        if isinstance(taken, Holder) and time.monotonic() >= until:
            yield taken
            return
        time.sleep(0.5)
    try:
        yield None
    finally:
        ray.kill(taken)


def _take(name: str, holder: Holder) -> Any:
    """The actor that bears the name now; who has it already; None where that is just changing."""
    # DEFAULT: a Train worker's actors go into its own placement group otherwise, which has no room for it, or dies with the worker group.
    options = {"name": name, "namespace": _NAMESPACE, "num_cpus": 0, "resources": ON_THE_HEAD, "scheduling_strategy": "DEFAULT"}
    try:
        mine: Any = ray.remote(_Name).options(**options).remote(holder)
        ray.get(mine.holder.remote())
    except ValueError as error:  # the name is taken
        if "Cannot schedule" in str(error):
            raise
        try:
            bearer: Any = ray.get_actor(name, namespace=_NAMESPACE)
            other: Any = ray.get(bearer.holder.remote(), timeout=_ASK_SECONDS)
        except (ValueError, ray.exceptions.RayActorError):
            return None
        except ray.exceptions.GetTimeoutError:
            return Holder("a node that does not answer", 0, "some time")
        return other
    return mine


@contextlib.contextmanager
def study_held(store: Store, study: str, holder: Holder) -> Iterator[None]:
    """Hold a study for the block, on this cluster. A driver that has just been killed is waited for.

    Raises:
        StudyRunning: another driver does.
    """
    with name_held(store, study_lock(study), holder, patience=_PATIENCE_SECONDS) as other:
        if other is not None:
            raise StudyRunning(study, other)
        yield
