"""How many worker groups fit a cluster that grows by itself: plain arithmetic on what its autoscaler may add."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Resources = Mapping[str, float]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may add."""

    resources: Resources
    """Of one such node, by Ray's names."""
    most: float
    """How many of them there are at once, at the most."""


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may bring a cluster to, beside its head."""

    types: tuple[NodeType, ...] = ()
    most: float = math.inf
    """Nodes of all types together."""
    is_known: bool = True
    """Whether the above is all. Where it is not, an autoscaler is at work and its bounds cannot be had."""

    def reach(self, name: str) -> float:
        """The most there can be of a resource on all nodes that may be added."""
        return self._most(lambda node: node.get(name, 0.0))

    def workers(self, worker: Resources) -> float:
        """How many workers all the nodes that may be added hold at once; a worker lives on one node."""
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


UNKNOWN_GROWTH = Growth(is_known=False)


def workers_on(node: Resources, worker: Resources) -> int:
    """How many workers one node holds."""
    return min(int(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in worker.items())


def groups_after_growth(growth: Growth, nodes: Sequence[Resources], worker: Resources, size: int) -> float:
    """How many groups of ``size`` workers run at once when a cluster has grown as far as it can.

    Args:
        nodes: those that are there and stay beside the ones that may be added: the head.
    """
    workers = sum(workers_on(node, worker) for node in nodes) + growth.workers(worker)
    return workers // size if workers < math.inf else math.inf


def growth_from(config: Mapping[str, Any]) -> Growth:
    """What an autoscaler's configuration (of ``ray up``, or as Ray derives it from a RayCluster) lets it add."""
    total = float(config.get("max_workers", math.inf))
    types = []
    for name, given in config["available_node_types"].items():
        # Ray's own defaults: as many as there may be nodes at all, and no second head.
        most = float(given.get("max_workers", 0 if name == config.get("head_node_type") else total))
        if most > 0:
            types.append(NodeType(dict(given.get("resources") or {}), most))
    # What a cloud's machine has is found out when the cluster is made; where that failed, nothing is said of it.
    return Growth(tuple(types), total, is_known=all(node.resources for node in types))
