"""A study on an object store is run by one driver at a time, on whatever machines. A real server; real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stlab.execution.locks import lease
from stlab.execution.locks.file_lock import StudyRunning, study_lock, study_owner
from stlab.execution.locks.owner import LockOwner
from stlab.storage import Store

HOLD = """\
import sys, time
from stlab.execution.locks import file_lock, lease, owner
from stlab.storage import Store

lease._RENEW_SECONDS, lease._SETTLE_SECONDS = 0.5, 0.1
if sys.argv[2] != "here":
    owner.socket.gethostname = lambda: sys.argv[2]
with file_lock.study_lock(Store(sys.argv[1]), "mine", owner.LockOwner.this_process()):
    print("mine", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def store(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.5)
    monkeypatch.setattr(lease, "_EXPIRY_SECONDS", 6.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.5)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.1)
    return Store(f"s3://{s3.make_bucket('held')}/runs")


@pytest.fixture
def other(request: pytest.FixtureRequest, store: Store) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lease of the study `mine`, on a machine of the name asked for."""
    command = [sys.executable, "-c", HOLD, store.location, request.param]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("other", ["here", "elsewhere"], indirect=True)
def test_a_living_driver_is_named_and_a_dead_one_is_followed(store: Store, other: subprocess.Popen[str]) -> None:
    for _ in range(2):
        with pytest.raises(StudyRunning, match=f"the study mine is being run already: process {other.pid} on "), \
                study_lock(store, "mine", LockOwner.this_process()):
            raise AssertionError
    with study_lock(store, "another", LockOwner.this_process()):
        pass
    assert (study_owner(store, "mine") or LockOwner.this_process()).pid == other.pid
    assert study_owner(store, "another") is None
    other.send_signal(signal.SIGKILL)
    other.wait(timeout=30)
    me = LockOwner.this_process()
    with study_lock(store, "mine", me), pytest.raises(StudyRunning), study_lock(store, "mine", me):
        raise AssertionError
    assert store.read_json(".locks/study-mine.json") == {}, "free again after the block"
    assert study_owner(store, "mine") is None


def test_of_two_that_begin_at_once_the_last_to_write_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        store.write_json(".locks/study-mine.json", {"host": "elsewhere", "pid": 7, "since": "now", "job": None, "key": "k", "renewed": 0})

    monkeypatch.setattr(lease.time, "sleep", wait)
    with pytest.raises(StudyRunning, match="process 7 on elsewhere"), study_lock(store, "mine", LockOwner.this_process()):
        raise AssertionError
