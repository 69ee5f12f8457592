"""Helpers for tests of a trial: compare two trials, count steps, stop, kill or damage one, and see what it really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import Tensor

from stlab.storage import TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training.step import OptimiserStep
from tests.support.warm_processes import start_python

TIMES = {
    "seconds", "samples_per_second", "wall_seconds", "device_seconds", "peak_memory_bytes", "started_at", "tested_at", "files",
}  # fmt: skip


def timeless(row: Any, notes: bool = True) -> dict[str, Any]:
    """The fields that two runs of one trial have in common. ``notes``: whether the user's notes are among them."""
    assert row
    return {name: value for name, value in row.items() if name not in TIMES and (notes or name != "notes")}


def assert_same_numbers(one: TrialDirectory, other: TrialDirectory, notes: bool = True) -> None:
    """Compare to the last digit: every epoch's row, the result, the test, every forecast, the selected weights."""
    assert [timeless(row) for row in one.read_epochs()] == [timeless(row) for row in other.read_epochs()]
    for name in ("result.json", "test.json"):
        assert timeless(one.read(name), notes) == timeless(other.read(name), notes)
    predictions = one.read_predictions()
    assert predictions is not None
    assert predictions.equals(other.read_predictions())
    best = "checkpoint/best.safetensors"
    assert one.store.read(f"{one.prefix}/{best}") == other.store.read(f"{other.prefix}/{best}")


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every optimiser step from now on appends its number of windows."""
    made: list[int] = []
    step = OptimiserStep.__call__

    def counted(self: OptimiserStep, index: Tensor, *rest: Any, **more: Any) -> Any:
        made.append(len(index))
        return step(self, index, *rest, **more)

    monkeypatch.setattr(OptimiserStep, "__call__", counted)
    return made


class Notice:
    """Says stop from the ``at``-th question on."""

    def __init__(self, at: int) -> None:
        self.at, self.asked = at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.at


def damage(directory: TrialDirectory, file: str, how: str) -> bytes:
    """Damage a file of a trial; returns the content that is left."""
    path = Path(directory.store.path(f"{directory.prefix}/{file}"))
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
        return b""
    middle = len(content) * 3 // 4
    left = {
        "halved": content[: len(content) // 2],
        "emptied": b"",
        "zeros": bytes(len(content)),
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[how]
    path.write_bytes(left)
    return left


def whole_checkpoints(directory: TrialDirectory) -> list[str]:
    """Names of the checkpoints whose writing was not cut short, the newest last."""
    prefix = f"{directory.prefix}/checkpoint"
    names = [name for name in directory.store.names(prefix) if name.replace(".", "", 1).isdigit()]
    return [name for name in names if directory.store.exists(f"{prefix}/{name}/state.json")]


WORKER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec
from stlab.training import run_trial

class Stopping(Store):
    def write(self, relative, content):
        if relative.endswith(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGSTOP)
        super().write(relative, content)

trial = TrialSpec.model_validate_json(sys.argv[1])
print(run_trial(trial, {}, TrialDirectory(Stopping(sys.argv[2]), "a"), test=True))
"""


def train_until_killed(trial: TrialSpec, directory: TrialDirectory, file: str) -> None:
    """Train in a process of its own, which is killed just before it writes a certain file."""
    worker = start_python(["-c", WORKER, trial.model_dump_json(), directory.store.location, file], Path.cwd())
    try:
        worker.wait_until_stopped()
    finally:
        worker.kill()
    assert worker.wait() == -9, worker.communicate()
    assert directory.status() is TrialStatus.STARTED


def saved_seconds(storage: Path) -> dict[str, list[float]]:
    """Trial → seconds of each epoch that its newest checkpoint has; a trial that has ended has all of its epochs."""
    saved: dict[str, list[float]] = {}
    for state in storage.glob("trials/*/checkpoint/*/state.json"):
        try:
            rows = json.loads(state.read_text())["progress"]["rows"]
        except FileNotFoundError:
            continue  # a newer one is there
        trial = state.parents[2].name
        saved[trial] = max(saved.get(trial, []), [row["seconds"] for row in rows], key=len)
    return saved


def assert_went_on(storage: Path, saved: dict[str, list[float]]) -> None:
    """No epoch of these checkpoints was trained again. If it had been, its seconds would differ in some digit."""
    assert any(saved.values()), "no checkpoint to go on from"
    for trial, seconds in saved.items():
        epochs = pd.read_parquet(storage / "trials" / trial / "epochs.parquet")
        assert epochs["epoch"].tolist() == list(range(1, len(epochs) + 1))
        assert epochs["seconds"].tolist()[: len(seconds)] == seconds, f"{trial} began anew"
