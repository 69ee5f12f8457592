"""Packs: the trials that each worker group of a study runs, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stlab.study.plan import PlannedTrial
from stlab.study.spec import ResourcesSpec


@dataclass(frozen=True)
class Pack:
    """Trials with the same resources that one worker group runs one after another."""

    resources: ResourcesSpec
    trials: tuple[PlannedTrial, ...]

    @property
    def cost(self) -> float:
        return sum(trial.cost for trial in self.trials)


def make_packs(trials: Sequence[PlannedTrial], slots: Mapping[ResourcesSpec, int]) -> list[Pack]:
    """Distribute trials over as many packs as worker groups can run at once.

    The costliest trials are assigned first, each to the pack with the lowest cost so far, so that all packs end at about the same time.
    Baselines take seconds and come first in their pack. The cheapest trial follows, so that a study soon has a first trained row, and
    then the others from the costliest on.

    Args:
        slots: the number of worker groups that the cluster can run at once, for each kind of resources.
    """
    packs: list[Pack] = []
    for resources in dict.fromkeys(trial.spec.resources for trial in trials):
        alike = [trial for trial in trials if trial.spec.resources == resources]
        shares: list[list[PlannedTrial]] = [[] for _ in range(min(max(1, slots[resources]), len(alike)))]
        for trial in sorted(alike, key=lambda t: -t.cost):
            min(shares, key=lambda share: (sum(t.cost for t in share), len(share))).append(trial)
        packs += [Pack(resources, tuple(_in_order(share))) for share in shares]
    return packs


def _in_order(share: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    baselines = [trial for trial in share if trial.spec.baseline]
    trained = sorted((trial for trial in share if not trial.spec.baseline), key=lambda trial: -trial.cost)
    return [*baselines, *trained[-1:], *trained[:-1]]
