"""The cluster: join it, or start one on this machine, and find out how much it can run at once."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from stlab.errors import ResourceError
from stlab.execution.capacity import AutoscalerLimits, groups_after_scaling_up, needs, quota_of, workers_on
from stlab.execution.ray import SETTINGS, token
from stlab.execution.ray.autoscaling import limits_at_head
from stlab.study.spec import ResourcesSpec

logger = logging.getLogger(__name__)

ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""A sliver of a resource that every head has, for actors that must outlive all other nodes."""
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # Ray's watcher for drained nodes is a process for each group
_STARTS = 4  # tries to start Ray on this machine
_WAITING = 16  # groups beyond those that fit now, on a cluster whose limits are unknown; each has two processes on the head
_MOST_GROUPS = 300  # each takes up to three of a head's thousand slivers; a group without one would keep its GPUs and wait
_NAMES = ("CPU", "GPU")


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[None]:
    """A Ray cluster: the one at ``address`` or in RAY_ADDRESS, else one of this machine's own for the duration.

    Raises:
        ResourceError: there is no cluster at the address, or one of another Ray or Python.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options["include_dashboard"] = True  # it brings job submission; without it a sweep over Train can hang
    else:
        options["runtime_env"] = {"env_vars": _settings()}
    with _environment(_ONE_MACHINE if address == "local" else {}):
        try:
            _start(address, options)
            yield
        finally:
            _autoscaler_limits.cache_clear()
            ray.shutdown()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set for the block where the user has not set them; Ray's processes inherit them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _settings() -> dict[str, str]:
    """The environment of our processes on a cluster that somebody else started; on a cluster of our own they inherit it."""
    # A job that was submitted has its environment already, and Ray takes no variable twice.
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {}).get("env_vars", {})
    return {name: os.environ[name] for name in SETTINGS if name not in given}


def _start(address: str, options: Mapping[str, Any]) -> None:
    for attempt in range(_STARTS):
        try:
            ray.init(address=address, **options)
            return
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ResourceError(token.perhaps(address)) from error
        except ValueError as error:
            raise ResourceError(
                f"no Ray cluster answers at {address}: {error}. Start one (ray start --head), or leave --address out."
            ) from error
        except RuntimeError as error:
            if "Version mismatch" not in str(error):
                raise
            raise ResourceError(_other_versions(address, str(error))) from error
        except Exception as error:
            # Ray gives its own processes 30 s, which is short on a busy machine, and says so with a bare Exception.
            if type(error) is not Exception:
                raise
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise ResourceError(
                    f"Ray did not start, {_STARTS} times over: {last_line(error)} It gives itself 30 s: is the machine too busy? Try "
                    "again later, or give the --address of a cluster."
                ) from error
            logger.info("Ray did not start; once more: %s", error)


def _other_versions(address: str, said: str) -> str:
    """Advice for a cluster that has another Ray or Python; ``said`` is Ray's own message."""
    there = dict(re.findall(r"(Ray|Python): (\S+)", said.partition("This process")[0]))
    return (
        f"the cluster at {address} has Ray {there.get('Ray', '?')} and Python {there.get('Python', '?')}; here are Ray "
        f"{ray.__version__} and Python {platform.python_version()}. Both must be the same on both sides: here pip install "
        f"ray=={there.get('Ray', 'VERSION')} in an environment of the cluster's Python, or run stlab on a node of the cluster."
    )


def with_gpus(resources: ResourcesSpec) -> ResourcesSpec:
    """``gpus`` decided: one a worker where the cluster has any (now or after scaling up), else none.

    Raises:
        ResourceError: the cluster has none now, and nobody says whether it would after scaling up.
    """
    if resources.gpus is not None:
        return resources
    has_any = _reachable().get("GPU", 0) > 0
    if not has_any and (limits := _autoscaler_limits()) is not None and not limits.is_known:
        raise ResourceError(
            "resources.gpus is not set, and what this cluster's autoscaler may add cannot be had from it: there is no GPU now, and there "
            "may be one later. Set resources.gpus=1, or resources.gpus=0 to train on CPUs."
        )
    return resources.model_copy(update={"gpus": 1.0 if has_any else 0.0})


