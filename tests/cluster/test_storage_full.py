"""A disk that fills up under a running study, through the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.disks import disk, fill
from tests.support.trials import assert_went_on, saved_seconds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

START_SECONDS = 300


def test_a_full_disk_ends_the_study_and_once_there_is_room_the_same_command_goes_on(stlab: Any, study_text: str) -> None:
    text = study_text.replace("max_epochs: 2", "max_epochs: 40, patience: 40").replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
    (stlab.folder / "tiny.yaml").write_text(text)
    with disk(stlab.folder / "disk", 64) as full:
        try:
            command = ("run", "tiny.yaml", "--storage", "disk/runs")
            log = stlab.folder / "log"
            run = stlab.start(*command, log=log)
            until = time.monotonic() + START_SECONDS
            while not any(saved_seconds(full / "runs").values()):
                assert run.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            taken = fill(full)
            assert run.wait(timeout=300) == 2, log.read_text()
            said = log.read_text()
            assert "No space left on device. The disk is full. Free space there" in said
            assert "the same command goes on" in said
            assert "Traceback" not in said
            assert not list(full.glob("runs/trials/*/failed.json"))
            taken.unlink()
            saved = saved_seconds(full / "runs")
            again = stlab(*command, timeout=600)
            assert again.code == 0, again
            assert_went_on(full / "runs", saved)
            undisturbed = stlab("run", "tiny.yaml", "--storage", "undisturbed", timeout=600)
            assert undisturbed.code == 0, undisturbed
            assert set(_trials(full / "runs").status) == {"finished"}
            assert set(_trials(full / "runs").epochs) == {40}
            pd.testing.assert_frame_equal(_trials(full / "runs"), _trials(stlab.folder / "undisturbed"), check_exact=True)
        finally:
            stlab.end_leftovers()
            stlab.wait_until_gone(30)


def _trials(storage: Path) -> pd.DataFrame:
    columns = ["status", "test_mae", "test_rmse", "val_mae", "val_rmse", "best_epoch", "epochs"]
    return pd.read_parquet(storage / "studies/tiny/results/trials.parquet").set_index("trial_id").sort_index()[columns]
