"""Locks of studies and trials: real processes hold them, and lose them only by ending or being killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stlab.errors import StorageError
from stlab.execution.locks.file_lock import StudyRunning, lock, study_held, study_holder
from stlab.execution.locks.owner import Holder
from stlab.storage import Store

HOLD = """\
import sys, time
from stlab.execution.locks.owner import Holder
from stlab.execution.locks.file_lock import lock
from stlab.storage import Store
with lock(Store(sys.argv[1]), sys.argv[2], Holder.myself()) as other:
    print("held by another" if other else "mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the study `mine`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "study-mine"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_who_holds_a_study_is_said_and_a_kill_frees_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    store = Store(tmp_path)
    with pytest.raises(StudyRunning, match=f"the study mine is being run already: process {other.pid} on ") as said, \
            study_held(store, "mine", Holder.myself()):
        raise AssertionError
    assert "since 20" in str(said.value)
    with study_held(store, "another", Holder.myself()):
        pass
    assert (study_holder(store, "mine") or Holder.myself()).pid == other.pid
    assert study_holder(store, "another") is None
    other.send_signal(signal.SIGKILL)
    other.wait(timeout=30)
    assert study_holder(store, "mine") is None, "whatever it left written"
    with study_held(store, "mine", Holder.myself()), pytest.raises(StudyRunning), study_held(store, "mine", Holder.myself()):
        raise AssertionError
    with lock(store, "study-mine", Holder.myself()) as held_by:
        assert held_by is None, "free again after the block"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*\.locks/trial-x"), lock(Store(tmp_path), "trial-x", Holder.myself()):
        raise AssertionError


def test_a_job_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "tiny-1"}}')
    assert "job tiny-1" in str(Holder.myself())
