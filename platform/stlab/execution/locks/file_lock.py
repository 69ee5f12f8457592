"""Who holds what: a study is run by one driver at a time, a trial trained by one worker group.

On a local or shared folder a lock of the file system says so, which the kernel lifts when its holder dies, however it dies. An
object store has no locks: there a name on the Ray cluster does it (``stlab.execution.ray.actor_lock``), and for a study an object that is
renewed (``stlab.execution.locks.lease``).
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
from stlab.execution.locks.lease import renewed, seen_holder
from stlab.execution.locks.owner import Holder
from stlab.storage import Store

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # as file systems say it: the last is Lustre's
_FOLDER = ".locks"  # beside the studies: their folders are moved when a study is changed


class StudyRunning(UserError):
    """The study is being run by another driver; says which."""

    def __init__(self, study: str, holder: Holder) -> None:
        super().__init__(
            f"the study {study} is being run already: {holder}. Wait for its end or stop it; or give this one another name "
            "(--set name=…): trials they share are trained once."
        )


@contextlib.contextmanager
def lock(store: Store, name: str, holder: Holder) -> Iterator[Holder | None]:
    """Hold the lock ``name`` of a local store for the block; gives who holds it instead, None where it is ``holder`` now.

    A file system without locks is said in the log, and the block is entered.
    """
    path = Path(store.path(f"{_FOLDER}/{name}"))
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield _read(file.read())
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _unwritable(path, error) from error
            logger.warning("%s: this file system has no locks (%s); make sure that no two runs share a study", path, error)
            yield None
            return
        _say(file, path, json.dumps(asdict(holder)))
        yield None
        with contextlib.suppress(StorageError):  # the lock is what counts
            _say(file, path, "")


def _opened(path: Path) -> TextIO:
    """A lock's file. It is never deleted: whoever opened it before would hold a lock that nobody else sees."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise _unwritable(path, error) from error


def _say(file: TextIO, path: Path, text: str) -> None:
    try:
        file.truncate(0)
        file.write(text)
        file.flush()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write {path}: {error.strerror}. Make room there, or give a --storage that can be written.")


def _read(text: str) -> Holder:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # between taking the lock and saying so
        return Holder("?", 0, "just now")


def study_lock(study: str) -> str:
    return f"study-{study}"


def trial_lock(trial_id: str) -> str:
    return f"trial-{trial_id}"


@contextlib.contextmanager
def study_held(store: Store, study: str, holder: Holder) -> Iterator[None]:
    """Hold a study for the block.

    Raises:
        StudyRunning: another process does.
        StorageError: the store cannot be read or written.
    """
    hold = lock if store.is_local else renewed
    with hold(store, study_lock(study), holder) as other:
        if other is not None:
            raise StudyRunning(study, other)
        yield


def study_holder(store: Store, study: str) -> Holder | None:
    """Who runs a study at this moment, as far as its storage tells; None: nobody does."""
    if not store.is_local:
        return seen_holder(store, study_lock(study))
    path = Path(store.path(f"{_FOLDER}/{study_lock(study)}"))
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file.read())
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise _unwritable(path, error) from error
                said = file.read()  # all there is to go by; nothing where nobody could lock it
                return _read(said) if said else None
    except FileNotFoundError:
        pass
    return None
