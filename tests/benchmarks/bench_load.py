"""Two thousand trials through the real scheduler, MLflow on, beside a hundred: nothing grows faster than they do. Half an hour.

    pytest tests/benchmarks/bench_load.py -s -o python_files='bench_*.py'

No limit on times, which depend on the machine: they are shown, each as a ratio of many trials to few too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stlab.storage import StudyDirectory
from stlab.tracking import sync
from tests.support.load import Load, run, write_data

FEW, MANY = 100, 2000

pytestmark = pytest.mark.timeout(3600)


def test_two_thousand_trials(
    stlab: Any, tmp_path: Path, table: Callable[[str, Sequence[str], Sequence[Sequence[object]]], None]
) -> None:
    write_data(stlab.folder)
    loads = {trials: run(stlab, trials) for trials in (FEW, MANY)}
    for load in loads.values():
        load.assert_whole()
    growth = (loads[MANY].peak_bytes - loads[FEW].peak_bytes) / (MANY - FEW)
    assert growth < 300e3, f"{growth / 1e3:.0f} kB a trial"
    measured: dict[str, Callable[[Load], float]] = {
        "scheduling and training, s a trial": lambda load: load.seconds_a_trial(),
        "MLflow, s a trial": lambda load: _seconds(lambda: _sync(load, tmp_path)) / load.trials,
        "trials.parquet, ms a trial": lambda load: 1e3 * _seconds(lambda: _write_table(load)) / load.trials,
        "the whole command, s a trial": lambda load: load.seconds / load.trials,
        "peak memory of the driver, GB": lambda load: load.peak_bytes / 1e9,
    }
    rows = []
    for what, value_of in measured.items():
        few, many = value_of(loads[FEW]), value_of(loads[MANY])
        rows.append([what, f"{few:.3f}", f"{many:.3f}", f"{many / few:.2f}"])
    table("many trials", ["", str(FEW), str(MANY), "ratio"], rows)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _sync(load: Load, folder: Path) -> None:
    sync(load.store, load.name, f"sqlite:///{folder / load.name}.db")


def _write_table(load: Load) -> None:
    directory = StudyDirectory(load.store, load.name)
    directory.write_trials(directory.read_trials().to_pylist())