def slots(resources: ResourcesSpec) -> int:
    """How many trials with these resources the cluster runs at once, now or when it has grown, within the study's quota.

    Raises:
        ResourceError: not even one fits, nor would it after scaling up; names the resource.
    """
    quota, group = quota_of([resources]), needs(resources)
    for name, most in quota.items():
        if group[name] > most:
            raise ResourceError(
                f"a trial takes {group[name]:g} {name}, and resources.max_{name.lower()}s is {most:g}. Raise it, or lower "
                f"resources.{name.lower()}s or resources.workers."
            )
    worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    limits = _autoscaler_limits()
    if limits is None or limits.is_known:
        _check_amounts(resources, worker)
        _check_nodes(limits, worker)
    have = ray.cluster_resources()
    now = workers_on(have, {name: group[name] for name in worker})
    limited = {name: group[name] for name in quota if name in worker}
    allowed = workers_on(quota, limited) if limited else math.inf
    most = _most_groups(limits, now, worker, resources.workers, allowed)
    if limits is not None and most < 1:
        raise ResourceError(
            f"a trial's resources.workers={resources.workers} do not fit the nodes that the cluster can grow to, each on one node. "
            "Lower resources.workers, resources.cpus or resources.gpus."
        )
    return int(max(1, min(most, allowed, _MOST_GROUPS)))


def _most_groups(limits: AutoscalerLimits | None, now: int, worker: Mapping[str, float], size: int, allowed: float) -> float:
    """How many worker groups there may be at once; ``now`` fit the cluster as it is, and ``allowed`` fit the quota."""
    if limits is None:
        return now
    most = max(now, groups_after_scaling_up(limits, _heads(), worker, size)) if limits.is_known else math.inf
    return min(most, allowed) if min(most, allowed) < math.inf else now + _WAITING


def _check_amounts(resources: ResourcesSpec, worker: Mapping[str, float]) -> None:
    have, reach = ray.cluster_resources(), _reachable()
    for name, amount in worker.items():
        wanted = amount * resources.workers
        field = f"resources.{name.lower()}s"
        if reach.get(name, 0) < wanted:
            raise ResourceError(
                f"a trial asks for {wanted:g} {name} ({field}={amount:g} × resources.workers={resources.workers}); the cluster has "
                f"{have.get(name, 0):g} and can grow to {reach.get(name, 0):g}. Lower {field} or resources.workers, or add nodes."
            )


def _check_nodes(limits: AutoscalerLimits | None, worker: Mapping[str, float]) -> None:
    nodes = [node["Resources"] for node in _alive()] + [node.resources for node in (limits.types if limits else ())]
    if not any(workers_on(node, worker) for node in nodes):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        raise ResourceError(
            f"a worker asks for {asked}, and no single node has that. Lower resources.cpus or resources.gpus; a worker lives on one node."
        )


def autoscaling_note() -> str | None:
    """A note for the user about a cluster that scales up by itself; None for a cluster that does not."""
    limits = _autoscaler_limits()
    if limits is None:
        return None
    have, reach = ray.cluster_resources(), _reachable()
    if not limits.is_known:
        return "the cluster grows by itself, as far as its autoscaler lets it: trials wait for nodes"
    if all(reach.get(name, 0) <= have.get(name, 0) for name in _NAMES):
        return None
    now, most = (", ".join(f"{amounts.get(name, 0):g} {name}" for name in _NAMES) for amounts in (have, reach))
    return f"the cluster grows by itself, from {now} to {most}: trials wait for nodes"


def cluster_amounts() -> dict[str, float]:
    """CPUs, GPUs, memory (GiB) and nodes of the connected cluster, as they are shown."""
    have, nodes = ray.cluster_resources(), len(_alive())
    return {"CPU": have.get("CPU", 0), "GPU": have.get("GPU", 0), "memory (GiB)": round(have.get("memory", 0) / 2**30), "nodes": nodes}


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _heads() -> list[dict[str, float]]:
    """The resources of the head, which no autoscaler adds or takes away."""
    return [node["Resources"] for node in _alive() if ON_THE_HEAD.keys() <= node["Resources"].keys()]


def _reachable() -> dict[str, float]:
    """The resources the cluster has, or those that its autoscaler can bring it to."""
    reach, limits = dict(ray.cluster_resources()), _autoscaler_limits()
    if limits is not None:
        for name in _NAMES:
            reach[name] = max(reach.get(name, 0), sum(head.get(name, 0) for head in _heads()) + limits.reach(name))
    return reach


@functools.cache
def _autoscaler_limits() -> AutoscalerLimits | None:
    """The limits of the autoscaler, asked for once a connection; None where there is none, as in a cluster that this process started."""
    if _is_own():
        return None
    asked = ray.remote(num_cpus=0, resources=ON_THE_HEAD)(limits_at_head)
    found: AutoscalerLimits | None = ray.get(asked.remote())
    return found


def _is_own() -> bool:
    """Whether this process started the cluster."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def last_line(error: BaseException) -> str:
    """The last line of an error, which says what Ray's long messages come to."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
