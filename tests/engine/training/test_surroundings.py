"""Training in its other surroundings: several workers, a compiled model, images without the libraries of the engine's rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial

MakeTrial = Callable[..., TrialSpec]

WORKERS = """
import datetime, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import TrialSpec
from stlab.training import run_trial

def work(rank, world, trial, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=90)
    )
    store = Store(f"{folder}/runs")
    trials = [TrialSpec.model_validate_json(text) for text in trial]
    for number, one in enumerate(trials):  # a pack: one worker group, one trial after another
        events = []
        run_trial(one, {}, TrialDirectory(store, str(number)), test=True, report=events.append)
        assert bool(events) == (rank == 0 and number != 1), (rank, number, events)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (2, sys.argv[2:], sys.argv[1]), nprocs=2, start_method="fork")  # the imports take longer than the rest
"""

BLOCKED = """
import sys

class Blocker:
    '''As in an image where these are not installed.'''
    names = {"ray", "mlflow", "optuna", "pydantic", "typer", "rich"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())

import json
from dataclasses import make_dataclass
import stlab.data, stlab.training, stlab.catalog, stmodels
from stlab.storage import Store, TrialDirectory

def frozen(name, values):
    fields = {key: tuple(v) if isinstance(v, list) else frozen(key, v) if name == "Trial" and key != "model" and isinstance(v, dict) else v
              for key, v in values.items()}
    return make_dataclass(name, fields, frozen=True)(**fields)

trial = frozen("Trial", json.loads(sys.argv[1]))
directory = TrialDirectory(Store(sys.argv[2]), "plain")
print(stlab.training.run_trial(trial, {"dataset": "small"}, directory, test=True).value, directory.read("failed.json"))
print(sorted(Blocker.names & {name.split(".")[0] for name in sys.modules}))
"""


def run_python(script: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *([] if script.endswith(".py") else ["-c"]), script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_two_workers_give_the_numbers_of_one(make_trial: MakeTrial, tmp_path: Path) -> None:
    """Equal global batches: the last one of 37 is shared out unevenly, 19 and 18."""
    trials = [
        make_trial(max_epochs=3, batch_size=40),
        make_trial(model={"name": "last_value"}),
        make_trial(seed=1, max_epochs=1, batch_size=39),
        # Missing readings: workers count by what they have read, not by windows.
        make_trial(model={"name": "lstm", "hidden": 8}, data={"family": "sensors", "null": 5.0}, max_epochs=2, batch_size=40),
    ]
    trials = [
        trial.model_copy(update={"resources": trial.resources.model_copy(update={"workers": 2})}) for trial in trials
    ]
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    run_python(str(script), str(tmp_path), *(trial.model_dump_json() for trial in trials))
    for number, trial in enumerate(trials):
        many = TrialDirectory(Store(tmp_path / "runs"), str(number))
        one = TrialDirectory(Store(tmp_path / "one"), str(number))
        run_trial(trial, {}, one, test=True)
        assert many.status() is TrialStatus.FINISHED
        for name, keys in (("result.json", ("val_mae", "val_rmse")), ("test.json", ("mae", "rmse"))):
            found, expected = many.read(name) or {}, one.read(name) or {}
            for key in keys:
                assert found[key] == pytest.approx(expected[key], rel=1e-5)
        for found, expected in zip(many.read_epochs(), one.read_epochs(), strict=True):
            for key in {"loss", "loss.flow", "grad_norm", "grad_norm.flow", "val_rmse"} & expected.keys():
                assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    result = TrialDirectory(Store(tmp_path / "runs"), "0").read("result.json") or {}
    assert result["device_seconds"] == pytest.approx(2 * result["wall_seconds"])


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile on a CPU needs a C++ compiler",
)
@pytest.mark.slow
def test_a_compiled_model_gives_the_same_numbers(make_trial: MakeTrial, tmp_path: Path) -> None:
    """Slow: torch's compiler translates forward and backward pass."""
    plain = {
        "flow": False,
        "cross_prompt_layers": 0,
        "decoder": "mlp",
        "temporal_context": False,
        "peft": "none",
        "adaptation": "simple",
    }
    results: list[dict[str, Any]] = []
    for compiled in (False, True):
        directory = TrialDirectory(Store(tmp_path / str(compiled)), "a")
        trial = make_trial(model=plain, max_epochs=2, batch_size=40, compile=compiled)
        assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED, directory.read("failed.json")
        results.append({**(directory.read("result.json") or {}), **(directory.read("test.json") or {})})
    for key in ("val_mae", "val_rmse", "mae", "rmse"):
        assert results[1][key] == pytest.approx(results[0][key], rel=1e-4)


def test_a_trial_runs_where_only_torch_and_arrow_are(make_trial: MakeTrial, tmp_path: Path) -> None:
    trial = make_trial(max_epochs=2)
    out = run_python(BLOCKED, trial.model_dump_json(), str(tmp_path / "runs"))
    assert out.splitlines()[-2:] == ["finished None", "[]"]
    there, here = TrialDirectory(Store(tmp_path / "runs"), "plain"), TrialDirectory(Store(tmp_path / "here"), "a")
    run_trial(trial, {"dataset": "small"}, here, test=True)
    assert (there.read("test.json") or {})["rmse"] == (here.read("test.json") or {})["rmse"]
    assert json.dumps(there.read("trial.json"), sort_keys=True) == json.dumps(here.read("trial.json"), sort_keys=True)
