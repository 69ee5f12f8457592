"""Trial and study directories: no partial files, described columns, and one protocol per table."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from stlab.errors import ProtocolMismatch, StorageError, UserError
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus, single_protocol
from stlab.storage.schema import HORIZON, PREDICTIONS, epochs_table, flatten, trials_table

KILLED_WRITER = """
import os, signal, sys
import pyarrow as pa
from stlab.storage import Store

class Dying:
    '''A stream that takes half of what it is given and then the process is gone.'''
    def __init__(self, stream): self.stream = stream
    def __enter__(self): return self
    def __exit__(self, *error): self.stream.close()
    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

class FileSystem:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def open_output_stream(self, path): return Dying(self.inner.open_output_stream(path))

store = Store(sys.argv[1])
store._fs = FileSystem(store._fs)
store.write("trials/a/result.json", b"new" * 1000)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.mark.parametrize("before", [None, b"old"], ids=["first", "again"])
def test_a_killed_writer_leaves_no_half_file(store: Store, before: bytes | None) -> None:
    if before is not None:
        store.write("trials/a/result.json", before)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, store.location], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    if before is None:
        assert not store.exists("trials/a/result.json")
        assert TrialDirectory(store, "a").status() is TrialStatus.NEW
    else:
        assert store.read("trials/a/result.json") == before
    store.write("trials/a/result.json", b"next")
    assert store.read("trials/a/result.json") == b"next"


def test_an_interrupted_write_keeps_the_file_and_leaves_nothing_beside_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/file", b"old")

    class NoMove:
        def __getattr__(self, name: str) -> Any:
            return getattr(pafs.LocalFileSystem(), name)

        def move(self, source: str, target: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "_fs", NoMove())
    with pytest.raises(KeyboardInterrupt):
        store.write("a/file", b"new")
    assert store.names("a") == ["file"]
    assert store.read("a/file") == b"old"


def test_names_are_sorted_and_empty_where_there_is_nothing(store: Store) -> None:
    for name in ("b", "a", "c", "B"):
        store.write(f"folder/{name}", b"")
    store.write("folder/sub/x", b"")
    assert store.names("folder") == sorted(["b", "a", "c", "B", "sub"])
    assert store.names("nowhere") == []


