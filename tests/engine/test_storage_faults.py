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
from stlab.results import Store, TrialDirectory, TrialStatus
from stlab.training import run_trial

_number = itertools.count()


def mount(*arguments: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    answer = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"mounting is not allowed here: {answer.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    with (folder / "other people's").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return folder / "other people's"


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
    seen: list[int] = []

    def remember(event: Any) -> None:
        seen.extend(row["epoch"] for row in event.get("rows", ()))

    assert run_trial(trial, {}, directory, test=True, report=remember) is TrialStatus.FINISHED
    assert seen[-1] == 6
    names = ("val_rmse", "val_mae", "best_epoch", "epochs")
    results = [place.read("result.json") or {} for place in (directory, undisturbed)]
    assert [results[0][name] for name in names] == [results[1][name] for name in names]
    tests = [{k: v for k, v in (place.read("test.json") or {}).items() if k in ("rmse", "mae")} for place in (directory, undisturbed)]
    assert tests[0] == tests[1]


class SlowStore(Store):
    """Every write takes a while longer."""

    seconds = 0.1
    waited = 0.0

    def write(self, relative: str, content: bytes) -> None:
        time.sleep(self.seconds)
        self.waited += self.seconds
        super().write(relative, content)


@pytest.mark.slow
def test_training_waits_for_nothing_but_its_checkpoints(tmp_path: Path, make_trial: Callable[..., Any]) -> None:
    store = SlowStore(tmp_path)
    trial = make_trial(max_epochs=8, checkpoint_seconds=1000)
    waited: list[float] = []

    def note(event: Any) -> None:
        waited.append(store.waited)

    assert run_trial(trial, {}, TrialDirectory(store, "a"), test=True, report=note) is TrialStatus.FINISHED
    assert len(set(waited)) == 1, "no write between the epochs, where no checkpoint is due"
    assert waited[0] <= 2 * store.seconds
    often = SlowStore(tmp_path)
    during: list[float] = []
    trial = make_trial(max_epochs=8, checkpoint_seconds=0.5)
    begun = time.monotonic()
    run_trial(trial, {}, TrialDirectory(often, "b"), test=True, report=lambda event: during.append(often.waited))
    took = time.monotonic() - begun
    checkpoints = took / 0.5
    assert during[-1] <= (checkpoints + 1) * 4 * often.seconds, "four files a checkpoint, and checkpoints no more often than asked"


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
