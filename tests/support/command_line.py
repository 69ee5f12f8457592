"""The command line as a user has it: in a process of its own where processes matter, called directly where only words do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ray_nodes import MARK, RayNodes, environment
from tests.support.warm_processes import WarmProcess, start_python


@dataclass
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@dataclass
class CommandLine:
    """Runs ``python -m stlab`` in a folder, warm; ends what a run may have left behind."""

    folder: Path
    marks: list[str] = field(default_factory=list)
    started: list[WarmProcess] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    """What the commands have in their environment beside the usual."""

    def start_cold(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in an interpreter of its own: a child of this process, whose memory is its own alone."""
        mark = f"{self.folder}/{len(self.marks)}"
        self.marks.append(mark)
        with log.open("wb") as target:
            return subprocess.Popen(
                [sys.executable, "-m", "stlab", *arguments], cwd=self.folder, env=environment(mark) | self.variables,
                start_new_session=True, stdout=target, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def start(self, *arguments: str, log: Path | None = None) -> WarmProcess:
        """Start a command in a session of its own, as a terminal would."""
        mark = f"{self.folder}/{len(self.marks)}"
        self.marks.append(mark)
        with log.open("w") if log else contextlib.nullcontext() as target:
            process = start_python(["-m", "stlab", *arguments], self.folder, environment(mark) | self.variables, target)
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, timeout: float = 280) -> Answer:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            self.end_leftovers()
            raise
        return Answer(process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Every process of these runs that is still there, by pid: its command line."""
        # Those that were forked show the environment of the process that they were forked from.
        found = {process.pid: " ".join(process.args) for process in self.started if process.poll() is None}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marks = [v for v in (entry / "environ").read_bytes().split(b"\0") if v.startswith(f"{MARK}=".encode())]
                if marks and marks[0].decode().partition("=")[2] in self.marks:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # a zombie has none
                        found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def wait_until_gone(self, seconds: float = 60) -> dict[int, str]:
        """What is left of these runs' processes after a while, at best nothing."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.5)
        return left

    def end_leftovers(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="module")
def stlab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line in a process of its own, in an empty folder that a module shares."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are told apart by /proc, which this system lacks")
    command_line = CommandLine(tmp_path_factory.mktemp("stlab"))
    yield command_line
    command_line.end_leftovers()


@pytest.fixture(scope="module")
def stlab_on_cluster(stlab: CommandLine, two_nodes: RayNodes) -> CommandLine:
    """The command line whose studies run on the cluster that the tests share."""
    stlab.variables |= two_nodes.client | {"RAY_ADDRESS": two_nodes.address}
    return stlab


@pytest.fixture
def say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """The command line's ``main`` in this process, in an empty folder: seconds less a call, the same words."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Answer:
        from stlab.cli import main

        monkeypatch.setattr(sys, "argv", ["stlab", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return call
