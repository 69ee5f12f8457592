"""Two thousand trials through the real scheduler, MLflow on, beside a hundred: all of them there once, and nothing that grows faster.

Every trial is a real one (a tiny LSTM, one step, on four sensors), so that what is measured is what the engine adds.

    pytest -m slow -s tests/cluster/test_load.py
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stlab.storage import Store, StudyDirectory
from stlab.tracking import sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

FEW, MANY = 100, 2000


@dataclass
class Load:
    """A study that ran, and what its driver needed."""

    name: str
    store: Store
    trials: int
    peak_bytes: int
    seconds: float

    def rows(self) -> list[dict[str, object]]:
        rows = StudyDirectory(self.store, self.name).read_trials().to_pylist()
        return [row for row in rows if not row["baseline"]]

    def seconds_a_trial(self) -> float:
        """Between the first trial's result and the last's."""
        ends = sorted(Path(self.store.path(f"trials/{row['trial_id']}/result.json")).stat().st_mtime for row in self.rows())
        return (ends[-1] - ends[0]) / len(ends)


@pytest.fixture(scope="module")
def loads(stlab: Any) -> dict[int, Load]:
    steps = np.arange(400)
    wave = 50 + 10 * np.sin(2 * np.pi * steps / 24)[:, None] + np.random.default_rng(0).normal(0, 1, (len(steps), 4))
    hours = np.datetime64("2024-01-01", "s") + steps * np.timedelta64(3600, "s")
    np.savez(stlab.folder / "net.npz", data=wave[..., None].astype(np.float32), timestamps=hours)
    return {trials: _run(stlab, trials) for trials in (FEW, MANY)}


def _run(stlab: Any, trials: int) -> Load:
    name = f"load{trials}"
    study = {
        "name": name,
        "base": {
            "data": {"path": "net.npz", "family": "sensors"},
            "model": {"name": "lstm", "hidden": 4},
            "train": {"max_epochs": 1, "warmup_epochs": 0, "batch_size": 256},
        },
        "axes": {
            "train.lr": [float(rate) for rate in np.geomspace(1e-4, 1e-2, 10).round(6)],
            "train.weight_decay": [float(decay) for decay in np.geomspace(1e-6, 1e-3, trials // 100).round(9)],
        },
        "seeds": list(range(10)),
    }
    (stlab.folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    started = time.monotonic()
    process = stlab.start("run", f"{name}.yaml", "--storage", name, log=stlab.folder / f"{name}.log")
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_bytes(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0, (stlab.folder / f"{name}.log").read_text()[-3000:]
    return Load(name, Store(stlab.folder / name), trials, peak, time.monotonic() - started)


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


@pytest.mark.parametrize("trials", [FEW, MANY])
def test_every_trial_ran_once(loads: dict[int, Load], trials: int) -> None:
    rows = loads[trials].rows()
    assert len(rows) == trials
    assert {row["status"] for row in rows} == {"finished"}
    assert len({row["trial_id"] for row in rows}) == trials
    assert {row["epochs"] for row in rows} == {1}


@pytest.mark.parametrize("trials", [FEW, MANY])
def test_mlflow_has_every_trial_once(loads: dict[int, Load], trials: int) -> None:
    ids = _logged_trials(Path(loads[trials].store.path("mlflow.db")))
    assert len(ids) == len(set(ids))
    assert {row["trial_id"] for row in loads[trials].rows()} <= set(ids)


def _logged_trials(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(
            "select t.value from tags t join runs r on r.run_uuid = t.run_uuid where t.key = 'trial_id' and r.status = 'FINISHED' "
            "and not exists (select 1 from tags b where b.run_uuid = r.run_uuid and b.key = 'summary')"
        )
        return [value for (value,) in found]


def test_a_trial_costs_the_driver_little_memory(loads: dict[int, Load]) -> None:
    growth = (loads[MANY].peak_bytes - loads[FEW].peak_bytes) / (MANY - FEW)
    assert growth < 300e3, f"{growth / 1e3:.0f} kB a trial"


def test_figures(loads: dict[int, Load], tmp_path: Path) -> None:
    """No limit on times, which depend on the machine: they are shown, each as a ratio of many trials to few too."""
    measured = {
        "scheduling and training, s a trial": lambda load: load.seconds_a_trial(),
        "MLflow, s a trial": lambda load: _seconds(lambda: _sync(load, tmp_path)) / load.trials,
        "trials.parquet, ms a trial": lambda load: 1e3 * _seconds(lambda: _write_table(load)) / load.trials,
        "the whole command, s a trial": lambda load: load.seconds / load.trials,
        "peak memory of the driver, GB": lambda load: load.peak_bytes / 1e9,
    }
    print()
    for what, of in measured.items():
        few, many = of(loads[FEW]), of(loads[MANY])
        print(f"{what:40} {FEW}: {few:8.3f}   {MANY}: {many:8.3f}   ratio {many / few:.2f}")
        assert many > 0


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _sync(load: Load, folder: Path) -> None:
    sync(load.store, load.name, f"sqlite:///{folder / load.name}.db")


def _write_table(load: Load) -> None:
    directory = StudyDirectory(load.store, load.name)
    directory.write_trials(directory.read_trials().to_pylist())
