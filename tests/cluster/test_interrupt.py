"""A study that is stopped by Ctrl-C goes on where it was, and ends with the numbers of one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.trials import assert_went_on, saved_seconds
from tests.support.watched_runs import EPOCHS, assert_undisturbed

START_SECONDS = 300  # for Ray and its workers, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def _saved(storage: Path) -> int:
    """The epochs that checkpoints have of the trials of a study."""
    return sum(len(epochs) for epochs in saved_seconds(storage).values())


def _start_and_wait_for_the_middle(stlab: Any, log: Path) -> subprocess.Popen[str]:
    """A run of which each trial has a checkpoint or an end far away, and that has trained an epoch more than was there."""
    storage = stlab.folder / "stopped"
    before = _saved(storage)
    run = stlab.start("run", "long.yaml", "--storage", "stopped", log=log)
    until = time.monotonic() + START_SECONDS
    while _saved(storage) <= before:
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < until, "no checkpoint: " + log.read_text()
        time.sleep(0.1)
    assert not list(storage.glob("trials/*/result.json")), "too fast to be stopped in the middle: more epochs are needed"
    return run


def test_ctrl_c_stops_and_the_same_command_goes_on(stlab: Any, two_nodes: Any, long_text: str, undisturbed: Path) -> None:
    """Once as a terminal does it, which tells all processes; once to the driver alone. Slow: Ray starts twice."""
    (stlab.folder / "long.yaml").write_text(long_text)
    storage = stlab.folder / "stopped"
    saved: list[dict[str, list[float]]] = []
    for name, tell in (("terminal", os.killpg), ("driver", os.kill)):
        log = stlab.folder / f"{name}.log"
        run = _start_and_wait_for_the_middle(stlab, log)
        tell(run.pid, signal.SIGINT)
        assert run.wait(timeout=120) == 130, log.read_text()
        said = log.read_text()
        assert "Interrupted. What is trained stays: the same command goes on from there." in said
        assert "Traceback" not in said
        assert not stlab.wait_until_gone(60)
        saved.append(saved_seconds(storage))
        assert min(len(epochs) for epochs in saved[-1].values()) < EPOCHS
    stlab.variables |= two_nodes.client | {"RAY_ADDRESS": two_nodes.address}
    answer = stlab("run", "long.yaml", "--storage", "stopped", timeout=900)
    assert answer.code == 0, answer
    for epochs in saved:
        assert_went_on(storage, epochs)
    assert_undisturbed(storage, undisturbed)
