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
from stlab.execution.locks.owner import Holder
from stlab.storage import Store

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 15.0
_LEFT_SECONDS = 60.0  # an object that was not renewed for so long was left behind
_ASK_SECONDS = 3.0
_SETTLE_SECONDS = 2.0  # between writing and seeing whether another wrote over it


@contextlib.contextmanager
def renewed(store: Store, name: str, holder: Holder) -> Iterator[Holder | None]:
    """Hold ``name`` in a store for the block; gives who holds it instead, None where it is ``holder`` now.

    Raises:
        StorageError: the store cannot be read or written.
    """
    path = f".locks/{name}.json"
    mine = {**asdict(holder), "key": uuid.uuid4().hex}
    if (other := _holder(store, path)) is not None:
        yield other
        return
    store.write_json(path, {**mine, "renewed": 0})
    time.sleep(_SETTLE_SECONDS)
    found = _read(store, path)
    if found is not None and found["key"] != mine["key"]:
        yield _who(found)
        return
    end = threading.Event()
    thread = threading.Thread(target=_renew, args=(store, path, mine, end), name="stlab-holder", daemon=True)
    thread.start()
    try:
        yield None
    finally:
        end.set()
        thread.join()
        with contextlib.suppress(StorageError):  # it counts as left behind soon
            store.write_json(path, {})


def seen_holder(store: Store, name: str) -> Holder | None:
    """Who renewed ``name`` lately; None where nobody holds it, or not any more."""
    path = f".locks/{name}.json"
    found = _read(store, path)
    written = store.last_written(path) if found is not None else None
    if found is None or written is None or (datetime.now(UTC) - written).total_seconds() > _LEFT_SECONDS:
        return None
    return _who(found)


def _renew(store: Store, path: str, mine: dict[str, Any], end: threading.Event) -> None:
    times = 0
    while not end.wait(_RENEW_SECONDS):
        times += 1
        try:
            store.write_json(path, {**mine, "renewed": times})
        except StorageError as error:  # training tells what it means for the study
            logger.warning("%s", error)


def _holder(store: Store, path: str) -> Holder | None:
    """Who holds it at this moment. One whose death cannot be seen from here is watched for as long as a living one may be silent."""
    first = seen = _read(store, path)
    if first is None or _is_dead(_who(first)):
        return None
    logger.warning("%s may be running this study; that shows within %g s", _who(first), _LEFT_SECONDS)
    until = time.monotonic() + _LEFT_SECONDS
    while seen is not None and seen == first and time.monotonic() < until:
        time.sleep(_ASK_SECONDS)
        seen = _read(store, path)
    return None if seen is None or seen == first else _who(seen)


def _read(store: Store, path: str) -> dict[str, Any] | None:
    try:
        return store.read_json(path) or None
    except (FileNotFoundError, ValueError):
        return None


def _who(found: dict[str, Any]) -> Holder:
    return Holder(str(found["host"]), int(found["pid"]), str(found["since"]), found.get("job"))


def _is_dead(holder: Holder) -> bool:
    """Whether it was a process of this machine that is gone."""
    return holder.host == Holder.myself().host and not psutil.pid_exists(holder.pid)
