"""Locks of the file system, and the lock of a study on any storage.

On a local or shared folder the file system keeps the lock, and the kernel lifts it when its owner dies, however that happens. An
object store has no locks: a named actor on the Ray cluster takes their place (``stlab.execution.ray.actor_lock``), and for a study
also a lease, which is an object that its owner renews (``stlab.execution.locks.lease``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from stlab.errors import StorageError, UserError
from stlab.execution.locks.lease import lease, lease_owner
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # file systems without locks answer so; the last is Lustre's
_FOLDER = ".locks"  # beside the studies: their folders are moved when a study is changed


class StudyRunning(UserError):
    """Another driver runs the study; the message says which."""

    def __init__(self, study: str, owner: LockOwner) -> None:
        super().__init__(
            f"the study {study} is being run already: {owner}. Wait for its end or stop it; or give this one another name "
            "(--set name=…): trials they share are trained once."
        )


@contextlib.contextmanager
def file_lock(store: Store, name: str, owner: LockOwner) -> Iterator[LockOwner | None]:
    """Lock ``name`` in a local store for the block; yields None, or the other owner where somebody else has the lock.

    On a file system without locks a warning is logged and the block is entered.
    """
    path = Path(store.path(f"{_FOLDER}/{name}"))
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield _owner_in(file.read())
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _unwritable(path, error) from error
            logger.warning("%s: this file system has no locks (%s); make sure that no two runs share a study", path, error)
            yield None
            return
        _overwrite(file, path, json.dumps(asdict(owner)))
        yield None
        with contextlib.suppress(StorageError):  # the lock is what counts
            _overwrite(file, path, "")


def _opened(path: Path) -> TextIO:
    """A lock's file. It is never deleted: a process that had opened it before would then have a lock that nobody else sees."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise _unwritable(path, error) from error


def _overwrite(file: TextIO, path: Path, text: str) -> None:
    try:
        file.truncate(0)
        file.write(text)
        file.flush()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write {path}: {error.strerror}. Make room there, or give a --storage that can be written.")


def _owner_in(text: str) -> LockOwner:
    try:
        return LockOwner(**json.loads(text))
    except (ValueError, TypeError):  # the owner has taken the lock and has not written its name yet
        return LockOwner("?", 0, "just now")


def study_lock_name(study: str) -> str:
    return f"study-{study}"


def trial_lock_name(trial_id: str) -> str:
    return f"trial-{trial_id}"


@contextlib.contextmanager
def study_lock(store: Store, study: str, owner: LockOwner) -> Iterator[None]:
    """Lock a study for the block: by a file lock on a local store, by a lease on an object store.

    Raises:
        StudyRunning: another process has the lock.
        StorageError: the store cannot be read or written.
    """
    acquire = file_lock if store.is_local else lease
    with acquire(store, study_lock_name(study), owner) as other:
        if other is not None:
            raise StudyRunning(study, other)
        yield


def study_owner(store: Store, study: str) -> LockOwner | None:
    """The process that runs a study at this moment, as far as its storage tells; None where nobody runs it."""
    if not store.is_local:
        return lease_owner(store, study_lock_name(study))
    path = Path(store.path(f"{_FOLDER}/{study_lock_name(study)}"))
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _owner_in(file.read())
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise _unwritable(path, error) from error
                text = file.read()  # nothing else shows the owner here; the file is empty where nobody could lock it
                return _owner_in(text) if text else None
    except FileNotFoundError:
        pass
    return None
