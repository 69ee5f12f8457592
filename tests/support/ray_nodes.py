"""A Ray cluster of real processes on this machine, and what tells its processes from everybody else's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.servers import S3, free_port

MARK = "STLAB_TEST_RUN"
"""An environment variable by which a run's processes are told from everybody else's."""


def environment(mark: str = "") -> dict[str, str]:
    """One thread, no network, and workers as urgent as everything else, so that a busy machine does not starve them."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", MARK: mark}


@dataclass(frozen=True)
class Host:
    """Where a node runs: this machine, or a network namespace of it."""

    ip: str = "127.0.0.1"
    enter: tuple[str, ...] = ()
    """The words before a command that runs there."""


_STARTS = 4
_NO_SPARE_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
"""Workers that a node starts before anybody asks for them have not the environment that ours are given, and are not used."""
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
    variables: Mapping[str, str] = field(default_factory=dict)
    """What every node has in its environment beside the usual."""
    hosts: Sequence[Host] = ()
    """Of the first nodes; the others run on this machine."""
    address: str = ""
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def enter(self) -> tuple[str, ...]:
        """The words before a command that runs where the head does."""
        return self.hosts[0].enter if self.hosts else ()

    @property
    def environment(self) -> dict[str, str]:
        """What a client or a node of this cluster has set."""
        return environment(str(self.folder)) | self.client

    @property
    def client(self) -> dict[str, str]:
        """What lets a client in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

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
        host = self.hosts[len(self.nodes)] if len(self.nodes) < len(self.hosts) else Host()
        if self.nodes:
            # Nodes of one folder would delete each other's unpacked jobs.
            role = ["--address", self.address, "--temp-dir", str(self.folder / f"n{len(self.nodes)}")]
        else:
            port = self.port or free_port()
            self.address = f"{host.ip}:{port}"
            # The job server runs on the head alone; 0 keeps two clusters on one machine apart.
            role = ["--head", "--port", str(port), "--ray-client-server-port", str(free_port()), "--temp-dir", str(self.folder)]
            role += ["--include-dashboard", str(self.dashboard_port is not None)]
            role += ["--dashboard-port", str(self.dashboard_port or free_port())]  # a little of it runs in any case
        log = self.folder / f"node{len(self.nodes)}.log"
        node = subprocess.Popen(
            [*host.enter, sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--node-ip-address", host.ip,
             "--num-cpus", str(cpus), "--object-store-memory", str(100 * 2**20), "--dashboard-agent-listen-port", str(free_port()),
             "--disable-usage-stats", "--block", *options],
            env={**self.environment, **_NO_SPARE_WORKERS, **self.variables, **(variables or {})}, start_new_session=True,
            stdout=log.open("wb"), stderr=subprocess.STDOUT,
            # Tests that run in the background ignore Ctrl-C, and would hand that down to the jobs of the cluster.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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


@contextlib.contextmanager
def running(nodes: RayNodes) -> Iterator[RayNodes]:
    """The cluster with a head and a second node, a CPU each; both end with the block."""
    try:
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        nodes.stop()


def new_cluster(dashboard: bool = False, variables: Mapping[str, str] | None = None) -> RayNodes:
    """A cluster without a node yet."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    return RayNodes(folder, dashboard_port=free_port() if dashboard else None, variables=variables or {})


@pytest.fixture(scope="session")
def two_nodes(s3_server: S3) -> Iterator[RayNodes]:
    """The cluster that all tests share which neither start Ray themselves nor end its head; its nodes reach the tests' S3 server.

    A study on it costs half a minute less than one that starts Ray.
    """
    with running(new_cluster(variables=s3_server.environment)) as nodes:
        yield nodes
