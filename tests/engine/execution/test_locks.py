"""Locks of studies and trials: real processes own them, and lose them only by ending or being killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stlab.errors import StorageError
from stlab.execution.locks.file_lock import StudyRunning, file_lock, study_lock, study_owner
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store

HOLD = """\
import sys, time
from stlab.execution.locks.owner import LockOwner
from stlab.execution.locks.file_lock import file_lock
from stlab.storage import Store
with file_lock(Store(sys.argv[1]), sys.argv[2], LockOwner.this_process()) as other:
    print("another has it" if other else "mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of the study `mine`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "study-mine"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_the_owner_of_a_study_is_named_and_a_kill_frees_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    store = Store(tmp_path)
    with pytest.raises(StudyRunning, match=f"the study mine is being run already: process {other.pid} on ") as said, \
            study_lock(store, "mine", LockOwner.this_process()):
        raise AssertionError
    assert "since 20" in str(said.value)
    with study_lock(store, "another", LockOwner.this_process()):
        pass
    assert (study_owner(store, "mine") or LockOwner.this_process()).pid == other.pid
    assert study_owner(store, "another") is None
    other.send_signal(signal.SIGKILL)
    other.wait(timeout=30)
    assert study_owner(store, "mine") is None, "whatever it left written"
    me = LockOwner.this_process()
    with study_lock(store, "mine", me), pytest.raises(StudyRunning), study_lock(store, "mine", me):
        raise AssertionError
    with file_lock(store, "study-mine", LockOwner.this_process()) as other_owner:
        assert other_owner is None, "free again after the block"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file")
    lock = file_lock(Store(tmp_path), "trial-x", LockOwner.this_process())
    with pytest.raises(StorageError, match=r"cannot write .*\.locks/trial-x"), lock:
        raise AssertionError


def test_a_job_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "tiny-1"}}')
    assert "job tiny-1" in str(LockOwner.this_process())
