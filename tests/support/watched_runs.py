"""Studies on a cluster whose observers write down what they hear, and what becomes of their trials."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stlab.execution.collect import study_rows
from stlab.execution.run_study import plan_study
from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.study.file import parse
from stlab.study.source import StudySource
from stlab.training import run_trial
from tests.support.warm_processes import WarmProcess, start_python

EPOCHS = 12
"""So many that a trial can be held in its middle before it ends: an epoch takes a third of a second."""
WAIT_SECONDS = 300  # for Ray and its workers, on a busy machine

WATCHED = """\
import json, logging, sys
from stlab.cli.options import load_study
from stlab.errors import UserError
from stlab.execution import run_study as running

running.write_report = lambda *_: ""  # seconds of figures that nobody looks at
study, storage, address, log, *overrides = sys.argv[1:]

class Log:
    def begin(self, plan, todo, concurrency): self.write("begin", concurrency=concurrency)
    def end(self, outcome): pass
    def event(self, event):
        self.write(type(event).__name__.lower(), **{k: v for k, v in vars(event).items() if k != "trial"})
    def write(self, kind, **fields):
        with open(log, "a") as file:
            file.write(json.dumps({"kind": kind, **fields}, default=str) + "\\n")

logging.basicConfig(level=logging.WARNING)
spec, source = load_study(study, overrides)
outcome = running.run_study(spec, storage, source=source, address=address, observers=[Log()])
print(*outcome.troubles, sep="\\n")
sys.exit(1 if outcome.troubles or outcome.ended_as("failed", "missing") else 0)
"""
"""A run that writes down what its observers hear."""


class Runs:
    """Studies on a cluster, from a folder; a storage for each."""

    def __init__(self, folder: Path, nodes: Any, study: str, undisturbed: Path | None = None) -> None:
        self.folder, self.nodes, self.undisturbed = folder, nodes, undisturbed
        self.started: list[WarmProcess | subprocess.Popen[bytes]] = []
        self.held: set[int] = set()
        (folder / "watched.py").write_text(WATCHED)
        (folder / "long.yaml").write_text(study)

    def start(self, storage: str, *overrides: str) -> WarmProcess | subprocess.Popen[bytes]:
        return self.start_as(storage, storage, *overrides)

    def start_as(self, name: str, storage: str, *overrides: str) -> WarmProcess | subprocess.Popen[bytes]:
        """A run whose log and events have a name of their own."""
        words = ["watched.py", "long.yaml", storage, self.nodes.address, f"{name}.jsonl", *overrides]
        with (self.folder / f"{name}.log").open("ab") as log:
            if self.nodes.enter:
                run = subprocess.Popen(
                    [*self.nodes.enter, sys.executable, *words], cwd=self.folder, env=self.nodes.environment, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            else:
                run = start_python(words, self.folder, self.nodes.environment, log)
        self.started.append(run)
        return run

    def said(self, storage: str) -> str:
        return (self.folder / f"{storage}.log").read_text()

    def ends_well(self, run: WarmProcess | subprocess.Popen[bytes], storage: str) -> None:
        assert run.wait(timeout=900) == 0, self.said(storage)

    def wait_for(self, what: Callable[[], Any], run: WarmProcess | subprocess.Popen[bytes], storage: str) -> Any:
        until = time.monotonic() + WAIT_SECONDS
        while not (found := what()):
            assert run.poll() is None, self.said(storage)
            assert time.monotonic() < until, self.said(storage)
            time.sleep(0.1)
        return found

    def in_the_middle(self, storage: str, trials: int, *overrides: str) -> WarmProcess | subprocess.Popen[bytes]:
        """A run that has so many trials under way at once, all well begun. They stand still until :meth:`go_on`."""
        run = self.start(storage, *overrides)

        def is_there() -> bool:
            reached = self.checkpoints(storage)
            for pid, trial in self.trained_by(storage).items():
                if reached.get(trial, 0) > 2 and pid not in self.held:  # Ray starts them one after the other: they wait for each other
                    os.kill(pid, signal.SIGSTOP)
                    self.held.add(pid)
            return len(self.held) == trials

        self.wait_for(is_there, run, storage)
        return run

    def go_on(self) -> None:
        """Let those that stand still go on, as far as they still live."""
        for pid in self.held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.held.clear()

    def end(self) -> None:
        """Nothing of this is left running."""
        self.go_on()
        for run in self.started:
            if run.poll() is None:
                run.kill()

    def checkpoints(self, storage: str) -> dict[str, int]:
        """The newest checkpoint of every trial that has not ended: its number."""
        done: dict[str, int] = {}
        for state in (self.folder / storage).glob("trials/*/checkpoint/*/state.json"):
            directory = state.parents[2]
            if not (directory / "result.json").exists():
                done[directory.name] = max(done.get(directory.name, 0), int(state.parent.name.partition(".")[0]))
        return done

    def trained_by(self, storage: str) -> dict[int, str]:
        """Who holds a trial at this moment, the one that has furthest to go first: the pid of its first worker, and its id."""
        reached = self.checkpoints(storage)
        held = {file.name.partition("-")[2]: file.read_text() for file in (self.folder / storage / ".locks").glob("trial-*")}
        return {json.loads(held[trial])["pid"]: trial for trial in sorted(reached, key=lambda t: reached[t]) if held.get(trial)}

    def left_with_a_checkpoint(self, storage: str, trial: str, told: float) -> bool:
        """Whether a trial that has not ended has a checkpoint that was written after ``told``."""
        directory = self.folder / storage / "trials" / trial
        newest = max(path.stat().st_mtime for path in directory.glob("checkpoint/*/state.json"))
        return newest > told and not (directory / "result.json").exists()

    def trials(self, storage: str) -> pd.DataFrame:
        return trials_of(self.folder / storage)

    def same_as_undisturbed(self, storage: str) -> None:
        """The figures are those of a run left alone, to the last digit, and every epoch counts once."""
        assert self.undisturbed is not None
        assert_undisturbed(self.folder / storage, self.undisturbed)

    def close_to_undisturbed(self, storage: str, tolerance: float) -> None:
        """The errors are those of a run left alone, but for the order of sums."""
        assert self.undisturbed is not None
        columns = ["val_mae", "val_rmse", "test_mae", "test_rmse"]
        rows = self.trials(storage)
        pd.testing.assert_frame_equal(rows[columns], trials_of(self.undisturbed).loc[rows.index, columns], rtol=tolerance)

    def heard(self, storage: str, kind: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in (self.folder / f"{storage}.jsonl").read_text().splitlines()]
        return [event for event in events if event["kind"] == kind]

    def went_on(self, storage: str, disturbed: int = 0) -> None:
        """No trial began anew, and but for the epoch since the last checkpoint of those that were disturbed none was trained twice.

        A trial that goes on tells first the epochs it has, all at once; then those it trains, one by one.
        """
        trained = Counter(
            (event["trial_id"], event["rows"][0]["epoch"]) for event in self.heard(storage, "epochs") if len(event["rows"]) == 1
        )
        again = Counter(trial for trial, _ in (trained - Counter(set(trained))).elements())
        assert len(again) <= disturbed
        assert max(again.values(), default=0) <= 1

    def attempts(self, storage: str) -> dict[str, int]:
        """How often each trial was begun."""
        return {event["trial_id"]: event["attempt"] for event in self.heard(storage, "started")}


def trials_of(storage: Path) -> pd.DataFrame:
    """The table of the one study in a storage, by trial."""
    return pd.read_parquet(next(storage.glob("studies/*/results/trials.parquet"))).set_index("trial_id").sort_index()


def assert_undisturbed(storage: Path, undisturbed: Path) -> None:
    """The figures of all trials are those of a run left alone, to the last digit, and every epoch counts once."""
    columns = ["status", "test_mae", "test_rmse", "val_mae", "val_rmse", "best_epoch", "epochs"]
    rows = trials_of(storage)
    pd.testing.assert_frame_equal(rows[columns], trials_of(undisturbed).loc[rows.index, columns], check_exact=True)
    for trial, row in rows.iterrows():
        mine, others = (pd.read_parquet(folder / "trials" / str(trial) / "epochs.parquet") for folder in (storage, undisturbed))
        assert mine["epoch"].tolist() == list(range(1, int(row["epochs"]) + 1))
        numbers = ["step", "loss", "val_mae", "val_rmse", "lr"]
        pd.testing.assert_frame_equal(mine[numbers], others[numbers], check_exact=True)


@pytest.fixture(scope="session")
def long_text(study_text: str) -> str:
    """A study of two trials, each of EPOCHS epochs and as many checkpoints."""
    return study_of(study_text)


@pytest.fixture(scope="session")
def undisturbed(long_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage where the trials of that study, with three seeds, were trained one after the other, without a cluster."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan = plan_study(parse(StudySource.from_text(long_text, overrides=["seeds=[0, 1, 2]"])))
    store = Store(folder)
    for trial in plan.trials:
        run_trial(trial.spec, trial.identity, TrialDirectory(store, trial.trial_id), test=True)
    StudyDirectory(store, plan.study.name).write_trials(study_rows(plan, store))
    return folder


def study_of(text: str, seeds: str = "[0]") -> str:
    """A study whose trials have EPOCHS epochs, and as many checkpoints."""
    text = text.replace("name: tiny", "name: long").replace("max_epochs: 2", f"max_epochs: {EPOCHS}, patience: {EPOCHS}")
    return text.replace("seeds: [0, 1]", f"seeds: {seeds}\nbaselines: []")


def on_two_nodes(runs: Runs, run: WarmProcess | subprocess.Popen[bytes], storage: str) -> list[int]:
    """The workers of a trial that has two, once each of two nodes has one."""
    return runs.wait_for(lambda: _one_each(runs), run, storage)  # type: ignore[no-any-return]


def _one_each(runs: Runs) -> list[int]:
    busy = [pids for node in runs.nodes.nodes if node.poll() is None and (pids := runs.nodes.trainers(node))]
    return [pid for pids in busy for pid in pids] if [len(pids) for pids in busy] == [1, 1] else []
