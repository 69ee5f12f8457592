"""How far a cluster's autoscaler may bring it. Ray keeps no record of it that is there to be asked: its configuration is read instead."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from stlab.execution.autoscaling import UNKNOWN_GROWTH, Growth, NodeType, growth_from

logger = logging.getLogger(__name__)

_MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def growth_at_head() -> Growth | None:
    """What the autoscaler may add to the cluster whose head this process runs on; None where there is no autoscaler."""
    if (told := _told()) is not None:
        return told
    if (monitor := _monitor()) is not None:
        return _of_monitor(monitor)
    return _of_kubernetes() if _is_reported() else None


def _told() -> Growth | None:
    """What a platform told Ray itself; none of those that come with Ray does."""
    config = ray._private.state.state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    types = [NodeType(dict(g.resources), math.inf if g.max_count < 0 else g.max_count) for g in config.node_group_configs]
    return Growth(tuple(types))


def _monitor() -> list[str] | None:
    """The command line of this cluster's autoscaler, where it runs on the head."""
    import psutil  # Ray brings its own

    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith(_MONITORS) for word in words) and (_option(words, "--gcs-address") or "").endswith(f":{port}"):
            return list(words)
    return None


def _of_monitor(words: Sequence[str]) -> Growth | None:
    """What its configuration says; without one it adds nothing and only shows what is there."""
    path = _option(words, "--autoscaling-config")
    if path is None:
        return None
    try:
        return growth_from(yaml.safe_load(Path(path).expanduser().read_text()))
    except Exception as error:  # noqa: BLE001  # it grows all the same, as far as it does
        logger.warning("the autoscaler's configuration cannot be read: %s", error)
        return UNKNOWN_GROWTH


def _option(words: Sequence[str], name: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), None)


def _is_reported() -> bool:
    """Whether an autoscaler that does not run on the head (KubeRay's is a container beside it) has been heard of."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS):
        return True
    reply = GetClusterStatusReply.FromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return bool(reply.HasField("autoscaling_state"))


def _of_kubernetes() -> Growth:
    """What the RayCluster says, asked as KubeRay's autoscaler does, with the rights of the head's pod."""
    try:
        return growth_from(_ray_cluster_config())
    except Exception as error:  # noqa: BLE001  # it grows all the same, as far as it does
        logger.warning("what the autoscaler may add cannot be read from Kubernetes: %s", error)
        return UNKNOWN_GROWTH


def _ray_cluster_config() -> dict[str, Any]:
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    # The operator names the cluster to every container of Ray's.
    client = node_provider.KubernetesHttpApiClient(_NAMESPACE.read_text().strip())
    found = client.get(f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}")
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(found))
