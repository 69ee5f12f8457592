"""Trials that fail by themselves, in real workers: a bug, a step that hangs, a lack of memory; on one worker, and on one of two.

The LSTM is made to do so where it has a certain width, in the workers that Ray starts. Nor do these find each other at first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from stlab.execution.run_study import plan_study
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.file import parse
from stlab.study.source import StudySource
from stlab.training import run_trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SABOTAGE = '''\
"""Python runs this at the start of every process that finds it; only Ray's workers are meant."""
import importlib.abc, importlib.util, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in SABOTAGED:
            return None
        sabotage = SABOTAGED.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            sabotage(module)
        spec.loader.exec_module = exec_module
        return spec

def start(dist):
    """The first worker that looks for the others does not find them, in the first group of either size."""
    init = dist.init_process_group

    def refused(*args, **kwargs):
        try:
            os.close(os.open(f"{os.environ['STLAB_TEST_REFUSED']}{kwargs['world_size']}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return init(*args, **kwargs)
        raise RuntimeError("Gloo connectFullMesh failed with: Connection refused")

    if "STLAB_TEST_REFUSED" in os.environ:
        dist.init_process_group = refused

def step(lstm):
    model = lstm.LSTMForecaster
    import torch
    import torch.distributed as dist
    forward = model.forward

    def faulty(self, batch):
        self.calls = call = getattr(self, "calls", 0) + 1
        of_two = dist.is_initialized() and dist.get_world_size() > 1
        if self.training and (not of_two or dist.get_rank() == 1):
            if self.config.hidden == 5 and call == 3:
                raise ZeroDivisionError("a bug [/home/user/model.py:5]")
            if self.config.hidden == 6 and call == 3:
                time.sleep(1e4)
            if self.config.hidden == 7 and len(batch.start) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(self, batch)

    model.forward = faulty

SABOTAGED = {"stmodels.series.lstm": step, "torch.distributed": start}
if any("default_worker.py" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Finder())
'''
BATCH = 64
HANG_SECONDS = 8
"""After which a step that has not ended counts as hanging: longer than one takes on a busy machine."""
WIDTHS = {"bug": 5, "hang": 6, "memory": 7, "sound": 4}
"""Hidden units, by which the sabotage knows a variant."""


def _study() -> dict[str, Any]:
    """Every variant on one worker and on two; another learning rate makes other trials of the latter."""
    return {
        "name": "faults",
        "base": {
            "data": {"path": "net.npz", "family": "sensors"},
            "model": {"name": "lstm"},
            "train": {"max_epochs": 2, "warmup_epochs": 0, "batch_size": BATCH, "step_timeout": HANG_SECONDS},
            "resources": {"gpus": 0, "infrastructure_retries": 0},
        },
        "variants": {
            f"{name} {workers}": {"model": {"hidden": width}, "train": {"lr": 0.001 * workers}, "resources": {"workers": workers}}
            for name, width in WIDTHS.items()
            for workers in (1, 2)
        },
        "baselines": [],
        "seeds": [0],
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(stlab: Any) -> tuple[Any, pd.DataFrame]:
    """What the command said, and the table of its study.

    Slow: eight trials in groups that begin anew after each fault, on a Ray of their own, whose workers inherit the sabotage.
    """
    folder: Path = stlab.folder
    steps = np.arange(400)
    wave = 50 + 10 * np.sin(2 * np.pi * steps / 24)[:, None] + np.random.default_rng(0).normal(0, 1, (len(steps), 4))
    hours = np.datetime64("2024-01-01", "s") + steps * np.timedelta64(3600, "s")
    np.savez(folder / "net.npz", data=wave[..., None].astype(np.float32), timestamps=hours)
    (folder / "sabotage").mkdir()
    (folder / "sabotage" / "sitecustomize.py").write_text(SABOTAGE)
    (folder / "faults.yaml").write_text(yaml.safe_dump(_study()))
    paths = [str(folder / "sabotage"), *filter(None, [os.environ.get("PYTHONPATH")])]
    stlab.variables |= {"PYTHONPATH": os.pathsep.join(paths), "STLAB_TEST_REFUSED": str(folder / "refused")}
    answer = stlab("run", "faults.yaml", "--storage", "runs", timeout=900)
    assert answer.code == 1, answer
    table = pd.read_parquet(folder / "runs" / "studies" / "faults" / "results" / "trials.parquet")
    return answer, table.set_index("variant")


workers_each = pytest.mark.parametrize("workers", [1, 2], ids=["one worker", "two workers"])


@workers_each
def test_the_study_ends_with_the_rest(ran: Any, workers: int) -> None:
    _, rows = ran
    expected = {"bug": "failed", "hang": "failed", "memory": "finished", "sound": "finished"}
    assert {name: rows.status[f"{name} {workers}"] for name in WIDTHS} == expected, list(rows.error)
    assert rows.loc[[f"memory {workers}", f"sound {workers}"], "test_mae"].notna().all()


@workers_each
def test_workers_that_do_not_find_each_other_are_started_anew(ran: Any, stlab: Any, workers: int) -> None:
    """What the first of them held of the cluster is free again: of two workers, it was all there is."""
    answer, _ = ran
    assert (stlab.folder / f"refused{workers}").exists()
    assert "worker group " not in answer.out


@workers_each
def test_a_bug_is_told_with_the_end_of_its_log(ran: Any, workers: int) -> None:
    answer, rows = ran
    assert rows.error[f"bug {workers}"] == "ZeroDivisionError: a bug [/home/user/model.py:5]"
    assert rows.error[f"bug {workers}"] in answer.out
    assert 'raise ZeroDivisionError("a bug [/home/user/model.py:5]")' in answer.out


@workers_each
def test_a_step_that_hangs_is_told_with_where(ran: Any, workers: int) -> None:
    answer, rows = ran
    words = f"a step hung: in epoch 1, after step 2, none ended for {HANG_SECONDS} s (train.step_timeout)"
    assert words in rows.error[f"hang {workers}"]
    if workers == 1:
        assert "time.sleep(1e4)" in answer.out, "the stack of what hangs; of two workers the first tells, which waits for the other"


@workers_each
def test_a_lack_of_memory_is_met_with_smaller_parts_of_the_same_batch(
    ran: Any, stlab: Any, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved more often than the infrastructure may fail; the figures are those of a run that had memory enough, in this process."""
    _, rows = ran
    row = rows.loc[f"memory {workers}"]
    assert row.micro_batch == 2
    assert "out of memory" in row.notes
    assert rows.micro_batch[f"sound {workers}"] == BATCH / workers
    monkeypatch.chdir(stlab.folder)
    plan = plan_study(parse(StudySource.from_text(yaml.safe_dump(_study()))))
    (trial,) = (trial for trial in plan.trials if trial.spec.variant == f"memory {workers}")
    assert trial.trial_id == row.trial_id
    enough = TrialDirectory(Store(tmp_path), trial.trial_id)
    assert run_trial(trial.spec, trial.identity, enough, test=True) is TrialStatus.FINISHED
    undivided = enough.row()
    assert undivided["micro_batch"] == BATCH
    for column in ("val_mae", "val_rmse", "test_mae", "test_rmse"):
        assert row[column] == pytest.approx(undivided[column], rel=1e-5)
