"""A disk that fills up under a running study, through the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import disk, fill
from tests.support.trials import assert_went_on, saved_seconds
from tests.support.watched_runs import assert_undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

START_SECONDS = 300


def test_a_full_disk_ends_the_study_and_once_there_is_room_the_same_command_goes_on(
    stlab_on_cluster: Any, long_text: str, undisturbed: Path
) -> None:
    """Slow: a study of 24 epochs, whose workers start twice."""
    stlab = stlab_on_cluster
    (stlab.folder / "long.yaml").write_text(long_text)
    with disk(stlab.folder / "disk", 64) as full:
        try:
            command = ("run", "long.yaml", "--storage", "disk/runs")
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
            assert_undisturbed(full / "runs", undisturbed)
        finally:
            stlab.end_leftovers()
            stlab.wait_until_gone(30)
