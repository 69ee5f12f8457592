"""How much of a cluster one study takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stlab.study.spec import ResourcesSpec


def needs(resources: ResourcesSpec) -> dict[str, float]:
    """What a worker group of these resources takes, by Ray's names."""
    return {"CPU": resources.cpus * resources.workers, "GPU": (resources.gpus or 0.0) * resources.workers}


def limits(wanted: Iterable[ResourcesSpec]) -> dict[str, float]:
    """``resources.max_cpus`` and ``max_gpus`` by Ray's names; where the trials of a study differ in them, the least."""
    wanted = list(wanted)
    found = {"CPU": [r.max_cpus for r in wanted], "GPU": [r.max_gpus for r in wanted]}
    return {name: min(given) for name, values in found.items() if (given := [v for v in values if v is not None])}


class Quota:
    """Which worker groups may start: those that together stay below the limits."""

    def __init__(self, groups: Sequence[Mapping[str, float]], most: Mapping[str, float]) -> None:
        self._groups, self._most = groups, most
        self._inside: set[int] = set()

    def admit(self, group: int) -> bool:
        """Let a group in if it fits beside those that are; asking again changes nothing."""
        inside = self._inside | {group}
        if any(sum(self._groups[g].get(name, 0.0) for g in inside) > most + 1e-9 for name, most in self._most.items()):
            return False
        self._inside = inside
        return True

    def leave(self, group: int) -> None:
        """The group has ended; another may start."""
        self._inside.discard(group)
