"""`cluster/drain.sh` on a node of a real Ray cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DRAIN = Path(__file__).parents[2] / "cluster" / "drain.sh"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DRIVER = """\
import subprocess, sys, time
import ray

address, drain, worker, raylets = sys.argv[1:]
ray.init(address, log_to_driver=False)
train = ray.remote(num_cpus=1)(type(worker, (), {"ready": lambda self: True})).remote()
assert ray.get(train.ready.remote())
subprocess.run([drain, "60", f"^ray::{worker}", raylets], check=True)
ready, _ = ray.wait([ray.remote(num_cpus=1)(lambda: True).remote()], timeout=10)
assert not ready, "the node is free for what comes next"
until = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) > 1:
    assert time.monotonic() < until, "the node does not leave, though nothing runs there"
    time.sleep(0.2)
"""
"""Occupies the only node with a CPU, as training does, and has it drained."""


def test_a_node_that_is_drained_takes_nothing_more_and_leaves(ray_nodes: Callable[..., Any]) -> None:
    """Slow: a cluster of two nodes starts."""
    nodes = ray_nodes()
    nodes.add(0)
    nodes.add(1)
    # Only this test's worker and node are told: others may run on this machine.
    raylets = f"^[^ ]*/raylet/raylet --raylet_socket_name={nodes.folder}/n1/"
    worker = f"RayTrainWorker{nodes.folder.name}"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, nodes.address, DRAIN, worker, raylets],
        env=nodes.environment | {"PATH": f"{Path(sys.executable).parent}:{nodes.environment['PATH']}"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "asks 1 training workers to save and stop" in done.stdout
    assert "Ray does not know" not in done.stderr
