"""The command line as a user has it: in a process of its own where processes matter, called directly where only words do."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

MARK = "STLAB_TEST_RUN"
"""An environment variable by which a run's processes are told from everybody else's."""


@dataclass
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def environment(mark: str = "") -> dict[str, str]:
    """One thread, no network, and workers as urgent as everything else, so that a busy machine does not starve them."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", MARK: mark}


@dataclass
class CommandLine:
    """Runs ``python -m stlab`` in a folder; ends what a run may have left behind."""

    folder: Path
    marks: list[str] = field(default_factory=list)

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command in a session of its own, as a terminal would."""
        mark = f"{self.folder}/{len(self.marks)}"
        self.marks.append(mark)
        target = log.open("w") if log else subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "stlab", *arguments], cwd=self.folder, env=environment(mark), text=True,
            start_new_session=True, stdout=target, stderr=subprocess.STDOUT if log else subprocess.PIPE,
            # Tests that run in the background ignore Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def __call__(self, *arguments: str, timeout: float = 280) -> Answer:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            self.end_leftovers()
            raise
        return Answer(process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Every process of these runs that is still there, by pid: its command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marks = [v for v in (entry / "environ").read_bytes().split(b"\0") if v.startswith(f"{MARK}=".encode())]
                if marks and marks[0].decode().partition("=")[2] in self.marks:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # a zombie has none
                        found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def wait_until_gone(self, seconds: float = 60) -> dict[int, str]:
        """What is left of these runs' processes after a while, at best nothing."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.5)
        return left

    def end_leftovers(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="module")
def stlab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line in a process of its own, in an empty folder that a module shares."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are told apart by /proc, which this system lacks")
    command_line = CommandLine(tmp_path_factory.mktemp("stlab"))
    yield command_line
    command_line.end_leftovers()


@pytest.fixture
def say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """The command line's ``main`` in this process, in an empty folder: seconds less a call, the same words."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Answer:
        from stlab.cli import main

        monkeypatch.setattr(sys, "argv", ["stlab", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return call


STUDY = """\
name: tiny
base:
  data: {path: synthetic:city}
  model: {name: st_vfm, backbone: vit_test, weights: random, temporal_width: 16, rank: 4}
  train: {max_epochs: 2, warmup_epochs: 1, lr: 2.0e-3, checkpoint_seconds: 0}
variants:
  no flow: {model: {flow: false, cross_prompt_layers: 0}}
  full: {}
seeds: [0, 1]
"""


@pytest.fixture(scope="session")
def study_text() -> str:
    """A study of two variants and two seeds that trains in seconds."""
    return STUDY


@pytest.fixture(scope="session")
def grid() -> dict[str, np.ndarray]:
    """Arrays of a sound file: ten days of hourly counts on 4×4 cells."""
    steps = 240
    data = np.random.default_rng(0).poisson(5, (steps, 2, 4, 4)).astype(np.float32)
    return {"data": data, "timestamps": np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(3600, "s")}


_STARTS = 4
START_SECONDS = 180
"""For Ray to come up, on a busy machine."""


@dataclass
class RayNodes:
    """A Ray cluster on this machine: ``ray start`` for each node, real processes, token authentication on."""

    folder: Path
    """Ray's own files. Its path must be short: sockets lie in it."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    dashboard_port: int | None = None
    port: int | None = None
    """Of the head, where it must be known before; else any."""
    address: str = ""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster has set."""
        return environment(str(self.folder)) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add(self, cpus: int = 1, *options: str, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a node, the head first, and wait until it answers. Ray gives it 30 s, which is short on a busy machine."""
        for attempt in range(_STARTS):
            node, said = self._start(cpus, *options, variables=variables)
            if said is None:
                self.nodes.append(node)
                return node
            assert attempt < _STARTS - 1, said
        raise AssertionError

    def _start(self, cpus: int, *options: str, variables: Mapping[str, str] | None) -> tuple[subprocess.Popen[bytes], str | None]:
        """A node, and what it said if it did not come up."""
        if self.nodes:
            # Nodes of one folder would delete each other's unpacked jobs.
            role = ["--address", self.address, "--temp-dir", str(self.folder / f"n{len(self.nodes)}")]
        else:
            port = self.port or free_port()
            self.address = f"127.0.0.1:{port}"
            # The job server runs on the head alone; 0 keeps two clusters on one machine apart.
            role = ["--head", "--port", str(port), "--ray-client-server-port", str(free_port()), "--temp-dir", str(self.folder)]
            role += ["--include-dashboard", str(self.dashboard_port is not None)]
            role += ["--dashboard-port", str(self.dashboard_port or free_port())]  # a little of it runs in any case
        log = self.folder / f"node{len(self.nodes)}.log"
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus),
             "--object-store-memory", str(100 * 2**20), "--dashboard-agent-listen-port", str(free_port()),
             "--disable-usage-stats", "--block", *options],
            env=self.environment | dict(variables or {}), start_new_session=True, stdout=log.open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (said := log.read_text()):
            if node.poll() is not None:
                return node, said
            if time.monotonic() > until:
                self.kill(node)
                return node, said
            time.sleep(0.2)
        return node, None

    def processes(self, node: subprocess.Popen[bytes]) -> dict[int, list[str]]:
        """A node's processes, its workers too, by pid: their command lines."""
        found = {}
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = process.cmdline()
        return found

    def trainers(self, node: subprocess.Popen[bytes] | None = None) -> list[int]:
        """The processes that train, of a node or of all: pids."""
        nodes = [node] if node else [node for node in self.nodes if node.poll() is None]
        return [pid for n in nodes for pid, words in self.processes(n).items() if words and "RayTrainWorker" in words[0]]

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node as a power cut does."""
        # First what starts processes, so that nothing is started while the list is gone through.
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=30)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)
        mark = f"{MARK}={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ray_nodes() -> Iterator[Callable[..., RayNodes]]:
    """Makes clusters without a node: ``ray_nodes(dashboard=True, port_known=True)``; what they start is ended."""
    made: list[RayNodes] = []

    def make(dashboard: bool = False, port_known: bool = False) -> RayNodes:
        folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        ports = (free_port() if wanted else None for wanted in (dashboard, port_known))
        made.append(RayNodes(folder, dashboard_port=next(ports), port=next(ports)))
        return made[-1]

    yield make
    for nodes in made:
        nodes.stop()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayNodes]:
    """A cluster that a module shares: a head with a job server and a second node, a CPU each, token authentication on."""
    nodes = RayNodes(Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")), dashboard_port=free_port())
    try:
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        nodes.stop()
