"""How many trials a cluster that grows by itself runs at once, from what its autoscaler's configuration lets it add."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")

from stlab.errors import ResourceError
from stlab.execution.capacity import UNKNOWN_LIMITS, AutoscalerLimits, NodeType, groups_after_scaling_up, limits_in
from stlab.execution.ray import autoscaling, cluster
from stlab.study.spec import ResourcesSpec

CLUSTER = Path(__file__).parents[3] / "cluster"
HEAD = {"node:__internal_head__": 1.0, "memory": 8.0 * 2**30}
GPU_NODES = AutoscalerLimits((NodeType({"CPU": 8, "GPU": 1}, 8),), 8)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a cluster of these nodes, beside a head that trains nothing, and of what may be added."""

    def make(limits: AutoscalerLimits | None, *nodes: dict[str, float]) -> None:
        everything = [HEAD, *nodes]
        total = {name: sum(node.get(name, 0.0) for node in everything) for name in ("CPU", "GPU", "memory")}
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {n: v for n, v in total.items() if v})
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in everything])
        monkeypatch.setattr(cluster, "_autoscaler_limits", lambda: limits)

    return make


@pytest.mark.parametrize(
    ("types", "total", "worker", "size", "groups"),
    [
        ([({"CPU": 1}, 3)], 8, {"CPU": 1}, 1, 3),
        ([({"CPU": 1}, 30)], 8, {"CPU": 1}, 1, 8),  # the bound of all types together
        ([({"CPU": 8, "GPU": 1}, 8)], 8, {"CPU": 1, "GPU": 1}, 1, 8),
        ([({"CPU": 8, "GPU": 1}, 8)], 8, {"CPU": 1, "GPU": 0.25}, 1, 32),
        ([({"CPU": 8, "GPU": 1}, 8)], 8, {"CPU": 1, "GPU": 1}, 3, 2),
        ([({"CPU": 3}, 4)], 8, {"CPU": 2}, 1, 4),  # 12 CPUs, and yet no 6 of them: a worker lives on one node
        ([({"CPU": 64}, 8), ({"CPU": 8, "GPU": 4}, 2)], 8, {"CPU": 1, "GPU": 1}, 1, 8),
        ([({"CPU": 4}, 4), ({"CPU": 64}, 2)], 3, {"CPU": 4}, 1, 33),  # the largest first
        ([({"CPU": 1}, math.inf)], math.inf, {"CPU": 1}, 1, math.inf),
        ([({"CPU": 8}, 8)], 8, {"CPU": 1, "GPU": 1}, 1, 0),
    ],
)
def test_groups_of_a_cluster_that_has_grown(types: Any, total: float, worker: Any, size: int, groups: float) -> None:
    limits = AutoscalerLimits(tuple(NodeType(resources, most) for resources, most in types), total)
    assert groups_after_scaling_up(limits, [HEAD], worker, size) == groups


def test_a_head_that_trains_counts_too() -> None:
    assert groups_after_scaling_up(AutoscalerLimits((NodeType({"CPU": 1}, 3),)), [{"CPU": 2}], {"CPU": 1}, 1) == 5


def test_an_empty_cluster_that_grows_is_no_empty_cluster(there: Any) -> None:
    there(GPU_NODES)
    decided = cluster.with_gpus(ResourcesSpec())
    assert decided.gpus == 1.0
    assert cluster.slots(decided) == 8
    assert cluster.slots(ResourcesSpec(gpus=0)) == 64
    assert cluster.autoscaling_note() == "the cluster grows by itself, from 0 CPU, 0 GPU to 64 CPU, 8 GPU: trials wait for nodes"


def test_a_cluster_that_has_grown_a_little_grows_on(there: Any) -> None:
    there(GPU_NODES, {"CPU": 8, "GPU": 1})
    assert cluster.slots(ResourcesSpec(gpus=1)) == 8


def test_a_cluster_that_grows_without_end(there: Any) -> None:
    there(AutoscalerLimits((NodeType({"CPU": 1}, math.inf),)), {"CPU": 1})
    assert cluster.slots(ResourcesSpec(gpus=0)) == 17, "those that fit now, and some that make it grow"
    assert cluster.slots(ResourcesSpec(gpus=0, max_cpus=100)) == 100


