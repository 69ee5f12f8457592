"""The cluster: reaching it, or starting one on this machine, and what it can run at once."""

from __future__ import annotations

import contextlib
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
from stlab.execution.quota import limits, needs
from stlab.execution.ray import SETTINGS, token
from stlab.spec import ResourcesSpec

logger = logging.getLogger(__name__)

ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""A sliver of what every head has: for what must outlive all other nodes."""
_STARTS = 4  # tries to start Ray on this machine


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
    try:
        _start(address, options)
        yield
    finally:
        ray.shutdown()


def _settings() -> dict[str, str]:
    """What our processes on a cluster, which others started, are to have in their environment; on one of our own they inherit it."""
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
    """What to do where the cluster has another Ray or Python, which is what Ray ``said``."""
    there = dict(re.findall(r"(Ray|Python): (\S+)", said.partition("This process")[0]))
    return (
        f"the cluster at {address} has Ray {there.get('Ray', '?')} and Python {there.get('Python', '?')}; here are Ray "
        f"{ray.__version__} and Python {platform.python_version()}. Both must be the same on both sides: here pip install "
        f"ray=={there.get('Ray', 'VERSION')} in an environment of the cluster's Python, or run stlab on a node of the cluster."
    )


def with_gpus(resources: ResourcesSpec) -> ResourcesSpec:
    """``gpus`` decided: one a worker where the cluster has any (now or after scaling up), else none."""
    if resources.gpus is not None:
        return resources
    return resources.model_copy(update={"gpus": 1.0 if _reachable().get("GPU", 0) > 0 else 0.0})


def slots(resources: ResourcesSpec) -> int:
    """How many trials with these resources the cluster runs at once, now, within the study's quota.

    Raises:
        ResourceError: not even one fits, nor would it after scaling up; names the resource.
    """
    quota, group = limits([resources]), needs(resources)
    for name, most in quota.items():
        if group[name] > most:
            raise ResourceError(
                f"a trial takes {group[name]:g} {name}, and resources.max_{name.lower()}s is {most:g}. Raise it, or lower "
                f"resources.{name.lower()}s or resources.workers."
            )
    worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    have, reach = ray.cluster_resources(), _reachable()
    for name, amount in worker.items():
        wanted = amount * resources.workers
        field = f"resources.{name.lower()}s"
        if reach.get(name, 0) < wanted:
            raise ResourceError(
                f"a trial asks for {wanted:g} {name} ({field}={amount:g} × resources.workers={resources.workers}); the cluster has "
                f"{have.get(name, 0):g} and can grow to {reach.get(name, 0):g}. Lower {field} or resources.workers, or add nodes."
            )
    largest = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    grows = any(reach.get(name, 0) > have.get(name, 0) for name in worker)
    if not grows and not any(all(node.get(name, 0) >= amount for name, amount in worker.items()) for node in largest):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        raise ResourceError(
            f"a worker asks for {asked}, and no single node has that. Lower resources.cpus or resources.gpus; a worker lives on one node."
        )
    free = {name: min(have.get(name, 0), quota.get(name, math.inf)) for name in worker}
    return max(1, min(int(free[name] // (amount * resources.workers)) for name, amount in worker.items()))


def cluster_amounts() -> dict[str, float]:
    """CPUs, GPUs, memory (GiB) and nodes of the connected cluster, as they are shown."""
    have = ray.cluster_resources()
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return {"CPU": have.get("CPU", 0), "GPU": have.get("GPU", 0), "memory (GiB)": round(have.get("memory", 0) / 2**30), "nodes": nodes}


def _reachable() -> dict[str, float]:
    """What the cluster has, or what its autoscaler can bring it to."""
    have = dict(ray.cluster_resources())
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(have.get(name, 0), most.get(name, 0)) for name in have.keys() | most.keys()}


def last_line(error: BaseException) -> str:
    """What Ray's long messages come to."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
