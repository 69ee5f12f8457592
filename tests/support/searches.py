"""A search whose trials are a known function of their point, so that nothing has to be trained."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from stlab.execution.run_search import checked
from stlab.search.history import Entry
from stlab.search.study import BranchSearch
from stlab.storage import Store, TrialDirectory
from stlab.study.file import parse
from stlab.study.plan import DataFacts, Plan, PlannedTrial, make_plan
from stlab.study.source import StudySource
from stlab.study.spec import DataSpec
from stmodels.types import SeriesInfo

STUDY = """\
name: bikes
base:
  data: {path: grid.npz}
  model: {name: st_vfm, backbone: vit_test, weights: random}
search:
  space:
    train.lr: {float: [1.0e-5, 1.0e-1], log: true}
    model.flow_weight: {float: [0.0, 2.0]}
  startup_trials: 5
  max_trials: 25
baselines: []
"""
CONDITIONAL = "search.space={model.rank: {int: [2, 64], log: true, when: {model.peft: lora}}, model.peft: {categorical: [adapter, lora]}}"


def facts(data: DataSpec) -> DataFacts:
    info = SeriesInfo("grid", (2, 16, 8), data.history, data.horizon, 24, 0.1, 5, 0.1, -1.0, 900)
    return DataFacts("bikes", hashlib.sha256(data.path.encode()).hexdigest(), False, False, {"family": "grid"}, info)


def planned(*overrides: str, text: str = STUDY) -> Plan:
    source = StudySource.from_text(text, "study.yaml", overrides)
    plan = make_plan(parse(source), facts, source)
    return checked(plan, source)


def searching(store: Store, plan: Plan) -> BranchSearch:
    return BranchSearch(store, plan.study, plan.branches[0])


def value_of(point: dict[str, Any]) -> tuple[float, float]:
    """A quadratic bowl around lr 1e-3, λ 0.5; the second objective falls as the first grows."""
    error = (math.log10(point.get("train.lr", 1e-3)) + 3) ** 2 + (point.get("model.flow_weight", 0.5) - 0.5) ** 2
    return error, 10.0 / (1.0 + error)


def finish(directory: TrialDirectory, point: dict[str, Any], seconds: float | None = None) -> None:
    """A trial's directory as if it had been trained: three epochs, the last the best."""
    error, cost = value_of(point)
    directory.write_trial({})
    directory.write_epochs([{"epoch": e, "val_rmse": error + 3 - e, "val_mae": error, "seconds": 1.0} for e in (1, 2, 3)])
    directory.write_result({"val_rmse": error, "val_mae": error, "device_seconds": seconds or cost})


def asked(search: BranchSearch) -> tuple[Entry | None, PlannedTrial | None]:
    """The next point of a search on one data set and its trial; None in place of what there is not."""
    entry, trials = search.next(0.0) or (None, [])
    assert len(trials) <= 1
    return entry, next(iter(trials), None)


def step(search: BranchSearch, upto: str = "tell") -> bool:
    """One trial of a search, up to the moment it is killed at: `ask`, `finish` or `tell`. Whether there was one."""
    entry, trial = asked(search)
    if entry is None:
        return False
    if trial is None:
        search.tell(entry.number)
        return True
    if upto != "ask":
        finish(TrialDirectory(search.history.store, trial.trial_id), entry.params)
    if upto == "tell":
        search.tell(entry.number)
    return True
