"""A study that is stopped, by Ctrl-C or by force, goes on where it was, and ends with the numbers of one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.trials import assert_went_on, saved_seconds

EPOCHS = 20
START_SECONDS = 300  # for Ray and its workers, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def undisturbed(stlab: Any, study_text: str) -> pd.DataFrame:
    """The trials of a study that nobody stopped; the folder holds the study for the others."""
    text = study_text.replace("name: tiny", "name: long").replace("max_epochs: 2", f"max_epochs: {EPOCHS}")
    text = text.replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
    (stlab.folder / "long.yaml").write_text(text)
    answer = stlab("run", "long.yaml", "--storage", "undisturbed", timeout=900)
    assert answer.code == 0, answer
    return _trials(stlab.folder / "undisturbed")


def _trials(storage: Path) -> pd.DataFrame:
    return pd.read_parquet(storage / "studies" / "long" / "results" / "trials.parquet").set_index("trial_id").sort_index()


def _start_and_wait_for_the_middle(stlab: Any, name: str, *options: str) -> subprocess.Popen[str]:
    """A run whose trials have both a checkpoint and an end far away."""
    run = stlab.start("run", "long.yaml", "--storage", name, *options, log=stlab.folder / f"{name}.log")
    trials = stlab.folder / name / "trials"
    until = time.monotonic() + START_SECONDS
    while not any(saved_seconds(stlab.folder / name).values()):
        assert run.poll() is None, (stlab.folder / f"{name}.log").read_text()
        assert time.monotonic() < until, "no checkpoint: " + (stlab.folder / f"{name}.log").read_text()
        time.sleep(0.1)
    assert not list(trials.glob("*/result.json")), "too fast to be stopped in the middle: more epochs are needed"
    return run


def _goes_on_to_the_same_numbers(stlab: Any, name: str, undisturbed: pd.DataFrame) -> None:
    saved = saved_seconds(stlab.folder / name)
    assert min(len(epochs) for epochs in saved.values()) < EPOCHS
    answer = stlab("run", "long.yaml", "--storage", name, timeout=900)
    assert answer.code == 0, answer
    assert_went_on(stlab.folder / name, saved)
    _same_numbers(_trials(stlab.folder / name), undisturbed)


def _same_numbers(rows: pd.DataFrame, undisturbed: pd.DataFrame) -> None:
    columns = ["status", "test_mae", "test_rmse", "val_mae", "val_rmse", "best_epoch", "epochs"]
    pd.testing.assert_frame_equal(rows[columns], undisturbed[columns], check_exact=True)


@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "driver only"])
def test_ctrl_c_stops_and_the_same_command_goes_on(stlab: Any, undisturbed: pd.DataFrame, to_all: bool) -> None:
    name = f"ctrl_c_{to_all}"
    run = _start_and_wait_for_the_middle(stlab, name)
    if to_all:
        os.killpg(run.pid, signal.SIGINT)
    else:
        os.kill(run.pid, signal.SIGINT)
    assert run.wait(timeout=120) == 130
    said = (stlab.folder / f"{name}.log").read_text()
    assert "Interrupted. What is trained stays: the same command goes on from there." in said
    assert "Traceback" not in said
    assert not stlab.wait_until_gone(60)
    _goes_on_to_the_same_numbers(stlab, name, undisturbed)


def test_a_driver_that_is_killed_is_no_loss(stlab: Any, undisturbed: pd.DataFrame) -> None:
    run = _start_and_wait_for_the_middle(stlab, "killed")
    run.kill()
    run.wait(timeout=30)
    _goes_on_to_the_same_numbers(stlab, "killed", undisturbed)
