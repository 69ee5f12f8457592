"""Real servers on the loopback: S3 by moto, MLflow."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class S3:
    """A real S3 server on the loopback, and who may write there."""

    endpoint: str
    access_key: str = "AKIATESTSTESTSTESTS0"
    secret_key: str = "hunter2SecretKeyOfTheTestsNeverToBeShown"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """An unsigned request: moto does not ask who it is, unless told to."""
        call = urllib.request.Request(f"{self.endpoint}/{path}", data=body or None, method=method)
        with urllib.request.urlopen(call, timeout=30) as answer:
            content: bytes = answer.read()
        return content

    def make_bucket(self, name: str) -> str:
        self.request("PUT", name)
        return name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    """Until a server answers, whatever it says."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        else:
            return


def start_mlflow(port: int, log: Path, *options: str, **variables: str) -> subprocess.Popen[bytes]:
    """``mlflow server`` in a process group of its own, as soon as it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port), *options]
    environment = os.environ | variables | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds=240)
    except BaseException:
        end_group(process)
        raise
    return process


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that has a group of its own, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Moto's server in a process of its own; its content is gone with it."""
    log = tmp_path_factory.mktemp("s3") / "log"
    server = S3(f"http://127.0.0.1:{free_port()}")
    port = server.endpoint.rpartition(":")[2]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port], stdout=output, stderr=output)
    try:
        wait_for(f"{server.endpoint}/moto-api/", process, log)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The S3 server, and this process's environment such that it is the one that s3:// means."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    return s3_server