def test_the_quota_holds_for_what_is_added(there: Any) -> None:
    there(GPU_NODES)
    assert cluster.slots(ResourcesSpec(gpus=1, max_gpus=3)) == 3
    assert cluster.slots(ResourcesSpec(gpus=1, workers=2, max_gpus=3)) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 1, "workers": 9}, "the cluster has 0 and can grow to 8"),
        ({"gpus": 2}, "no single node has that"),
        ({"cpus": 5, "gpus": 0, "workers": 9}, "resources.workers=9 do not fit"),
    ],
)
def test_what_no_scaling_up_brings_is_refused(there: Any, asked: dict[str, float], words: str) -> None:
    there(GPU_NODES)
    with pytest.raises(ResourceError, match=words):
        cluster.slots(ResourcesSpec(**asked))


def test_a_cluster_without_autoscaler_is_what_it_is(there: Any) -> None:
    there(None, {"CPU": 2}, {"CPU": 2})
    assert cluster.with_gpus(ResourcesSpec()).gpus == 0.0
    assert cluster.slots(ResourcesSpec(gpus=0)) == 4
    assert cluster.autoscaling_note() is None
    with pytest.raises(ResourceError, match="the cluster has 4 and can grow to 4"):
        cluster.slots(ResourcesSpec(gpus=0, workers=5))
    with pytest.raises(ResourceError, match="no single node has that"):
        cluster.slots(ResourcesSpec(gpus=0, cpus=3))


def test_bounds_that_nobody_tells_refuse_nothing(there: Any) -> None:
    there(UNKNOWN_LIMITS, {"CPU": 2})
    assert cluster.slots(ResourcesSpec(gpus=1)) == 16
    assert cluster.slots(ResourcesSpec(gpus=0)) == 18
    assert cluster.slots(ResourcesSpec(gpus=1, max_gpus=40)) == 40
    assert "as far as its autoscaler lets it" in (cluster.autoscaling_note() or "")
    with pytest.raises(ResourceError, match=r"Set resources\.gpus=1, or resources\.gpus=0"):
        cluster.with_gpus(ResourcesSpec())
    there(UNKNOWN_LIMITS, {"CPU": 2, "GPU": 1})
    assert cluster.with_gpus(ResourcesSpec()).gpus == 1.0


@pytest.mark.parametrize(("file", "path"), [("raycluster.yaml", "spec"), ("rayjob.yaml", "spec.rayClusterSpec")])
def test_kubernetes_says_how_far_our_clusters_grow(file: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.kuberay import node_provider

    spec = yaml.safe_load((CLUSTER / "kuberay" / file).read_text())
    for key in path.split("."):
        spec = spec[key]
    asked = []

    def get(client: Any, resource: str) -> dict[str, Any]:
        asked.append((client._namespace, resource))
        return {"metadata": {"name": "stlab", "namespace": "here"}, "spec": spec}

    (tmp_path / "namespace").write_text("here\n")
    monkeypatch.setattr(autoscaling, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", get)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "stlab")
    found = autoscaling._limits_of_kubernetes()
    assert asked == [("here", "rayclusters/stlab")]
    assert (found.is_known, found.reach("GPU"), found.reach("CPU"), found.most) == (True, 8, 64, 8)


def test_kubernetes_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(autoscaling, "_NAMESPACE", tmp_path / "none")
    assert autoscaling._limits_of_kubernetes() == UNKNOWN_LIMITS


def test_our_cluster_on_aws(tmp_path: Path) -> None:
    config = yaml.safe_load((CLUSTER / "ray-up" / "aws.yaml").read_text())
    assert not limits_in(config).is_known, "what a machine has, Ray finds out while it makes the cluster"
    config["available_node_types"]["gpu"]["resources"] = {"CPU": 8, "GPU": 1, "memory": 2**35}
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps(config))
    found = autoscaling._limits_of_monitor(["python", "monitor.py", f"--autoscaling-config={path}"])
    assert found is not None
    assert (found.is_known, found.reach("GPU"), found.most) == (True, 8, 8)


def test_a_monitor_without_configuration_adds_nothing(tmp_path: Path) -> None:
    assert autoscaling._limits_of_monitor(["python", "monitor.py", "--gcs-address=head:6379"]) is None
    assert autoscaling._limits_of_monitor(["python", "monitor.py", f"--autoscaling-config={tmp_path / 'none'}"]) == UNKNOWN_LIMITS
