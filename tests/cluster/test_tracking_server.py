"""A tracking server as a group has it: ``mlflow server`` on PostgreSQL, its artifacts on S3."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from stlab.errors import UserError
from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.storage.schema import PREDICTIONS
from stlab.tracking import Tracker, TrackingUnavailable, sync
from tests.support.servers import end_group, free_port, start_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PASSWORD = "hunter2DatabasePassword"
STUDY = "name: bikes\naxes: {}\n"


@dataclass
class Database:
    process: subprocess.Popen[bytes]
    port: int

    def uri(self, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{self.port}/postgres"

    def ask(self, query: str) -> list[Any]:
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.uri().replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """PostgreSQL of this test's own, with a password."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (binaries and shutil.which("initdb", path=str(binaries[-1])))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="stlab-postgres-"))
    options: dict[str, Any] = {"cwd": folder}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    initdb = [found, "-D", str(folder / "data"), "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, **options)
    port = free_port()
    command = [str(Path(found).with_name("postgres")), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    log = folder / "log"
    with log.open("wb") as output:
        server = Database(subprocess.Popen(command, stdout=output, stderr=output, **options), port)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                server.ask("SELECT 1")
                break
            except Exception:  # noqa: BLE001 - whatever it says while it starts
                assert server.process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield server
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.process.send_signal(signal.SIGINT)  # a fast shutdown
        server.process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(database: Database, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``mlflow server``; the password reaches it through its environment."""
    s3_server.make_bucket("artifacts")
    log, port = tmp_path_factory.mktemp("server") / "log", free_port()
    variables = s3_server.environment | {"MLFLOW_BACKEND_STORE_URI": database.uri()}
    process = start_mlflow(port, log, "--artifacts-destination", "s3://artifacts/mlflow", **variables)
    yield f"http://127.0.0.1:{port}"
    end_group(process)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A study of three trials that ended."""
    store = Store(tmp_path)
    rows = []
    for seed in range(3):
        directory = TrialDirectory(store, f"trial-{seed}")
        directory.write_trial(
            {"seed": seed, "baseline": False, "data": {"path": "gone.npz"}, "model": {"name": "st_vfm"}, "train": {"lr": 3e-4}}
        )
        directory.write_epochs(
            [{"epoch": e, "step": e, "loss": 1 / e, "val_mae": 3.0, "val_rmse": 4.0, "lr": 1e-3, "seconds": 1.0} for e in range(1, 8)]
        )
        directory.write_result({"val_rmse": 4.0, "val_mae": 3.0, "best_epoch": 7, "epochs": 7, "wall_seconds": 7.0})
        directory.write_test({"rmse": 4.0 + seed, "mae": 2.0}, [], PREDICTIONS.empty_table())
        rows.append({"study": "bikes", "variant": "full"} | directory.row())
    study = StudyDirectory(store, "bikes")
    study.write_study(STUDY)
    study.write_trials(rows)
    store.write(study.report_path(), b"<html></html>")
    return store


def test_a_study_is_brought_there_once_however_often(store: Store, server: str, database: Database, s3: Any) -> None:
    def counts() -> dict[str, int]:
        tables = ("experiments", "runs", "metrics", "params", "tags", "logged_models")
        return {table: database.ask(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    assert sync(store, "bikes", server) == 3
    once = counts()
    assert once["runs"] == 1 + 3 + 1
    assert sync(store, "bikes", server) == 3
    assert counts() == once
    epochs = database.ask("SELECT step, value FROM metrics WHERE key = 'epoch/loss' ORDER BY step, run_uuid")
    assert epochs == [(e, 1 / e) for e in range(1, 8) for _ in range(3)]
    names = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="artifacts")["Contents"]]
    assert sum(name.endswith("/result.json") for name in names) == 3
    (key,) = (name for name in names if name.endswith("report/index.html"))
    assert boto3.client("s3").get_object(Bucket="artifacts", Key=key)["Body"].read() == b"<html></html>"


def test_the_database_itself_is_a_tracking_uri_too(store: Store, database: Database, s3: Any) -> None:
    StudyDirectory(store, "straight").write_study(STUDY)
    StudyDirectory(store, "straight").write_trials(StudyDirectory(store, "bikes").read_trials().to_pylist())
    for _ in range(2):
        assert sync(store, "straight", database.uri()) == 3
    query = "SELECT count(*) FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = 'straight'"
    assert database.ask(query) == [(5,)]
    assert not [path for path in Path(store.location).rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


def test_a_wrong_password_is_told_and_not_shown(store: Store, database: Database) -> None:
    with pytest.raises(TrackingUnavailable, match=r"psycopg2://mlflow:\*\*\*@127.0.0.1.*password authentication failed") as raised:
        Tracker(database.uri("hunter2WrongPassword"), store, "bikes").open(STUDY)
    assert "hunter2" not in str(raised.value)


def test_a_driver_that_is_not_there_is_named_with_the_one_that_may_be(store: Store) -> None:
    """SQLAlchemy 2.1 takes postgresql:// to mean psycopg 3, which is seldom installed."""
    with pytest.raises(UserError, match=r"'psycopg'.*write postgresql\+psycopg2://"):
        Tracker(f"postgresql://mlflow:{PASSWORD}@127.0.0.1:9/postgres", store, "bikes").open(STUDY)


def test_a_database_that_hangs_is_told_within_seconds(store: Store, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.process.send_signal(signal.SIGSTOP)  # it accepts no one any more; the kernel does, for a while
    try:
        begun = time.monotonic()
        with pytest.raises(TrackingUnavailable, match="timeout"):
            Tracker(database.uri(), store, "bikes").open(STUDY)
        assert time.monotonic() - begun < 30
    finally:
        database.process.send_signal(signal.SIGCONT)
