"""A lease on an object store, which has no locks: the driver of a study renews an object for as long as it runs.

Drivers on one Ray cluster keep each other out at once, by a named actor there (``stlab.execution.ray.actor_lock``). The lease keeps
out drivers on other clusters, within the seconds that two writers need to see each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import psutil

from stlab.errors import StorageError
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 15.0
_EXPIRY_SECONDS = 60.0  # a lease that was not renewed for so long has expired
_POLL_SECONDS = 3.0
_SETTLE_SECONDS = 2.0  # between writing a lease and seeing whether another driver wrote over it


@contextlib.contextmanager
def lease(store: Store, name: str, owner: LockOwner) -> Iterator[LockOwner | None]:
    """Lease ``name`` in a store for the block; yields None, or the other owner where somebody else has the lease.

    Raises:
        StorageError: the store cannot be read or written.
    """
    path = f".locks/{name}.json"
    mine = {**asdict(owner), "key": uuid.uuid4().hex}
    if (other := _current_owner(store, path)) is not None:
        yield other
        return
    store.write_json(path, {**mine, "renewed": 0})
    time.sleep(_SETTLE_SECONDS)
    found = _read(store, path)
    if found is not None and found["key"] != mine["key"]:
        yield _owner_in(found)
        return
    end = threading.Event()
    thread = threading.Thread(target=_renew, args=(store, path, mine, end), name="stlab-lease", daemon=True)
    thread.start()
    try:
        yield None
    finally:
        end.set()
        thread.join()
        with contextlib.suppress(StorageError):  # the lease then expires by itself
            store.write_json(path, {})


def lease_owner(store: Store, name: str) -> LockOwner | None:
    """The owner of a lease that was renewed lately; None where there is none, or where it has expired."""
    path = f".locks/{name}.json"
    found = _read(store, path)
    written = store.last_written(path) if found is not None else None
    if found is None or written is None or (datetime.now(UTC) - written).total_seconds() > _EXPIRY_SECONDS:
        return None
    return _owner_in(found)


def _renew(store: Store, path: str, mine: dict[str, Any], end: threading.Event) -> None:
    times = 0
    while not end.wait(_RENEW_SECONDS):
        times += 1
        try:
            store.write_json(path, {**mine, "renewed": times})
        except StorageError as error:  # a worker that cannot write says what that means for the study
            logger.warning("%s", error)


def _current_owner(store: Store, path: str) -> LockOwner | None:
    """The owner of a lease that is in force; None where there is none.

    An owner on another machine may have died unseen. Its lease is therefore watched until it is renewed, which shows that the owner
    lives, or until it expires.
    """
    first = seen = _read(store, path)
    if first is None or _is_dead(_owner_in(first)):
        return None
    logger.warning("%s may be running this study; that shows within %g s", _owner_in(first), _EXPIRY_SECONDS)
    until = time.monotonic() + _EXPIRY_SECONDS
    while seen is not None and seen == first and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        seen = _read(store, path)
    return None if seen is None or seen == first else _owner_in(seen)


def _read(store: Store, path: str) -> dict[str, Any] | None:
    try:
        return store.read_json(path) or None
    except (FileNotFoundError, ValueError):
        return None


def _owner_in(found: dict[str, Any]) -> LockOwner:
    return LockOwner(str(found["host"]), int(found["pid"]), str(found["since"]), found.get("job"))


def _is_dead(owner: LockOwner) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    return owner.host == LockOwner.this_process().host and not psutil.pid_exists(owner.pid)
