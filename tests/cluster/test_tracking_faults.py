"""A tracking server that is away, dies, comes back or hangs: training never waits for it, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from stlab.execution import tracking_observer as track
from stlab.execution.collect import trial_row
from stlab.execution.events import Ended, Epochs, Event, Started
from stlab.execution.run_study import Outcome, plan_study
from stlab.execution.tracking_observer import TrackingObserver
from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.storage.schema import PREDICTIONS
from stlab.study.file import dump_study, parse
from stlab.study.plan import Plan
from stlab.study.source import StudySource
from stlab.tracking import Tracker, TrackingUnavailable, sync
from tests.support.servers import end_group, free_port, start_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS = 5
STUDY = """\
name: NAME
base:
  data: {path: synthetic:city, family: sensors}
  model: {name: lstm}
  train: {max_epochs: 5}
seeds: [0, 1, 2]
baselines: []
"""
PATIENCE_SECONDS = 3
"""How long an answer is waited for, twice."""
FROZEN_SECONDS = 4 * PATIENCE_SECONDS
"""Longer than an answer is waited for, so that everything is asked again."""
NO_WAIT_SECONDS = 3.0
"""For putting an event into a queue, on a busy machine. Whoever waited for an answer would need twice as long."""


@dataclass
class Server:
    """``mlflow server`` on SQLite, which can be killed, frozen and started again."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    started: int = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store = ("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts"))
        self.started += 1
        self.process = start_mlflow(self.port, self.folder / f"log-{self.started}", *store)

    def answers(self) -> bool:
        import urllib.request

        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            end_group(self.process)
            self.process = None

    def content(self, study: str) -> dict[str, Any]:
        """What the database says of a study, less what differs from run to run; every active run counts."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/mlflow.db?mode=ro", uri=True)) as database:
            query = database.execute
            select = (
                "SELECT r.run_uuid, r.status FROM runs r JOIN experiments e USING (experiment_id) "
                "WHERE e.name=? AND r.lifecycle_stage='active'"
            )
            found = {}
            count = 0
            for run, status in query(select, (study,)).fetchall():
                tags = dict(query("SELECT key, value FROM tags WHERE run_uuid=?", (run,)).fetchall())
                parent = query("SELECT value FROM tags WHERE run_uuid=? AND key='kind'", (tags.pop("mlflow.parentRunId", ""),)).fetchone()
                metrics = query("SELECT key, step, value FROM metrics WHERE run_uuid=? ORDER BY 1, 2, 3", (run,)).fetchall()
                params = sorted(query("SELECT key, value FROM params WHERE run_uuid=?", (run,)).fetchall())
                kept = {key: value for key, value in tags.items() if not key.startswith("mlflow.") and key not in ("study", "model")}
                count += 1
                found[tags["kind"], tags.get("seed", "")] = (status, kept, parent, metrics, params)
            return {"runs": count, "found": found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"), free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, so that the tests are; what holds for these holds for longer ones."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE_SECONDS))
    monkeypatch.setattr("stlab.tracking._tracker._LONGEST_PAUSE", 1.0)
    monkeypatch.setattr(track, "_EPOCHS_AT_ONCE_SECONDS", 0.2)
    monkeypatch.setattr("stlab.tracking._tracker._SECONDS_BETWEEN_WRITES", 0.2)


_telling = threading.local()


@pytest.fixture(autouse=True)
def by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request by the thread that tells of a trial is an error, even one that is refused at once."""
    send = requests.Session.send

    def seen(session: requests.Session, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        study: Study | None = getattr(_telling, "study", None)
        if study is not None:
            study.asked_by_training.append(str(request.url))
        return send(session, request, **more)

    monkeypatch.setattr(requests.Session, "send", seen)


@dataclass
class Study:
    """A study whose trials are trained by nobody: their directories are written as their events are told."""

    store: Store
    plan: Plan
    slowest_event: float = 0.0
    asked_by_training: list[str] = field(default_factory=list)

    def tell(self, call: Callable[[], None]) -> None:
        """Call the observer, as what trains does."""
        begun = time.monotonic()
        _telling.study = self
        try:
            call()
        finally:
            _telling.study = None
        self.slowest_event = max(self.slowest_event, time.monotonic() - begun)

    def assert_never_waited(self) -> None:
        assert self.asked_by_training == []
        assert self.slowest_event < NO_WAIT_SECONDS

    def run(self, observer: TrackingObserver, before: dict[tuple[int, int], Callable[[], None]], pause: float = 0.1) -> Outcome:
        """Train; ``before``: what happens before an epoch of a seed."""

        def event(event: Event) -> None:
            self.tell(lambda: observer.event(event))

        StudyDirectory(self.store, self.plan.study.name).write_study(dump_study(self.plan.study))
        self.tell(lambda: observer.begin(self.plan, self.plan.trials, 1))
        for trial in self.plan.trials:
            directory = TrialDirectory(self.store, trial.trial_id)
            directory.write_trial({**trial.spec.model_dump(mode="json"), **trial.identity})
            event(Started(trial.trial_id, 1))
            rows = []
            for epoch in range(1, EPOCHS + 1):
                before.get((trial.spec.seed, epoch), lambda: None)()
                rows.append({"epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch, "val_mae": 3.0, "val_rmse": 4 + 1 / epoch, "lr": 1e-3,
                             "grad_norm": 1.0, "seconds": 1.0, "samples_per_second": 5.0})  # fmt: skip
                event(Epochs(trial.trial_id, rows[-1:]))
                time.sleep(pause)
            directory.write_epochs(rows)
            directory.write_result({"val_rmse": 4.2, "val_mae": 3.0, "best_epoch": 5, "epochs": 5, "wall_seconds": 5.0,
                                    "started_at": "2025-03-01T12:00:00+00:00"})  # fmt: skip
            directory.write_test({"rmse": 4.0 + trial.spec.seed, "mae": 2.0}, [], PREDICTIONS.empty_table())
            event(Ended(trial.trial_id, "finished"))
        rows = [trial_row(trial, self.store) for trial in self.plan.trials]
        directory_of_study = StudyDirectory(self.store, self.plan.study.name)
        directory_of_study.write_trials(rows)
        self.store.write(directory_of_study.report_path(), b"<html></html>")
        return Outcome(self.plan, rows, directory_of_study.report_path())


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[[str], Study]:
    def make(name: str) -> Study:
        return Study(Store(tmp_path / name), plan_study(parse(StudySource.from_text(STUDY.replace("NAME", name)))))

    return make


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What MLflow has of a study that nothing happened to."""
    if not server.answers():
        server.start()
    plan = plan_study(parse(StudySource.from_text(STUDY.replace("NAME", "undisturbed"))))
    study = Study(Store(tmp_path_factory.mktemp("undisturbed")), plan)
    observer = TrackingObserver(server.uri, study.store, "undisturbed")
    observer.end(study.run(observer, {}))
    assert observer.failure is None
    content = server.content("undisturbed")
    assert content["runs"] == 1 + 3 + 1
    assert len(content["found"]["trial", "0"][3]) > EPOCHS * 5
    return content


def artifacts(server: Server, study: str) -> list[str]:
    """Names of all files that MLflow keeps of a study, the best model's too."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(study)
    runs = client.search_runs([experiment.experiment_id])
    return sorted(f"{run.data.tags['kind']} {info.path}" for run in runs for info in client.list_artifacts(run.info.run_id))


def test_away_from_start_to_end_or_at_the_start_alone(server: Server, make_study: Any, undisturbed: dict[str, Any]) -> None:
    """A study that never reached it is made up for by ``sync``; one that it came back to, by itself."""
    away, late = make_study("away"), make_study("late")
    server.kill()
    observer = TrackingObserver(server.uri, away.store, "away")
    outcome = away.run(observer, {})
    begun = time.monotonic()
    observer.end(outcome)
    assert time.monotonic() - begun < 30
    away.assert_never_waited()
    assert observer.failure is not None
    assert "MLflow at http://127.0.0.1" in observer.failure
    observer = TrackingObserver(server.uri, late.store, "late")
    outcome = late.run(observer, {(1, 3): server.start}, pause=0.3)
    late.assert_never_waited()
    observer.end(outcome)
    assert observer.failure is None
    assert server.content("late") == undisturbed
    assert artifacts(server, "late") == artifacts(server, "undisturbed")
    for _ in range(2):
        assert sync(away.store, "away", server.uri) == 3
        assert server.content("away") == undisturbed
        assert artifacts(server, "away") == artifacts(server, "undisturbed")


def test_killed_in_the_middle_and_back_before_the_end(server: Server, make_study: Any, undisturbed: dict[str, Any]) -> None:
    study = make_study("killed")
    observer = TrackingObserver(server.uri, study.store, "killed")
    behind: list[str | None] = []

    def back() -> None:
        behind.append(observer.failure)
        server.start()
        until = time.monotonic() + 60
        while observer.failure is not None and time.monotonic() < until:
            time.sleep(0.1)  # the writer finds out by itself
        behind.append(observer.failure)

    outcome = study.run(observer, {(0, 3): server.kill, (2, 2): back}, pause=0.4)
    study.assert_never_waited()
    assert behind[0] is not None
    assert behind[1] is None
    made_up = server.content("killed")["found"]
    assert made_up["trial", "1"][0] == "FINISHED", "trials that ended while it was away are made up for at once"
    observer.end(outcome)
    assert observer.failure is None
    assert server.content("killed") == undisturbed
    assert artifacts(server, "killed") == artifacts(server, "undisturbed")
    assert sync(study.store, "killed", server.uri) == 3
    assert server.content("killed") == undisturbed


def test_frozen_for_a_while_does_nothing_twice(server: Server, make_study: Any, undisturbed: dict[str, Any]) -> None:
    """What a frozen server was asked for lies in its sockets, and is done when it thaws: after it was asked again."""
    study = make_study("frozen")
    observer = TrackingObserver(server.uri, study.store, "frozen")
    thaw = threading.Timer(FROZEN_SECONDS, server.signal, [signal.SIGCONT])

    def freeze() -> None:
        time.sleep(1)
        server.signal(signal.SIGSTOP)
        thaw.start()

    try:
        outcome = study.run(observer, {(1, 1): freeze}, pause=0.2)
        study.assert_never_waited()
        thaw.join()
        observer.end(outcome)
    finally:
        server.signal(signal.SIGCONT)
    if observer.failure is not None:
        sync(study.store, "frozen", server.uri)
    assert server.content("frozen") == undisturbed
    sync(study.store, "frozen", server.uri)
    assert server.content("frozen") == undisturbed


def test_a_server_that_accepts_and_never_answers(server: Server, make_study: Any, undisturbed: dict[str, Any]) -> None:
    study = make_study("silent")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        uri = f"http://me:hunter2@127.0.0.1:{silent.getsockname()[1]}"
        observer = TrackingObserver(uri, study.store, "silent")
        outcome = study.run(observer, {})
        begun = time.monotonic()
        observer.end(outcome)
        assert time.monotonic() - begun < 60
    study.assert_never_waited()
    assert observer.failure is not None
    assert "hunter2" not in observer.failure
    assert sync(study.store, "silent", server.uri) == 3
    assert server.content("silent") == undisturbed


def test_a_call_that_never_returns_is_not_waited_for(make_study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that hangs has no time limit of its own."""
    study = make_study("endless")
    monkeypatch.setattr(track, "_ANSWER_SECONDS", 1.0)
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        release.wait(300)
        raise TrackingUnavailable("the test is over")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.get_experiment_by_name", hang)
    observer = TrackingObserver(f"sqlite:///{study.store.path('mlflow.db')}", study.store, "endless")
    outcome = study.run(observer, {}, pause=0)
    study.assert_never_waited()
    begun = time.monotonic()
    observer.end(outcome)
    assert time.monotonic() - begun < 30
    assert observer.failure is not None
    assert "has not answered" in observer.failure
    release.set()
    observer._thread.join(timeout=60)


def test_runs_that_came_to_be_twice_are_one_again(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = Store(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, store, "doubles")
    tracker.open("name: doubles\n")
    row = {"trial_id": "a", "variant": "full", "seed": 0, "status": "started"}
    tracker.trial(row)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("doubles").experiment_id
    (parent,) = (run for run in client.search_runs([experiment]) if run.data.tags["kind"] == "study")
    client.create_run(experiment, tags={"kind": "study", "study": "doubles"})
    for _ in range(2):
        client.create_run(experiment, tags={"kind": "trial", "trial_id": "a", "mlflow.parentRunId": "another"})
    again = Tracker(uri, store, "doubles")
    again.open("name: doubles\n")
    again.trial(row)
    left = client.search_runs([experiment])
    assert sorted(run.data.tags["kind"] for run in left) == ["study", "trial"]
    assert {run.data.tags.get("mlflow.parentRunId") for run in left} == {None, parent.info.run_id}
