"""What a model prepares from the train segment is computed once for all trials that would compute the same, and for no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from stlab.data import load_dataset
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from stlab.training.prepared import prepared_path

MODEL = '''
from dataclasses import dataclass

import torch
from torch import nn

from stmodels.base import Forecaster
from stmodels.config import ModelConfig
from stmodels.types import Forecast


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(ModelConfig):
    """A share of the mean of the train segment, to a power."""

    MODEL = "Profile"

    name: str = "profile"
    power: float = 1.0
    start: float = 0.5
    wrong: bool = False

    def prepared_from(self):
        return {"power": self.power, "wrong": self.wrong}


class Profile(Forecaster):
    def __init__(self, config, info):
        super().__init__()
        self.config, self.horizon = config, info.horizon
        self.register_buffer("level", torch.zeros(info.shape))
        self.share = nn.Parameter(torch.empty(1))

    def reset_parameters(self):
        nn.init.constant_(self.share, self.config.start)

    def prepare(self, train):
        calls = __import__("pathlib").Path("calls.txt")
        calls.write_text(calls.read_text() + f"{len(train.values)}\\n" if calls.exists() else f"{len(train.values)}\\n")
        level = train.values.mean(0) ** self.config.power
        return {"level": level[:1] if self.config.wrong else level}

    def forward(self, batch):
        value = (self.share * self.level).expand(len(batch.start), self.horizon, *self.level.shape)
        return Forecast(value)
'''

MakeTrial = Callable[..., TrialSpec]


@pytest.fixture
def run(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialSpec]:
    monkeypatch.chdir(tmp_path)
    Path("means.py").write_text(MODEL)

    def call(trial_id: str, model: dict[str, object] | None = None, **changes: object) -> TrialSpec:
        trial = make_trial(model={"name": "./means.py:ProfileConfig", **(model or {})}, max_epochs=2, **changes)
        assert run_trial(trial, {}, TrialDirectory(Store("runs"), trial_id), test=True) is TrialStatus.FINISHED
        return trial

    return call


def _calls() -> list[str]:
    return Path("calls.txt").read_text().split()


def test_trials_that_differ_elsewhere_share_it(run: Callable[..., TrialSpec]) -> None:
    first = run("a")
    run("b", seed=1)
    run("c", {"start": 0.1}, lr=0.1)
    assert _calls() == ["168"], "70 % of 240 steps"
    run("d", {"power": 2.0})
    run("e", data={"train_ratio": 0.5})
    assert _calls() == ["168", "168", "84"]
    dataset = load_dataset(first.data)
    expected = torch.from_numpy(dataset.scaler.transform(dataset.train.values.astype(np.float64)).mean(0)).float()
    kept = safetensors.torch.load_file(next(Path("runs/trials/a/checkpoint").glob("*/weights.safetensors")))
    torch.testing.assert_close(kept["level"], expected)


def test_a_damaged_file_is_made_again(run: Callable[..., TrialSpec]) -> None:
    trial = run("a")
    path = prepared_path(trial, load_dataset(trial.data), None)
    assert path is not None
    Path("runs", path).write_bytes(b"cut short")
    run("b", seed=1)
    assert _calls() == ["168", "168"]


def test_what_does_not_fit_is_told(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("means.py").write_text(MODEL)
    trial = make_trial(model={"name": "./means.py:ProfileConfig", "wrong": True})
    directory = TrialDirectory(Store("runs"), "a")
    assert run_trial(trial, {}, directory, test=False) is TrialStatus.FAILED
    reason = (directory.read("failed.json") or {})["reason"]
    assert "Profile.prepare gives level (1, 4, 4); the model has (2, 4, 4)" in reason
