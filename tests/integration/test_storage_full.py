"""A disk that fills up under a running study, through the command line."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

START_SECONDS = 300


def test_a_full_disk_ends_the_study_and_once_there_is_room_the_same_command_goes_on(stlab: Any, study_text: str) -> None:
    disk: Path = stlab.folder / "disk"
    disk.mkdir()
    answer = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"mounting is not allowed here: {answer.stderr.strip()}")
    try:
        text = study_text.replace("max_epochs: 2", "max_epochs: 40, patience: 40").replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
        (stlab.folder / "tiny.yaml").write_text(text)
        command = ("run", "tiny.yaml", "--storage", "disk/runs")
        log = stlab.folder / "log"
        run = stlab.start(*command, log=log)
        until = time.monotonic() + START_SECONDS
        while not list(disk.glob("runs/trials/*/checkpoint/*/state.json")):
            assert run.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        with (disk / "other people's").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        assert run.wait(timeout=300) == 2, log.read_text()
        said = log.read_text()
        assert "No space left on device. The disk is full. Free space there" in said
        assert "the same command goes on" in said
        assert "Traceback" not in said
        assert not list(disk.glob("runs/trials/*/failed.json"))
        (disk / "other people's").unlink()
        begun = {path.parents[1].name for path in disk.glob("runs/trials/*/checkpoint/*")}
        assert begun
        again = stlab(*command, timeout=600)
        assert again.code == 0, again
        rows = pd.read_parquet(disk / "runs/studies/tiny/results/trials.parquet")
        assert set(rows.status) == {"finished"}
        assert set(rows.epochs) == {40}
    finally:
        stlab.end_leftovers()
        stlab.wait_until_gone(30)
        subprocess.run(["umount", "--lazy", disk], check=True)
