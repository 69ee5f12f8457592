"""A model that reads the network: it is refused without one, and the network is part of its trials' ids and of no other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.cli.options import load_study
from stlab.errors import StudyError
from stlab.execution.noop_variants import refuse_noop_variants
from stlab.execution.run_study import plan_study
from stlab.inference import load_saved, load_trial
from stlab.inspection.why import why_new
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.plan import Plan, PlannedTrial
from stlab.training import run_trial

MODEL = '''
from dataclasses import dataclass

import torch
from torch import nn

from stmodels.base import Forecaster
from stmodels.config import ModelConfig
from stmodels.types import Forecast


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(ModelConfig):
    """The last reading, and what is left of the neighbours' mean."""

    MODEL = "Neighbours"
    NEEDS = ("network",)

    name: str = "neighbours"


class Neighbours(Forecaster):
    def __init__(self, config, info):
        super().__init__()
        self.horizon = info.horizon
        walk = info.adjacency / info.adjacency.sum(1, keepdim=True).clamp_min(1e-9)
        self.register_buffer("walk", walk, persistent=False)
        self.share = nn.Parameter(torch.empty(info.horizon))

    def reset_parameters(self):
        nn.init.normal_(self.share, std=0.1)

    def forward(self, batch):
        last = batch.history[:, -1]
        moved = torch.einsum("nm,bmc->bnc", self.walk, last) - last
        return Forecast(last[:, None] + self.share[:, None, None] * moved[:, None])
