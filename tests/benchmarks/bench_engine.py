"""What the engine costs beside the training: seconds a trial, and where they go. Reported; the target is 2 s a trial.

`make bench` runs it. The figures hold for an otherwise idle machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

STUDY = """\
name: bench
base:
  data: {path: synthetic:city}
  model: {name: st_vfm, backbone: vit_test, weights: random, temporal_width: 16, rank: 4, flow: false, cross_prompt_layers: 0}
  train: {max_epochs: 3, warmup_epochs: 1, lr: 2.0e-3}
variants:
  rank 2: {model.rank: 2}
  rank 4: {}
  rank 8: {model.rank: 8}
seeds: [0, 1, 2, 3, 4]
baselines: []
"""

pytestmark = pytest.mark.timeout(1800)


def _run(folder: Path, text: str) -> tuple[list[tuple[float, str]], float]:
    """Run a study; its lines with their seconds since the start, and the seconds in all."""
    (folder / "bench.yaml").write_text(text)
    command = [sys.executable, "-u", "-m", "stlab", "run", "bench.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    lines, start = [], time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
    assert process.returncode == 0, lines
    return lines, time.perf_counter() - start


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def test_overhead_of_fifteen_trials(tmp_path: Path) -> None:
    lines, wall = _run(tmp_path, STUDY)
    rows = pd.read_parquet(tmp_path / "runs/studies/bench/results/trials.parquet")
    begun = next((at, line) for at, line in lines if line.startswith("bench"))
    concurrency = int(begun[1].split("; ")[1].split()[0])
    ends = [at for at, line in lines if line.startswith("✓")]
    first = min(rows.started_at).timestamp()
    trials = [tmp_path / "runs/trials" / trial for trial in rows.trial_id]
    last = max((trial / "test.json").stat().st_mtime for trial in trials)
    training = rows.wall_seconds.sum() / concurrency
    overhead = (wall - training) / len(rows)
    figures = {
        "wall, 15 trials": wall,
        f"training, {concurrency} at a time": training,
        "imports, plan, models, Ray": begun[0],
        "workers: start to last test": last - first,
        "of which not training": last - first - training,
        "Ray's workers start (and end)": ends[-1] - begun[0] - (last - first),
        "report, MLflow, end": wall - ends[-1],
        "import of the driver's libraries": _seconds("import stlab.execution.run_study, stlab.execution.tracking_observer"),
        "import of Ray": _seconds("import stlab.execution.ray"),
        "overhead a trial (target 2)": overhead,
    }
    print()
    for name, seconds in figures.items():
        print(f"{name:<36}{seconds:8.2f} s")
    assert len(rows) == 15


def test_short_epochs_do_not_wait_for_their_reports(tmp_path: Path) -> None:
    """The clock beside the epochs' own seconds: what a trial spends on reports and checkpoints, an epoch."""
    text = STUDY.replace("max_epochs: 3", "max_epochs: 40, patience: 40").replace("[0, 1, 2, 3, 4]", "[0]")
    _run(tmp_path, text)
    for result in sorted(tmp_path.glob("runs/trials/*/result.json")):
        seconds = pq.read_table(result.parent / "epochs.parquet")["seconds"].to_pylist()
        started = datetime.fromisoformat(pd.read_json(result, typ="series")["started_at"]).timestamp()
        beside = (result.stat().st_mtime - started - sum(seconds)) / len(seconds)
        print(f"\nan epoch takes {1e3 * sum(seconds) / len(seconds):.0f} ms, and {1e3 * beside:.0f} ms beside it")
