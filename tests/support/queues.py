"""Trial queues over packs of trials that are known by their ids alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from stlab.execution.queue import TrialQueue
from stlab.execution.supply import PackSupply
from stlab.study.packs import Pack
from stlab.study.plan import PlannedTrial
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec


def pack_queue(packs: Sequence[Sequence[str]], resources: ResourcesSpec) -> TrialQueue:
    """A queue whose worker groups have these resources, each with a pack of trials."""
    spec = TrialSpec(
        study="queue", variant="full", seed=0, data=DataSpec(path="synthetic:city"), model={"name": "st_vfm"}, train=TrainSpec(),
        resources=resources,
    )  # fmt: skip
    made = [Pack(resources, tuple(PlannedTrial(spec, trial_id, {}) for trial_id in pack)) for pack in packs]
    return TrialQueue(functools.partial(PackSupply, made))
