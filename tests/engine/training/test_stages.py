"""Trainings in stages: what a stage learns goes on into the next, what is frozen stays, and interruptions leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stlab.catalog import create_config
from stlab.inference import load_trial
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.identity import trial_id
from stlab.study.spec import TrainSpec, TrialSpec
from stlab.training import run_trial

MODEL = '''
from dataclasses import dataclass

import torch
from torch import nn

from stmodels.base import Forecaster
from stmodels.config import ModelConfig, Stage
from stmodels.types import Forecast


@dataclass(frozen=True, kw_only=True)
class CodeConfig(ModelConfig):
    """An autoencoder of the history, whose code is then read by a linear forecast."""

    MODEL = "Code"

    name: str = "code"
    pretrain_epochs: int = 3
    late: bool = False

    def stages(self):
        return (Stage("pretrain", self.pretrain_epochs, {"lr": 0.01, "batch_size": 16}),)


class Code(Forecaster):
    def __init__(self, config, info):
        super().__init__()
        self.config = config
        self.encode = nn.Linear(info.history, 3)
        self.decode = nn.Linear(3, info.history)
        self.read = nn.Linear(3, info.horizon)
        self.dropout = nn.Dropout(0.1)
        if config.late:
            self.read.requires_grad_(False)

    def begin(self, stage):
        super().begin(stage)
        self.encode.requires_grad_(stage == "pretrain")
        self.decode.requires_grad_(stage == "pretrain")
        self.read.requires_grad_(stage == "")

    def forward(self, batch):
        code = self.dropout(self.encode(batch.history.movedim(1, -1)))
        net = self.decode if self.stage == "pretrain" else self.read
        return Forecast(net(code).movedim(-1, 1))

    def loss_terms(self, forecast, batch):
        if self.stage == "pretrain":
            return {"reconstruction": (forecast.value - batch.history).square().mean()}
        return super().loss_terms(forecast, batch)
'''

MakeTrial = Callable[..., TrialSpec]
RunTrial = Callable[..., TrialStatus]


@pytest.fixture
def make(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTrial:
    monkeypatch.chdir(tmp_path)
    Path("autocode.py").write_text(MODEL)

    def call(**model: Any) -> TrialSpec:
        return make_trial(model={"name": "./autocode.py:CodeConfig", **model}, max_epochs=4, warmup_epochs=0, lr=0.02, patience=2)

    return call


def weights(trial_id: str, stage: str = "") -> dict[str, torch.Tensor]:
    folder = Path("runs/trials", trial_id, "checkpoint", stage)
    newest = max(path for path in folder.glob("*/weights.safetensors") if path.parent.name[0].isdigit())
    return safetensors.torch.load_file(newest)


def test_what_a_stage_learnt_goes_on_and_what_is_frozen_stays(make: MakeTrial) -> None:
    trial, store = make(), Store("runs")
    directory = TrialDirectory(store, "a")
    reported: list[int] = []

    def report(event: Any) -> None:
        reported.extend(row["epoch"] for row in event.get("rows", ()))

    assert run_trial(trial, {"data_sha256": None}, directory, test=True, report=report) is TrialStatus.FINISHED
    before, after = weights("a", "pretrain"), weights("a")
    for name in ("encode.weight", "encode.bias", "decode.weight", "decode.bias"):
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=0)
    assert not torch.equal(before["read.weight"], after["read.weight"])
    stage, rows = directory.read_epochs("pretrain"), directory.read_epochs()
    assert [row["epoch"] for row in stage] == [1, 2, 3]
    assert stage[-1]["loss"] < 0.7 * stage[0]["loss"]
    assert stage[0]["lr"] == pytest.approx(0.01, rel=0.3), "its own rate, on a cosine"
    assert reported == [row["epoch"] for row in rows], "only the training that selects is told"
    result = directory.read("result.json") or {}
    assert result["epochs"] == len(rows)
    assert result["wall_seconds"] == pytest.approx(sum(row["seconds"] for row in (*stage, *rows)))
    assert result["trainable_params"] == 6 * 3 + 3 + 3 * 6 + 6 + 3 * 6 + 6, "what any stage trains"


def test_the_pretraining_matters_and_a_loaded_model_has_it(make: MakeTrial) -> None:
    errors = {}
    for epochs in (1, 8):
        directory = TrialDirectory(Store("runs"), str(epochs))
        run_trial(make(pretrain_epochs=epochs), {}, directory, test=True)
        errors[epochs] = (directory.read("test.json") or {})["rmse"]
    assert errors[8] < errors[1]
    # A process that has trained nothing measures the same.
    again = TrialDirectory(Store("runs"), "8")
    Path("runs/trials/8/test.json").unlink()
    assert run_trial(make(pretrain_epochs=8), {}, again, test=True) is TrialStatus.FINISHED
    assert (again.read("test.json") or {})["rmse"] == errors[8]


@pytest.mark.parametrize("steps", [2, 14, 31, 37, 40])
def test_a_trial_that_is_stopped_anywhere_ends_as_one_that_is_not(make: MakeTrial, steps: int) -> None:
    """Eleven steps an epoch in the stage, then six: in its first epoch, in its second, at its end, and in the training."""
    trial = make()
    whole, torn = (TrialDirectory(Store("runs"), name) for name in ("whole", "torn"))
    run_trial(trial, {}, whole, test=True)
    asked = iter([False] * steps + [True] + [False] * 1000)
    assert run_trial(trial, {}, torn, test=True, stop=lambda: next(asked)) is TrialStatus.STARTED
    assert run_trial(trial, {}, torn, test=True) is TrialStatus.FINISHED
    for stage in ("pretrain", ""):
        columns = ("epoch", "step", "loss", "val_rmse", "grad_norm")
        found, expected = ([[row.get(c) for c in columns] for row in d.read_epochs(stage)] for d in (torn, whole))
        assert found == expected
    assert (torn.read("test.json") or {})["rmse"] == (whole.read("test.json") or {})["rmse"]


def test_what_was_built_frozen_is_not_trained_later(make: MakeTrial) -> None:
    directory = TrialDirectory(Store("runs"), "a")
    assert run_trial(make(late=True), {}, directory, test=False) is TrialStatus.FAILED
    assert "Code is built with read.weight frozen and trains it in a stage" in (directory.read("failed.json") or {})["reason"]


def test_a_failure_in_a_stage_names_it(make: MakeTrial) -> None:
    text = Path("autocode.py").read_text()
    Path("autocode.py").write_text(text.replace("(forecast.value - batch.history)", "(forecast.value / 0 - batch.history)"))
    directory = TrialDirectory(Store("runs"), "a")
    assert run_trial(make(), {}, directory, test=False) is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert failure["reason"].startswith("in the stage pretrain: the loss is"), failure["reason"]
    assert failure["epoch"] == 0


def test_a_saved_forecaster_has_what_the_stage_learnt(make: MakeTrial) -> None:
    trial, store = make(), Store("runs")
    directory = TrialDirectory(store, "a")
    assert run_trial(trial, {"dataset": "small", "code_version": "x"}, directory, test=True) is TrialStatus.FINISHED
    loaded = dict(load_trial(store, "a")._model.named_parameters())
    torch.testing.assert_close(loaded["encode.weight"].detach(), weights("a", "pretrain")["encode.weight"], rtol=0, atol=0)


def test_a_stage_has_its_own_loss_and_memory_is_divided_by_its_own_batch(make: MakeTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four windows of the autoencoder: its batch of 16 goes in four parts, that of the training, 32, in as many as it needs."""
    import importlib

    Path("autocode.py").write_text(MODEL.replace('"batch_size": 16}', '"batch_size": 16, "loss": "mse"}'))
    trial = make()
    code = importlib.import_module("stlab.catalog").config_class(trial.model["name"])
    module = __import__("sys").modules[code.__module__]
    forward = module.Code.forward

    def short_of_memory(self: Any, batch: Any) -> Any:
        if self.stage == "pretrain" and len(batch.start) > 4:
            raise MemoryError("no room")
        return forward(self, batch)

    monkeypatch.setattr(module.Code, "forward", short_of_memory)
    directory = TrialDirectory(Store("runs"), "a")
    assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
    notes = " ".join((directory.read("result.json") or {})["notes"])
    assert "with 16 windows at a time; gone on with 8, at the same batch of 16" in notes
    assert "with 8 windows at a time; gone on with 4, at the same batch of 16" in notes
    assert (directory.read("result.json") or {})["micro_batch"] == 8
    assert {row["micro_batch"] for row in directory.read_epochs("pretrain")} == {4}


def test_what_a_stage_reads_is_part_of_the_id(make: MakeTrial) -> None:
    """The steps of a training have no floor; the cosine of its stage has."""
    trial = make()
    ids = set()
    for floor in (0.0, 1e-3):
        train = TrainSpec(**{**trial.train.model_dump(), "schedule": "steps", "milestones": (2,), "min_lr": floor})
        ids.add(trial_id(trial.model_copy(update={"train": train}), create_config(trial.model), "ab"))
    assert len(ids) == 2
