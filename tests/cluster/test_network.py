"""Nodes with addresses of their own: workers that find each other over them, and a cable that is cut. In network namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_nodes import Host, RayNodes
from tests.support.watched_runs import Runs, on_two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# A lost node is noticed sooner than by Ray's own patience, a minute and more; and so is a lost head.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


class Cable:
    """Two hosts, as network namespaces, and a cable between them.

    As on many machines, their name stands in ``/etc/hosts`` with an address that no other host reaches.
    """

    addresses = ("10.231.77.1", "10.231.77.2")

    def __init__(self) -> None:
        self.names = [f"stlab{os.getpid()}{end}" for end in "ab"]

    def lay(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            files = Path("/etc/netns", name)
            files.mkdir(parents=True)
            (files / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
        here, there = self.names
        ip("-n", here, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", there)
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def remove(self) -> None:
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    cable = Cable()
    try:
        try:
            cable.lay()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield cable
    finally:
        cable.remove()


@pytest.fixture(scope="module")
def runs(cable: Cable, long_text: str, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A cluster of the two hosts, a CPU each."""
    hosts = [Host(a, ("ip", "netns", "exec", name)) for name, a in zip(cable.names, cable.addresses, strict=True)]
    nodes = RayNodes(Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")), hosts=hosts)
    runs = Runs(tmp_path_factory.mktemp("network"), nodes, long_text, undisturbed)
    try:
        nodes.add(variables=IMPATIENT)
        nodes.add(variables=IMPATIENT)
        yield runs
    finally:
        runs.end()
        nodes.stop()


def test_two_workers_on_two_hosts_train_as_one(runs: Runs) -> None:
    """Slow: a group of two workers starts on two hosts."""
    run = runs.start("two", "resources.workers=2")
    on_two_nodes(runs, run, "two")
    runs.ends_well(run, "two")
    runs.close_to_undisturbed("two", 1e-5)
    assert set(runs.attempts("two").values()) == {1}


def test_a_cable_that_is_cut(runs: Runs, cable: Cable) -> None:
    """The other host lives on, out of reach, and so does its trial for a while: it is not trained twice at once."""
    run = runs.in_the_middle("cut", 2)
    cable.cut()
    runs.go_on()
    runs.ends_well(run, "cut")
    runs.same_as_undisturbed("cut")
    runs.went_on("cut", disturbed=1)
