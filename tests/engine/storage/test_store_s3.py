"""The store, and all other paths that a study names, on a real S3 server on the loopback."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from stlab.errors import DataError, StorageError
from stlab.files import local_copy, shown
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus
from stlab.study.spec import DataSpec

_number = itertools.count()


@pytest.fixture
def bucket(s3: Any) -> str:
    return str(s3.make_bucket(f"bucket-{next(_number)}"))


@pytest.fixture
def store(bucket: str) -> Store:
    return Store(f"s3://{bucket}/some/runs/")


def test_what_is_written_is_read(store: Store, bucket: str) -> None:
    store.make()
    assert store.names("") == []
    store.write("a/b/c.bin", b"123")
    store.write_json("a/d.json", {"x": [1, None]})
    assert store.read("a/b/c.bin") == b"123"
    theirs = boto3.client("s3").get_object(Bucket=bucket, Key="some/runs/a/b/c.bin")
    assert theirs["Body"].read() == b"123"
    assert store.read_json("a/d.json") == {"x": [1, None]}
    assert store.names("a") == ["b", "d.json"]
    assert store.names("b") == []
    assert [store.exists(path) for path in ("a", "a/b", "a/b/c.bin", "a/b/c", "b")] == [True, True, True, False, False]
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    assert pickle.loads(pickle.dumps(store)).read("a/b/c.bin") == b"123"


def test_folders_are_moved_and_deleted_with_all_that_is_in_them(store: Store) -> None:
    files = {"report/index.html": b"page", "report/figures/a.png": b"png", "report/figures/b.png": b"", "other/x": b"x"}
    for name, content in files.items():
        store.write(name, content)
    store.move("report", "earlier/1/report")
    assert not store.exists("report")
    assert {name: store.read(f"earlier/1/{name}") for name in files if name != "other/x"} == {
        name: content for name, content in files.items() if name != "other/x"
    }
    store.delete_folder("earlier")
    assert not store.exists("earlier")
    store.delete_folder("earlier")
    assert store.names("") == ["other"]


def test_a_trials_directory_is_what_it_is_on_a_disk(store: Store) -> None:
    directory = TrialDirectory(store, "a")
    assert directory.status() is TrialStatus.NEW
    directory.write_trial({"seed": 1})
    directory.write_failure({"reason": "x"})
    assert directory.status() is TrialStatus.FAILED
    directory.clear_failure()
    assert directory.status() is TrialStatus.STARTED
    assert store.names("trials/a") == ["failed-1.json", "trial.json"]


def test_an_earlier_study_of_the_same_name_is_kept(store: Store) -> None:
    directory = StudyDirectory(store, "bikes")
    assert directory.write_study("name: bikes\n") is None
    store.write(directory.report_path("figures/a.png"), b"png")
    kept = directory.write_study("name: bikes\nseeds: [1]\n")
    assert kept is not None
    assert store.read(f"{kept}/report/figures/a.png") == b"png"
    assert store.read(f"{kept}/study.yaml") == b"name: bikes\n"
    assert store.names(directory.prefix) == ["earlier", "study.yaml"]


def test_addresses_keep_what_the_uri_says_of_the_server(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3.endpoint.removeprefix("http://")
    store = Store(f"s3://{bucket}/runs?endpoint_override={host}&scheme=http")
    store.write("studies/x/study.yaml", b"name: x\n")
    assert store.address("studies/x/study.yaml") == f"s3://{bucket}/runs/studies/x/study.yaml?endpoint_override={host}&scheme=http"
    assert local_copy(store.address("studies/x/study.yaml")).read_bytes() == b"name: x\n"


def test_no_bucket_is_said_before_anything_is_done(s3: Any) -> None:
    with pytest.raises(StorageError, match=r"--storage s3://no-such-bucket/runs: .*no such bucket\. Make it first"):
        Store("s3://no-such-bucket/runs").make()


def test_a_server_that_is_away_is_said_within_seconds(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="No store answers there"):
        Store("s3://bucket/runs").make()


@pytest.mark.parametrize("text", ["s3://AKIA0:Hush@bucket/runs", "gs://me:Hush@bucket/runs", "s3://Hush@bucket/runs"])
def test_keys_in_a_uri_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(StorageError, match="keys do not belong in a URI") as raised:
        Store(text)
    assert "Hush" not in str(raised.value)
    assert "***" in str(raised.value)
    with pytest.raises(StorageError) as raised:
        Store("s3://bucket/runs?secret_key=Hush")
    assert "Hush" not in str(raised.value)


def test_uris_are_shown_without_secrets() -> None:
    assert shown("postgresql+psycopg2://me:Hush@host/db?sslmode=require") == "postgresql+psycopg2://me:***@host/db?sslmode=require"
    assert shown("postgresql://host/db?user=me&password=Hush") == "postgresql://host/db?user=me&password=***"
    assert shown("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert shown("http://host:5000/mlflow") == "http://host:5000/mlflow"
    assert shown("/data/a@b:c") == "/data/a@b:c"


def test_data_is_read_from_s3(store: Store, small_grid: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stlab.data import load_dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store.write("small.npz", small_grid.read_bytes())
    uri = store.address("small.npz")
    there, here = load_dataset(DataSpec(path=uri)), load_dataset(DataSpec(path=str(small_grid)))
    assert (there.sha256, there.name) == (here.sha256, here.name)
    copies = sorted(tmp_path.rglob("small.npz"))
    assert len(copies) == 1
    load_dataset(DataSpec(path=uri))
    assert sorted(tmp_path.rglob("small.npz")) == copies
    store.write("small.npz", b"something else")  # changed: the copy is not used any more
    with pytest.raises(DataError, match=rf"{store.location}/small\.npz: "):
        load_dataset(DataSpec(path=uri))
    with pytest.raises(DataError, match=r"gone\.npz: no such file \(data\.path\)"):
        load_dataset(DataSpec(path=store.address("gone.npz")))
    with pytest.raises(DataError, match="a folder"):
        load_dataset(DataSpec(path=store.location))


def test_ids_and_distances_are_read_from_s3(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stlab.data.formats.readers import read_content

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    np.savez(tmp_path / "flow.npz", data=np.random.default_rng(0).random((50, 3, 1), dtype=np.float32))
    store.write("flow.npz", (tmp_path / "flow.npz").read_bytes())
    store.write("ids.txt", b"a\nb\nc\n")
    store.write("edges.csv", b"from,to,cost\na,b,1.5\nc,a,2\n")
    places = {"path": "flow.npz", "node_ids": "ids.txt", "distances": "edges.csv"}
    series = read_content(DataSpec(family="sensors", **{name: store.address(place) for name, place in places.items()}))
    assert series.node_names == ("a", "b", "c")
    assert series.edges.tolist() == [[0, 1, 1.5], [2, 0, 2]]


def test_weights_are_read_from_s3(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stlab.study.identity import content_hash

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "checkpoint"
    (folder / "deep").mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("deep/model.safetensors", b"weights")):
        (folder / name).write_bytes(content)
        store.write(f"checkpoint/{name}", content)
    assert content_hash(store.address("checkpoint"), "model.weights") == content_hash(str(folder), "model.weights")
