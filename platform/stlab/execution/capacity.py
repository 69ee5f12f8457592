"""How many worker groups run at once: within the study's quota, on this machine, and on a cluster before and after it scales up."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stlab.study.spec import ResourcesSpec

Resources = Mapping[str, float]
"""Amounts by Ray's names, ``CPU`` and ``GPU``."""

_ROUNDING = 1e-9


def needs(resources: ResourcesSpec) -> dict[str, float]:
    """The amounts that one worker group takes."""
    return {"CPU": resources.cpus * resources.workers, "GPU": (resources.gpus or 0.0) * resources.workers}


def quota_of(wanted: Iterable[ResourcesSpec]) -> dict[str, float]:
    """``resources.max_cpus`` and ``max_gpus`` by Ray's names; the smallest where the trials of a study differ in them."""
    wanted = list(wanted)
    found = {"CPU": [r.max_cpus for r in wanted], "GPU": [r.max_gpus for r in wanted]}
    return {name: min(given) for name, values in found.items() if (given := [v for v in values if v is not None])}


class Quota:
    """Decides which worker groups may start: those that together stay below the limits."""

    def __init__(self, groups: Sequence[Resources], most: Resources) -> None:
        self._groups, self._most = groups, most
        self._inside: set[int] = set()

    def admit(self, group: int) -> bool:
        """Let a group in if it fits beside those that are in already; asking again changes nothing."""
        inside = self._inside | {group}
        if any(sum(self._groups[g].get(name, 0.0) for g in inside) > most + _ROUNDING for name, most in self._most.items()):
            return False
        self._inside = inside
        return True

    def leave(self, group: int) -> None:
        """The group has ended; another may start."""
        self._inside.discard(group)


def workers_on(node: Resources, worker: Resources) -> int:
    """How many workers one node has room for."""
    return min(int(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in worker.items())


def groups_here(resources: ResourcesSpec) -> int:
    """How many trials with these resources this machine runs at once, within the study's quota; at least one."""
    import torch

    gpus = torch.cuda.device_count()
    if resources.gpus is None:
        resources = resources.model_copy(update={"gpus": 1.0 if gpus else 0.0})
    have = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}
    allowed = {name: min(have[name], most) for name, most in quota_of([resources]).items()}
    return max(1, workers_on(have | allowed, {name: amount for name, amount in needs(resources).items() if amount}))


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may add."""

    resources: Resources
    """The resources of one such node."""
    most: float
    """How many of them there may be at once."""


@dataclass(frozen=True)
class AutoscalerLimits:
    """How far an autoscaler may scale a cluster up, beside its head."""

    types: tuple[NodeType, ...] = ()
    most: float = math.inf
    """How many nodes of all types together there may be."""
    is_known: bool = True
    """Whether the above is complete. Where it is not, an autoscaler is at work that does not tell its limits."""

    def reach(self, name: str) -> float:
        """The most there can be of a resource on all nodes that may be added."""
        return self._most(lambda node: node.get(name, 0.0))

    def workers(self, worker: Resources) -> float:
        """How many workers all the nodes that may be added have room for; a worker lives on one node."""
        return self._most(lambda node: workers_on(node, worker))

    def _most(self, value: Callable[[Resources], float]) -> float:
        """The sum of ``value`` over as many nodes as there may be, the best first."""
        total, left = 0.0, self.most
        for node in sorted(self.types, key=lambda t: -value(t.resources)):
            count = min(left, node.most)
            if count > 0 and (each := value(node.resources)) > 0:
                total += each * count
                left -= count
        return total


UNKNOWN_LIMITS = AutoscalerLimits(is_known=False)


def groups_after_scaling_up(limits: AutoscalerLimits, nodes: Sequence[Resources], worker: Resources, size: int) -> float:
    """How many groups of ``size`` workers run at once when a cluster has scaled up as far as it can.

    Args:
        nodes: those that are there and stay beside the ones that may be added: the head.
    """
    workers = sum(workers_on(node, worker) for node in nodes) + limits.workers(worker)
    return workers // size if workers < math.inf else math.inf


def limits_in(config: Mapping[str, Any]) -> AutoscalerLimits:
    """The limits in an autoscaler's configuration, be it of ``ray up`` or as Ray derives it from a RayCluster."""
    total = float(config.get("max_workers", math.inf))
    types = []
    for name, given in config["available_node_types"].items():
        # Ray's own defaults: as many as there may be nodes at all, and no second head.
        most = float(given.get("max_workers", 0 if name == config.get("head_node_type") else total))
        if most > 0:
            types.append(NodeType(dict(given.get("resources") or {}), most))
    # Ray finds out what a cloud's machine has while it makes the cluster; the configuration says nothing of it where that failed.
    return AutoscalerLimits(tuple(types), total, is_known=all(node.resources for node in types))