'''

STUDY = """\
name: net
base:
  data: {path: net.npz, family: sensors, history: 4, horizon: 3}
  model: {name: ./neighbours.py:NeighboursConfig}
  train: {max_epochs: 2, warmup_epochs: 0, lr: 1.0e-2}
  resources: {gpus: 0}
variants:
  graph: {}
  lstm: {model: {name: lstm}}
seeds: [0]
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The study's plan, with fields of its data."""
    monkeypatch.chdir(tmp_path)
    steps = np.arange(300)
    values = 50 + 10 * np.sin(steps / 4)[:, None] + np.random.default_rng(0).normal(0, 2, (300, 5))
    np.savez("net.npz", data=values[..., None].astype(np.float32))
    Path("neighbours.py").write_text(MODEL)
    Path("net.yaml").write_text(STUDY)
    Path("edges.csv").write_text("from,to,cost\n0,1,5\n1,2,9\n3,4,2\n")

    def make(**data: Any) -> Plan:
        spec, source = load_study("net.yaml", [f"data.{name}={value}" for name, value in data.items()])
        return plan_study(spec, source)

    return make


def by_variant(plan: Plan) -> dict[str, PlannedTrial]:
    return {trial.spec.variant: trial for trial in plan.trials}


def test_a_model_that_needs_a_network_is_refused_without_one(plan: Callable[..., Any]) -> None:
    with pytest.raises(StudyError, match=r"neighbours.py:NeighboursConfig needs a network.*data.distances.*correlation"):
        plan()


def test_the_network_is_part_of_the_ids_of_those_that_read_it(plan: Callable[..., Any]) -> None:
    given, by_hand = by_variant(plan(distances="edges.csv")), by_variant(plan(distances="edges.csv", graph="connection"))
    near, alike = by_variant(plan(distances="edges.csv", graph="gaussian")), by_variant(plan(graph="correlation"))
    assert by_hand["graph"].trial_id == given["graph"].trial_id, "the weights count, not how they were made"
    assert len({made["graph"].trial_id for made in (given, near, alike)}) == 3
    others = {name for name in given if name != "graph"}
    assert len(others) > 3, "baselines, too"
    assert all(made[name].trial_id == given[name].trial_id for made in (near, alike) for name in others)


def test_it_trains_is_saved_and_told_apart(plan: Callable[..., Any], tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    trial = by_variant(plan(distances="edges.csv"))["graph"]
    directory = TrialDirectory(store, trial.trial_id)
    assert run_trial(trial.spec, trial.identity, directory, test=True) is TrialStatus.FINISHED
    loaded = load_trial(store, trial.trial_id)
    loaded.save(tmp_path / "saved")
    history = np.random.default_rng(1).normal(50, 9, (2, 4, 5, 1)).astype(np.float32)
    torch.testing.assert_close(load_saved(tmp_path / "saved").predict(history), loaded.predict(history))
    near = plan(distances="edges.csv", graph="gaussian")
    told = why_new(near, by_variant(near)["graph"].trial_id, store)
    assert [difference.what for difference in told.differences] == ["network"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ('Stage("1st", 2)', "a name of its own"),
        ('Stage("a", 2), Stage("a", 2)', "a name of its own"),
        ('Stage("a", 0)', "has 0 epochs"),
        ('Stage("a", 2, {"patience": 3})', "changes train.patience"),
        ('Stage("a", 2, {"lr": -1.0})', "lr"),
        ('Stage("a", 2, {"schedule": "plateau"})', "no validation"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused_before_anything_trains(plan: Callable[..., Plan], stages: str, words: str) -> None:
    text = MODEL.replace("import ModelConfig", "import ModelConfig, Stage")
    name = '    name: str = "neighbours"\n'
    Path("neighbours.py").write_text(text.replace(name, f"{name}\n    def stages(self):\n        return ({stages},)\n"))
    with pytest.raises(StudyError, match=words):
        plan(graph="correlation")


def test_a_curriculum_that_does_not_end_is_refused(plan: Callable[..., Plan]) -> None:
    spec, source = load_study("net.yaml", ["data.graph=correlation", "train.curriculum_epochs=1"])
    with pytest.raises(StudyError, match=r"never covers all 3 steps of the horizon in train\.max_epochs=2"):
        plan_study(spec, source)


def test_variants_that_differ_in_what_comes_before_the_training_are_no_twins(plan: Callable[..., Plan]) -> None:
    """A longer pre-training changes neither parameters nor forecast nor the first step."""
    text = MODEL.replace("import ModelConfig", "import ModelConfig, Stage")
    field = '    name: str = "neighbours"\n    epochs: int = 1\n\n    def stages(self):\n        return (Stage("early", self.epochs),)\n'
    Path("neighbours.py").write_text(text.replace('    name: str = "neighbours"\n', field))
    more = "variants={short: {}, long: {model.epochs: 9}}"
    spec, source = load_study("net.yaml", ["data.graph=correlation", more])
    made = plan_study(spec, source)
    refuse_noop_variants(made)
    assert len({trial.trial_id for trial in made.trials if not trial.spec.baseline}) == 2


def test_references_stand_once_whatever_the_graph(plan: Callable[..., Plan]) -> None:
    """And they are planned from the data as the variants read them, so that no file is read twice."""
    graphs = "variants={near: {data.graph: correlation}, far: {data.graph: correlation, data.graph_neighbours: 1}}"
    spec, source = load_study("net.yaml", [graphs])
    references = [trial for trial in plan_study(spec, source).trials if trial.spec.baseline]
    assert len({trial.spec.variant for trial in references}) == len(references) > 1
    assert {trial.spec.data.graph for trial in references} == {"correlation"}


_NAME = '    name: str = "neighbours"\n'


def _with(addition: str) -> None:
    path = Path("neighbours.py")
    path.write_text(path.read_text().replace(_NAME, f"{_NAME}{addition}"))


def test_a_model_that_needs_whole_batches_has_one_worker(plan: Callable[..., Plan]) -> None:
    _with('    WHOLE_BATCHES = "its norm sees all windows"\n')
    assert plan(graph="correlation")
    Path("net.yaml").write_text(STUDY.replace("{gpus: 0}", "{gpus: 0, workers: 2}"))
    with pytest.raises(StudyError, match=r"resources\.workers=2 would share out the batches of .*: its norm sees all windows"):
        plan(graph="correlation")


def test_a_model_that_reads_further_back_than_the_data_reach_is_refused(plan: Callable[..., Plan]) -> None:
    _with("\n    def past(self, info):\n        return 5000\n")
    with pytest.raises(StudyError, match="reads 5000 steps before the history of 4"):
        plan(graph="correlation")


def test_a_model_that_reads_further_back_than_the_train_segment_reaches_is_refused(plan: Callable[..., Plan]) -> None:
    _with("\n    def past(self, info):\n        return 100\n")
    assert plan(graph="correlation")
    with pytest.raises(StudyError, match="reads 100 steps before each window, and the train segment of 90 steps has no window after"):
        plan(graph="correlation", train_ratio=0.5)
