"""Studies of many small trials through the real scheduler, and what their driver needed.

Every trial is a real one (a tiny LSTM, one step, on four sensors), so that what is measured is what the engine adds.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stlab.storage import Store, StudyDirectory


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

    def logged_trials(self) -> list[str]:
        """The ids of the trials that MLflow has as finished, one a run."""
        with closing(sqlite3.connect(self.store.path("mlflow.db"))) as connection:
            found = connection.execute(
                "select t.value from tags t join runs r on r.run_uuid = t.run_uuid where t.key = 'trial_id' and r.status = 'FINISHED' "
                "and not exists (select 1 from tags b where b.run_uuid = r.run_uuid and b.key = 'summary')"
            )
            return [value for (value,) in found]

    def assert_whole(self) -> None:
        """Every trial ran once, and MLflow has each of them once."""
        rows = self.rows()
        assert len(rows) == self.trials
        assert {row["status"] for row in rows} == {"finished"}
        assert len({row["trial_id"] for row in rows}) == self.trials
        assert {row["epochs"] for row in rows} == {1}
        logged = self.logged_trials()
        assert len(logged) == len(set(logged))
        assert {row["trial_id"] for row in rows} <= set(logged)


def write_data(folder: Path) -> None:
    """The four sensors, as ``net.npz``."""
    steps = np.arange(400)
    wave = 50 + 10 * np.sin(2 * np.pi * steps / 24)[:, None] + np.random.default_rng(0).normal(0, 1, (len(steps), 4))
    hours = np.datetime64("2024-01-01", "s") + steps * np.timedelta64(3600, "s")
    np.savez(folder / "net.npz", data=wave[..., None].astype(np.float32), timestamps=hours)


def run(stlab: Any, trials: int) -> Load:
    """Run so many trials, a multiple of 50, from the command line."""
    name, seeds = f"load{trials}", 10 if trials % 100 == 0 else 5
    study = {
        "name": name,
        "base": {
            "data": {"path": "net.npz", "family": "sensors"},
            "model": {"name": "lstm", "hidden": 4},
            "train": {"max_epochs": 1, "warmup_epochs": 0, "batch_size": 256},
        },
        "axes": {
            "train.lr": [float(rate) for rate in np.geomspace(1e-4, 1e-2, 10).round(6)],
            "train.weight_decay": [float(decay) for decay in np.geomspace(1e-6, 1e-3, trials // (10 * seeds)).round(9)],
        },
        "seeds": list(range(seeds)),
    }
    (stlab.folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    started = time.monotonic()
    process = stlab.start_cold("run", f"{name}.yaml", "--storage", name, log=stlab.folder / f"{name}.log")
    # Looked at from outside now and then, the peak would be missed that the report makes at the end.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (stlab.folder / f"{name}.log").read_text()[-3000:]
    return Load(name, Store(stlab.folder / name), trials, used.ru_maxrss * 1024, time.monotonic() - started)
