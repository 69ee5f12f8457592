"""A storage that is read-only, full, slow or away for a while: said before training where that can be known, and never a wrong result."""

from __future__ import annotations

import http.server
import itertools
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stlab.errors import StorageError
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.training import run_trial
from tests.support.disks import disk, fill, mount
from tests.support.trials import assert_same_numbers

_number = itertools.count()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", 16) as folder:
        yield folder


def test_a_read_only_disk_is_said_before_anything_is_done(small_disk: Path) -> None:
    Store(small_disk / "runs").make()
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(StorageError, match=r"--storage .*/runs: cannot be written. Read-only file system. It is read-only. Give another"):
        Store(small_disk / "runs").make()


def test_a_folder_that_nobody_may_write_is_said(tmp_path: Path) -> None:
    subprocess.run(["chattr", "+i", str(tmp_path)], capture_output=True, check=False)
    try:
        (tmp_path / "x").touch()
    except OSError:
        with pytest.raises(StorageError, match="cannot be written"):
            Store(tmp_path).make()
    else:
        pytest.skip("folders cannot be made immutable here")
    finally:
        subprocess.run(["chattr", "-i", str(tmp_path)], capture_output=True, check=False)


def test_a_full_disk_is_said_before_anything_is_done(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StorageError, match=r"The disk is full\. Free space there"):
        Store(small_disk / "runs").make()


def test_a_disk_that_fills_up_ends_the_trial_where_it_goes_on_once_there_is_room(small_disk: Path, make_trial: Callable[..., Any]) -> None:
    trial = make_trial(max_epochs=6)
    undisturbed = TrialDirectory(Store(small_disk.parent / "undisturbed"), "a")
    assert run_trial(trial, {}, undisturbed, test=True) is TrialStatus.FINISHED
    directory = TrialDirectory(Store(small_disk / "runs"), "a")
    taken: list[Path] = []

    def at_the_third_epoch(event: Any) -> None:
        if not taken and event["kind"] == "epochs" and event["rows"][-1]["epoch"] == 3:
            taken.append(fill(small_disk))

    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device. The disk is full. Free space there; .*same command"):
        run_trial(trial, {}, directory, test=True, report=at_the_third_epoch)
    assert directory.status() is TrialStatus.STARTED, "neither finished nor failed"
    assert not list((small_disk / "runs").rglob("*.tmp"))
    taken[0].unlink()
    told: list[list[int]] = []
    note = lambda event: told.append([row["epoch"] for row in event.get("rows", ())])  # noqa: E731
    assert run_trial(trial, {}, directory, test=True, report=note) is TrialStatus.FINISHED
    assert [epochs for epochs in told if epochs] == [[1, 2], [3], [4], [5], [6]], "from its checkpoint, which is of the second epoch"
    assert_same_numbers(directory, undisturbed, notes=False)


class SlowStore(Store):
    """Every write takes a while longer, and is written down: the file, when it began and when it was done."""

    seconds = 0.03

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.writes: list[tuple[str, float, float]] = []

    def write(self, relative: str, content: bytes) -> None:
        begun = time.monotonic()
        time.sleep(self.seconds)
        super().write(relative, content)
        self.writes.append((relative, begun, time.monotonic()))

    def checkpoints(self) -> list[tuple[float, float]]:
        """When the writing of each began, and when it was done."""
        written: dict[str, list[float]] = {}
        for relative, begun, done in self.writes:
            folder, _, file = relative.rpartition("/")
            if folder.rpartition("/")[0].endswith("/checkpoint"):
                written.setdefault(folder, []).extend([begun, done])
                assert file != "state.json" or len(written[folder]) in (8, 10), "four files, or five within an epoch; that one last"
        return [(times[0], times[-1]) for times in written.values()]


@pytest.mark.slow
def test_training_waits_for_nothing_but_its_checkpoints(tmp_path: Path, make_trial: Callable[..., Any]) -> None:
    store = SlowStore(tmp_path)
    trial = make_trial(max_epochs=8, checkpoint_seconds=1000)
    written: list[list[str]] = []

    def note(event: Any) -> None:
        written.append([relative for relative, _, _ in store.writes])

    assert run_trial(trial, {}, TrialDirectory(store, "a"), test=True, report=note) is TrialStatus.FINISHED
    assert written == [["trials/a/trial.json"]] * 8, "no write between the epochs, where no checkpoint is due"
    assert len(store.checkpoints()) == 1, "of the end"