def test_reading_and_writing_name_what_is_wrong(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*file/x"):
        store.write("file/x", b"")
    with pytest.raises(StorageError, match="--storage nosuch://x"):
        Store("nosuch://x")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc, which this system lacks")
def test_reading_a_table_leaves_no_thread_behind(store: Store) -> None:
    """Arrow's threads take Python's lock after the call, and abort a process that ends at that moment (seen once in many runs)."""
    store.write_table("table.parquet", pa.table({name: np.arange(50_000) for name in "abcdefgh"}))
    program = (
        "import os, sys\n"
        "from stlab.storage import Store\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "assert Store(sys.argv[1]).read_table('table.parquet').num_rows == 50_000\n"
        "print(before, threads())"
    )
    answer = subprocess.run([sys.executable, "-c", program, store.location], capture_output=True, text=True, check=True)
    before, after = answer.stdout.split()
    assert before == after


def test_a_store_survives_pickling_and_takes_urls(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/runs")
    store.write_json("a/b.json", {"x": [1, None]})
    again: Store = pickle.loads(pickle.dumps(store))
    assert again.read_json("a/b.json") == {"x": [1, None]}
    assert json.loads((tmp_path / "runs" / "a" / "b.json").read_text()) == {"x": [1, None]}


def test_the_status_is_what_the_files_say(store: Store) -> None:
    directory = TrialDirectory(store, "a")
    assert directory.status() is TrialStatus.NEW
    directory.write_trial({})
    assert directory.status() is TrialStatus.STARTED
    for round_ in (1, 2):
        directory.write_failure({"reason": f"reason {round_}"})
        assert directory.status() is TrialStatus.FAILED
        directory.clear_failure()
        assert directory.status() is TrialStatus.STARTED
        assert directory.read(f"failed-{round_}.json") == {"reason": f"reason {round_}"}
    directory.clear_failure()
    store.write_json("trials/a/pruned.json", {})
    assert directory.status() is TrialStatus.PRUNED
    directory.write_result({})
    assert directory.status() is TrialStatus.FINISHED
    assert not directory.is_tested()


@pytest.mark.parametrize(
    "table",
    [
        HORIZON.empty_table(),
        PREDICTIONS.empty_table(),
        trials_table([{"param.model.rank": 4}]),
        epochs_table([{"epoch": 1, "loss.flow": 0.5}]),
    ],
    ids=["horizon", "predictions", "trials", "epochs"],
)
def test_every_column_says_what_it_means(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "t.parquet")
    for field in pq.read_schema(tmp_path / "t.parquet"):
        assert len(field.metadata[b"meaning"]) > 3, field.name
        assert b"unit" in field.metadata, field.name


def test_parameters_are_typed_and_mixed_ones_are_json() -> None:
    rows = [
        {
            "param.int": 1,
            "param.real": 1,
            "param.flag": True,
            "param.text": "a",
            "param.unset": None,
            "param.mixed": 16,
            "param.list": [1, 2],
        },
        {
            "param.int": 2,
            "param.real": 0.5,
            "param.flag": None,
            "param.text": None,
            "param.unset": None,
            "param.mixed": "all",
            "param.list": None,
        },
        {"param.mixed": True},
    ]
    table = trials_table(rows)
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names if name.startswith("param.")}
    assert kinds == {
        "param.int": "int64",
        "param.real": "double",
        "param.flag": "bool",
        "param.text": "string",
        "param.unset": "string",
        "param.mixed": "string",
        "param.list": "string",
    }
    assert table["param.int"].to_pylist() == [1, 2, None]
    assert table["param.real"].to_pylist() == [1.0, 0.5, None]
    assert table["param.mixed"].to_pylist() == ["16", "all", "true"]
    assert table["param.list"].to_pylist() == ["[1, 2]", None, None]


def test_flatten_names_nested_fields_with_dots() -> None:
    assert flatten({"model": {"rank": 8}, "data": {"split": (0.7, 0.3)}, "x": None}) == {
        "model.rank": 8,
        "data.split": [0.7, 0.3],
        "x": None,
    }


def finished(store: Store, trial_id: str = "a") -> TrialDirectory:
    directory = TrialDirectory(store, trial_id)
    directory.write_trial(
        {
            "seed": 3,
            "dataset": "bikes",
            "synthetic": False,
            "leaks": False,
            "protocol": "{}",
            "data": {"split": [0.7, 0.15, 0.15]},
            "model": {"name": "st_vfm", "rank": 4},
            "train": {"lr": 1e-3},
            "resources": {"gpus": None},
        }
    )
    directory.write_result(
        {
            "val_mae": 1.0,
            "val_rmse": 2.0,
            "best_epoch": 7,
            "epochs": 9,
            "started_at": "2025-03-01T12:30:00.123456+00:00",
        }
    )
    return directory


def test_a_finished_trial_becomes_a_typed_row(store: Store) -> None:
    directory = finished(store)
    table = trials_table([{"study": "s", "variant": "full", **directory.row()}])
    row = table.to_pylist()[0]
    assert row["started_at"] == datetime(2025, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
    assert (row["status"], row["seed"], row["val_rmse"], row["best_epoch"], row["test_rmse"]) == (
        "finished",
        3,
        2.0,
        7,
        None,
    )
    assert (row["param.model.rank"], row["param.train.lr"], row["param.data.split"]) == (4, 1e-3, "[0.7, 0.15, 0.15]")


def test_a_failed_trial_becomes_a_row_that_says_why(store: Store) -> None:
    directory = TrialDirectory(store, "a")
    directory.write_trial({"seed": 0})
    directory.write_failure({"reason": "the loss is nan", "epoch": 4})
    row = trials_table([directory.row()]).to_pylist()[0]
    assert (row["status"], row["error"], row["epochs"], row["started_at"]) == ("failed", "the loss is nan", 4, None)


def test_the_test_record_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = finished(store)
    written: list[str] = []
    write = Store.write
    monkeypatch.setattr(
        Store, "write", lambda self, relative, content: (written.append(relative), write(self, relative, content))[1]
    )
    predictions = pa.table(
        {
            "window": [0],
            "horizon": pa.array([1], pa.int32()),
            "time": pa.nulls(1, pa.timestamp("s")),
            "truth": pa.array([[1.0]], pa.list_(pa.float32())),
            "forecast": pa.array([[1.5]], pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"shape": "[1]"})
    horizon = [{"segment": "test", "horizon": 1, "mae": 0.5, "rmse": 0.5, "mape": None, "count": 1}]
    directory.write_test({"mae": 0.5, "rmse": 0.5, "mape": None}, horizon, predictions)
    assert written[-1].endswith("test.json")
    assert directory.is_tested()
    assert directory.read_predictions().schema.metadata[b"shape"] == b"[1]"
    assert directory.read_horizon().to_pylist() == horizon
    assert directory.row()["test_rmse"] == 0.5


def test_epochs_round_trip(store: Store) -> None:
    directory = TrialDirectory(store, "a")
    assert directory.read_epochs() == []
    value = float(np.nextafter(0.1, 1))
    directory.write_epochs([{"epoch": 1, "step": 5, "loss": value, "loss.flow": value / 3}])
    row = directory.read_epochs()[0]
    assert (row["loss"], row["loss.flow"], row["grad_norm"]) == (value, value / 3, None)


def test_a_study_of_the_same_name_keeps_the_earlier_one(store: Store) -> None:
    study = StudyDirectory(store, "bikes")
    assert study.read_study() is None
    assert study.write_study("name: bikes\n") is None
    study.write_trials([{"study": "bikes", "variant": "first"}])
    store.write(study.report_path(), b"<html>")
    assert study.write_study("name: bikes\n") is None  # the same again: nothing to keep apart
    assert study.read_trials()["variant"].to_pylist() == ["first"]
    kept = study.write_study("name: bikes\nseeds: [1]\n")
    assert kept is not None
    assert store.read(f"{kept}/study.yaml") == b"name: bikes\n"
    assert store.read_table(f"{kept}/results/trials.parquet")["variant"].to_pylist() == ["first"]
    assert store.read(f"{kept}/report/index.html") == b"<html>"
    with pytest.raises(UserError, match=r"no results of a study 'bikes'.*stlab run bikes"):
        study.read_trials()
    another = study.write_study("name: bikes\n")
    assert another not in (None, kept)
    assert len(store.names("studies/bikes/earlier")) == 2


def protocol_row(variant: str, **protocol: Any) -> dict[str, Any]:
    return {"variant": variant, "trial_id": f"id-{variant}", "protocol": json.dumps(protocol)}


def test_one_protocol_is_shared_and_rows_without_one_do_not_count() -> None:
    rows = [
        {"variant": "lost", "trial_id": "x", "protocol": None},
        protocol_row("a", horizon=6),
        protocol_row("b", horizon=6),
    ]
    assert single_protocol(rows) == {"horizon": 6}
    assert single_protocol([]) == {}


def test_a_mix_of_protocols_is_refused_by_the_first_field_that_differs() -> None:
    fields = ["data_sha256", "family", "channels", "history", "horizon", "split", "scaler", "mask", "scale", "missing"]
    one, other = ({"protocol": "forecast", **dict.fromkeys(fields, value)} for value in (1, 2))
    with pytest.raises(ProtocolMismatch, match=r"data_sha256 is 1 for a \(id-a\) and 2 for b \(id-b\)"):
        single_protocol([protocol_row("a", **one), protocol_row("b", **other)])
    with pytest.raises(ProtocolMismatch, match=r"mask is None for a .* and 0 for b"):
        single_protocol([protocol_row("a", horizon=6), protocol_row("b", horizon=6, mask=0)])


def test_a_trained_trial_that_could_not_be_tested_is_a_failure_until_asked_to_retry(tmp_path: Path) -> None:
    directory = TrialDirectory(Store(tmp_path), "a" * 16)
    directory.write_trial({"seed": 0})
    directory.write_result({"val_rmse": 1.0})
    directory.write_failure({"reason": "disk full"})
    row = directory.row()
    assert (row["status"], row["error"]) == ("failed", "disk full")
    assert directory.status() is TrialStatus.FINISHED
    assert not directory.is_tested()
    assert directory.is_over()
    directory.clear_failure()
    assert not directory.is_over()
