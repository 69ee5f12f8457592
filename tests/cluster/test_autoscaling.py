"""A study on a cluster that has no node to train on, and an autoscaler that adds some: a real one, with nodes on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.warm_processes import run_python

MOST = 3  # nodes that may be added
HEAD_ID = "f" * 51 + "00000"  # by which the provider knows the head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WATCHED = """\
import json, sys, time
import ray
from stlab.cli.options import load_study
from stlab.errors import UserError
from stlab.execution.events import Ended, Epochs, Started
from stlab.execution.run_study import run_study

study, storage, address, log, *overrides = sys.argv[1:]

def say(**event):
    with open(log, "a") as file:
        file.write(json.dumps(event) + "\\n")

class Log:
    def begin(self, plan, todo, concurrency): say(kind="begin", concurrency=concurrency, notes=plan.notes)
    def end(self, outcome): pass
    def event(self, event):
        if isinstance(event, Epochs):
            say(kind="nodes", nodes=sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes()))
        if isinstance(event, Started | Ended):
            say(kind=type(event).__name__.lower(), trial=event.trial_id, at=time.time())

spec, source = load_study(study, overrides)
try:
    outcome = run_study(spec, storage, source=source, address=address, observers=[Log()])
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
print(*outcome.troubles, sep="\\n")
sys.exit(1 if outcome.troubles else 0)
"""
"""A run that writes down what its observers hear, and how many nodes that train there are."""


def configuration(address: str, is_v2: bool) -> dict[str, Any]:
    """An autoscaler's, whose nodes are processes of this machine. Ray's own class for such clusters would end all others here."""
    provider = {
        "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address, "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        **({"launch_multiple": True, "head_node_id": HEAD_ID} if is_v2 else {}),
    }  # fmt: skip
    return {
        "cluster_name": "grows", "max_workers": 8, "upscaling_speed": 1.0, "idle_timeout_minutes": 1,
        "provider": provider, "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1, "object_store_memory": 100 * 2**20}, "node_config": {}, "max_workers": MOST},
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        **{f"{phase}_commands": [] for phase in ("initialization", "setup", "head_setup", "worker_setup")},
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip


ON_CALL = "STLAB_TEST_AUTOSCALER_V1"
"""An environment variable: set, the test runs with Ray's first autoscaler too, which Ray replaces by the second."""


@pytest.fixture(params=[pytest.param("v1", marks=pytest.mark.skipif(ON_CALL not in os.environ, reason=f"{ON_CALL} is not set")), "v2"])
def growing(request: pytest.FixtureRequest, ray_nodes: Callable[..., Any]) -> Any:
    """A head without a CPU, and an autoscaler: Ray's second, and on call its first."""
    nodes, is_v2 = ray_nodes(port_known=True), request.param == "v2"
    config = nodes.folder / "autoscaler.json"
    config.write_text(json.dumps(configuration(f"127.0.0.1:{nodes.port}", is_v2)))
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    if is_v2:
        variables |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    nodes.add(0, "--autoscaling-config", str(config), variables=variables)
    return nodes


@pytest.fixture
def run(tmp_path: Path, study_text: str) -> Callable[..., tuple[int, str, list[dict[str, Any]]]]:
    """Runs the study on a cluster, with overrides: exit code, words, events."""
    (tmp_path / "watched.py").write_text(WATCHED)
    # Trials long enough for another node to come up before the first is done with all of them.
    (tmp_path / "tiny.yaml").write_text(study_text.replace("max_epochs: 2", "max_epochs: 12"))

    def start(nodes: Any, *overrides: str) -> tuple[int, str, list[dict[str, Any]]]:
        log = tmp_path / "log.jsonl"
        log.unlink(missing_ok=True)
        words = ["watched.py", "tiny.yaml", "runs", nodes.address, str(log), *overrides]
        ended = run_python(words, tmp_path, nodes.environment, timeout=420)
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return ended.wait(), "".join(ended.communicate()), events

    return start


def at_once(events: Sequence[dict[str, Any]]) -> int:
    """The most trials that were under way at one moment."""
    changes = sorted((e["at"], 1 if e["kind"] == "started" else -1) for e in events if e["kind"] in ("started", "ended"))
    under_way = [sum(change for _, change in changes[: n + 1]) for n in range(len(changes))]
    return max(under_way, default=0)


def test_a_study_makes_a_cluster_grow(growing: Any, run: Any, tmp_path: Path) -> None:
    """Slow: a node is added at a time, and three of them train on two cores."""
    code, words, events = run(growing, "resources.cpus=2")
    assert (code, "no single node has that" in words) == (2, True), words
    assert events == []

    code, words, events = run(growing)
    assert code == 0, words
    begun = next(event for event in events if event["kind"] == "begin")
    assert begun["concurrency"] == MOST
    assert begun["notes"][-1] == "the cluster grows by itself, from 0 CPU, 0 GPU to 3 CPU, 0 GPU: trials wait for nodes"
    assert max(event["nodes"] for event in events if event["kind"] == "nodes") > 1
    assert at_once(events) > 1
    table = pd.read_parquet(tmp_path / "runs" / "studies" / "tiny" / "results" / "trials.parquet")
    trained = table[~table.baseline]
    assert len(trained) == 4
    assert set(table.status) == {"finished"}
    assert trained.test_mae.notna().all()


def test_a_cluster_that_does_not_grow_says_so(ray_nodes: Callable[..., Any], run: Any) -> None:
    nodes = ray_nodes()
    nodes.add(0)
    code, words, events = run(nodes)
    assert (code, events) == (2, []), words
    assert "the cluster has 0 and can grow to 0" in words
