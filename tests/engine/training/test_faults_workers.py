"""Faults where several workers train a trial: they stop together, go on exactly, and share a divided batch rightly."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from tests.support.trials import Notice, assert_same_numbers

WORKERS = """
import datetime, json, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec
from stlab.training import run_trial
from stlab.training import interruption

interruption._ASK_SECONDS = 0.0  # after every step

def work(rank, world, folder, dropout, missing):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=700)
    )
    store = Store(f"{folder}/runs")
    trial = TrialSpec.model_validate_json(dropout)
    said = [run_trial(trial, {}, TrialDirectory(store, "whole"), test=True).value]
    for at in (2, 3, 1, 4):  # only the second worker is told
        stop = Notice(at if rank == 1 else 10**9)
        said.append(run_trial(trial, {}, TrialDirectory(store, "stopped"), test=True, stop=stop).value)
        dist.barrier()
        if rank == 0:
            said.append(store.names("trials/stopped/checkpoint")[-1])
    said.append(run_trial(trial, {}, TrialDirectory(store, "stopped"), test=True).value)
    run_trial(TrialSpec.model_validate_json(missing), {}, TrialDirectory(store, "divided"), test=True, parts=3)
    if rank == 0:
        print(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (2, *sys.argv[1:]), nprocs=2, start_method="fork")  # the imports take longer than the rest
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_stop_together_and_go_on_exactly(make_trial: Callable[..., TrialSpec], tmp_path: Path) -> None:
    dropout = make_trial(model={"dropout": 0.2}, max_epochs=2, checkpoint_seconds=1e9)
    missing = make_trial(model={"name": "lstm", "hidden": 8}, data={"family": "sensors", "null": 5.0}, max_epochs=2, batch_size=39)
    script = tmp_path / "workers.py"
    script.write_text(inspect.getsource(Notice) + WORKERS)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), dropout.model_dump_json(), missing.model_dump_json()],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    store = Store(tmp_path / "runs")
    whole, stopped, divided = (TrialDirectory(store, name) for name in ("whole", "stopped", "divided"))
    places = ["000000.000002", "000000.000005", "000000.000005", "000001.000002"]  # twice in the validation
    stops = [word for place in places for word in ("started", place)]
    assert json.loads(done.stdout.splitlines()[-1]) == ["finished", *stops, "finished"]
    assert_same_numbers(stopped, whole)

    one = TrialDirectory(Store(tmp_path / "one"), "a")
    assert run_trial(missing, {}, one, test=True) is TrialStatus.FINISHED
    assert [row["micro_batch"] for row in divided.read_epochs()] == [7, 7]  # 39 windows: 20 and 19, in three parts each
    for name, keys in (("result.json", ("val_mae", "val_rmse")), ("test.json", ("mae", "rmse"))):
        for key in keys:
            assert (divided.read(name) or {})[key] == pytest.approx((one.read(name) or {})[key], rel=1e-5)
    for found, expected in zip(divided.read_epochs(), one.read_epochs(), strict=True):
        for key in ("loss", "grad_norm"):
            assert found[key] == pytest.approx(expected[key], rel=1e-4)
