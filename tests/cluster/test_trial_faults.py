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

def start(config):
    """The first worker that looks for the others does not find them."""
    init = config.dist.init_process_group

    def refused(*args, **kwargs):
        try:
            os.close(os.open(os.environ["STLAB_TEST_REFUSED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return init(*args, **kwargs)
        raise RuntimeError("Gloo connectFullMesh failed with: Connection refused")

    if "STLAB_TEST_REFUSED" in os.environ:
        config.dist.init_process_group = refused

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

SABOTAGED = {"stmodels.series.lstm": step, "ray.train.torch.config": start}
if any("default_worker.py" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Finder())
'''
BATCH = 64


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def ran(request: pytest.FixtureRequest, stlab: Any) -> tuple[int, Any, pd.DataFrame]:
    """Workers a trial, what the command said, and the table of its study."""
    workers: int = request.param
    folder: Path = stlab.folder
    steps = np.arange(400)
    wave = 50 + 10 * np.sin(2 * np.pi * steps / 24)[:, None] + np.random.default_rng(0).normal(0, 1, (len(steps), 4))
    hours = np.datetime64("2024-01-01", "s") + steps * np.timedelta64(3600, "s")
    np.savez(folder / "net.npz", data=wave[..., None].astype(np.float32), timestamps=hours)
    (folder / "sabotage").mkdir(exist_ok=True)
    (folder / "sabotage" / "sitecustomize.py").write_text(SABOTAGE)
    study = {
        "name": f"faults{workers}",
        "base": {
            "data": {"path": "net.npz", "family": "sensors"},
            "model": {"name": "lstm", "hidden": 4},
            "train": {"max_epochs": 2, "warmup_epochs": 0, "batch_size": BATCH, "step_timeout": 20, "lr": 0.001},
            "resources": {"workers": workers, "gpus": 0, "infrastructure_retries": 0},
        },
        "variants": {
            "bug": {"model": {"hidden": 5}}, "hang": {"model": {"hidden": 6}}, "memory": {"model": {"hidden": 7}}, "sound": {},
        },
        "baselines": [],
        "seeds": [0],
    }  # fmt: skip
    (folder / f"{study['name']}.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(folder / "sabotage"), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("STLAB_TEST_REFUSED", str(folder / f"refused{workers}"))
        answer = stlab("run", f"{study['name']}.yaml", "--storage", f"runs{workers}", timeout=900)
    assert answer.code == 1, answer
    table = pd.read_parquet(folder / f"runs{workers}" / "studies" / str(study["name"]) / "results" / "trials.parquet")
    return workers, answer, table.set_index("variant")


def test_the_study_ends_with_the_rest(ran: Any) -> None:
    _, _, rows = ran
    assert rows.status.to_dict() == {"bug": "failed", "hang": "failed", "memory": "finished", "sound": "finished"}, list(rows.error)
    assert rows.loc[["memory", "sound"], "test_mae"].notna().all()


def test_workers_that_do_not_find_each_other_are_started_anew(ran: Any, stlab: Any) -> None:
    """What the first of them held of the cluster is free again: of two workers, it was all there is."""
    workers, answer, _ = ran
    assert (stlab.folder / f"refused{workers}").exists()
    assert "pack 0" not in answer.out


def test_a_bug_is_told_with_the_end_of_its_log(ran: Any) -> None:
    _, answer, rows = ran
    assert rows.error["bug"] == "ZeroDivisionError: a bug [/home/user/model.py:5]"
    assert rows.error["bug"] in answer.out
    assert 'raise ZeroDivisionError("a bug [/home/user/model.py:5]")' in answer.out


def test_a_step_that_hangs_is_told_with_where(ran: Any) -> None:
    workers, answer, rows = ran
    assert "a step hung: in epoch 1, after step 2, none ended for 20 s (train.step_timeout)" in rows.error["hang"]
    if workers == 1:
        assert "time.sleep(1e4)" in answer.out, "the stack of what hangs; of two workers the first tells, which waits for the other"


def test_a_lack_of_memory_is_met_with_smaller_parts_of_the_same_batch(ran: Any, stlab: Any) -> None:
    """Halved more often than the infrastructure may fail; the figures are those of a run that had memory enough."""
    workers, _, rows = ran
    assert rows.micro_batch["memory"] == 2
    assert "out of memory" in rows.notes["memory"]
    enough = f"enough{workers}"
    answer = stlab(
        "run", f"faults{workers}.yaml", "--storage", enough, "--set", "variants={memory: {model: {hidden: 7}}}", timeout=600
    )  # fmt: skip
    assert answer.code == 0, answer
    undivided = pd.read_parquet(stlab.folder / enough / "studies" / f"faults{workers}" / "results" / "trials.parquet").iloc[0]
    assert undivided.micro_batch == BATCH / workers
    assert rows.trial_id["memory"] == undivided.trial_id
    for column in ("val_mae", "val_rmse", "test_mae", "test_rmse"):
        assert rows.loc["memory", column] == pytest.approx(undivided[column], rel=1e-5)
