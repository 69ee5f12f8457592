"""How far a cluster's autoscaler may scale it up. Ray keeps no record that can be asked for, so the configuration is read instead."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from stlab.execution.capacity import UNKNOWN_LIMITS, AutoscalerLimits, NodeType, limits_in

logger = logging.getLogger(__name__)

_MONITORS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def limits_at_head() -> AutoscalerLimits | None:
    """The limits of the autoscaler of the cluster whose head this process runs on; None where there is no autoscaler."""
    if (limits := _limits_of_platform()) is not None:
        return limits
    if (monitor := _monitor()) is not None:
        return _limits_of_monitor(monitor)
    return _limits_of_kubernetes() if _has_reported() else None


def _limits_of_platform() -> AutoscalerLimits | None:
    """The limits that a platform has told Ray itself; none of the platforms that come with Ray does so."""
    config = ray._private.state.state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    types = [NodeType(dict(g.resources), math.inf if g.max_count < 0 else g.max_count) for g in config.node_group_configs]
    return AutoscalerLimits(tuple(types))


def _monitor() -> list[str] | None:
    """The command line of this cluster's autoscaler, where it runs on the head."""
    import psutil  # Ray brings its own

    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith(_MONITORS) for word in words) and (_option(words, "--gcs-address") or "").endswith(f":{port}"):
            return list(words)
    return None


def _limits_of_monitor(words: Sequence[str]) -> AutoscalerLimits | None:
    """The limits in a monitor's configuration. A monitor without a configuration adds no nodes and only shows those there are."""
    path = _option(words, "--autoscaling-config")
    if path is None:
        return None
    try:
        return limits_in(yaml.safe_load(Path(path).expanduser().read_text()))
    except Exception as error:  # noqa: BLE001  # the cluster scales up all the same, however far that is
        logger.warning("the autoscaler's configuration cannot be read: %s", error)
        return UNKNOWN_LIMITS


def _option(words: Sequence[str], name: str) -> str | None:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), None)


def _has_reported() -> bool:
    """Whether an autoscaler has reported that does not run on the head; KubeRay's runs in a container beside it."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS):
        return True
    reply = GetClusterStatusReply.FromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return bool(reply.HasField("autoscaling_state"))


def _limits_of_kubernetes() -> AutoscalerLimits:
    """The limits in the RayCluster, which is asked for as KubeRay's autoscaler does, with the rights of the head's pod."""
    try:
        return limits_in(_ray_cluster_config())
    except Exception as error:  # noqa: BLE001  # the cluster scales up all the same, however far that is
        logger.warning("what the autoscaler may add cannot be read from Kubernetes: %s", error)
        return UNKNOWN_LIMITS


def _ray_cluster_config() -> dict[str, Any]:
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    # The operator names the cluster to every container of Ray's.
    client = node_provider.KubernetesHttpApiClient(_NAMESPACE.read_text().strip())
    found = client.get(f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}")
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(found))