@pytest.mark.slow
def test_on_a_slow_store_checkpoints_are_no_more_often_than_asked(tmp_path: Path, make_trial: Callable[..., Any]) -> None:
    """The time that writing one takes does not count: a store that is slower than asked for would get no training done."""
    often = SlowStore(tmp_path)
    trial = make_trial(max_epochs=6, checkpoint_seconds=0.05)
    assert run_trial(trial, {}, TrialDirectory(often, "b"), test=True) is TrialStatus.FINISHED
    *checkpoints, _ = often.checkpoints()  # the last is of the end, and written in any case
    pauses = [begun - done for (_, done), (begun, _) in itertools.pairwise(checkpoints)]
    assert pauses, "too fast to need two: more epochs are needed"
    assert min(pauses) >= 0.05


_OF_A_CONNECTION = ("host", "connection", "transfer-encoding", "expect", "content-length")


class _Flaky(http.server.BaseHTTPRequestHandler):
    """Passes requests on to a server, or does what the test says instead."""

    protocol_version = "HTTP/1.1"
    target = ""
    fault: Callable[[http.server.BaseHTTPRequestHandler], bool] = staticmethod(lambda request: False)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _pass(self) -> None:
        body = self._body()
        if type(self).fault(self):
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_A_CONNECTION}
        data = body if self.command in ("PUT", "POST") else None
        call = urllib.request.Request(self.target + self.path, data=data, method=self.command, headers=headers)
        try:
            answer = urllib.request.urlopen(call, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def flaky(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Flaky]]:
    """S3 behind a door that the test can close; ``fault`` is set by the test and says whether it answered itself."""

    class Handler(_Flaky):
        target = s3.endpoint

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield Handler
    server.shutdown()
    server.server_close()


def _answer(status: int) -> Callable[[http.server.BaseHTTPRequestHandler], bool]:
    def fault(request: http.server.BaseHTTPRequestHandler) -> bool:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    return fault


def _reset(request: http.server.BaseHTTPRequestHandler) -> bool:
    request.close_connection = True
    request.connection.close()
    return True


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_answer(500), id="500", marks=pytest.mark.slow),
        pytest.param(_answer(503), id="503"),
        pytest.param(_reset, id="reset", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_is_away_for_seconds_is_asked_again(flaky: Any, s3: Any, fault: Any) -> None:
    store = Store(f"s3://{s3.make_bucket(f'flaky-{next(_number)}')}/runs")
    store.write("before", b"1")
    until = time.monotonic() + 3
    faults: list[str] = []

    def for_a_while(request: Any) -> bool:
        if time.monotonic() > until:
            return False
        faults.append(request.command)
        return bool(fault(request))

    flaky.fault = staticmethod(for_a_while)
    store.write("during", b"2")
    assert len(faults) > 1
    assert store.read("during") == b"2"
    assert store.names("") == ["before", "during"]


def test_a_write_that_is_refused_leaves_nothing(flaky: Any, s3: Any) -> None:
    store = Store(f"s3://{s3.make_bucket(f'flaky-{next(_number)}')}/runs")
    store.write("other", b"")

    def refuse(request: Any) -> bool:
        return request.command in ("PUT", "POST") and bool(_answer(403)(request))

    flaky.fault = staticmethod(refuse)
    with pytest.raises(StorageError, match=r"--storage s3://flaky.*: cannot be written. .*These credentials may not do that"):
        store.make()
    for content in (b"small", os.urandom(12 << 20)):  # in one request, and in parts
        with pytest.raises(StorageError, match=r"cannot write s3://flaky-\d/runs/trials/a/result.json: .*may not do that"):
            store.write("trials/a/result.json", content)
    flaky.fault = staticmethod(lambda request: False)
    assert TrialDirectory(store, "a").status() is TrialStatus.NEW


def test_a_large_write_that_loses_a_part_leaves_nothing(flaky: Any, s3: Any) -> None:
    store = Store(f"s3://{s3.make_bucket(f'flaky-{next(_number)}')}/runs")
    parts: list[str] = []

    def lose_a_part(request: Any) -> bool:
        if request.command == "PUT" and "partNumber=2" in request.path:
            parts.append(request.path)
            return bool(_answer(400)(request))
        return False

    flaky.fault = staticmethod(lose_a_part)
    with pytest.raises(StorageError):
        store.write("predictions.parquet", os.urandom(24 << 20))
    assert parts
    flaky.fault = staticmethod(lambda request: False)
    assert not store.exists("predictions.parquet")
