"""A study whose data and results lie on a real S3 server, through the command line: run, resume, change, report, sync; no secret leaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest

from stlab.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PASSWORD = "hunter2TrackingPasswordNeverToBeShown"


@dataclass(frozen=True)
class Ran:
    """A first run."""

    stlab: Any
    answer: Any
    written: set[str]
    here: set[str]


@pytest.fixture(scope="module")
def ran(stlab_on_cluster: Any, s3_server: Any, study_text: str, grid: dict[str, np.ndarray]) -> Any:
    """The command line with S3 in its environment, what it said of a first run, and what that left there and here."""
    stlab, patch = stlab_on_cluster, pytest.MonkeyPatch()
    for name, value in {**s3_server.environment, "XDG_CACHE_HOME": str(stlab.folder / "cache")}.items():
        patch.setenv(name, value)
    for bucket in ("data", "results"):
        s3_server.make_bucket(bucket)
    np.savez(stlab.folder / "grid.npz", **grid)
    boto3.client("s3").upload_file(str(stlab.folder / "grid.npz"), "data", "cities/grid.npz")
    (stlab.folder / "grid.npz").unlink()
    text = study_text.replace("'synthetic:city?weeks=4'", "s3://data/cities/grid.npz")
    text = text.replace("seeds: [0, 1]", "seeds: [0]\nbaselines: [last_value]")
    (stlab.folder / "tiny.yaml").write_text(text)
    answer = stlab("--debug", *RUN, timeout=900)
    assert answer.code == 0, answer
    yield Ran(stlab, answer, set(_written()), {path.name for path in stlab.folder.iterdir()})
    patch.undo()


RUN = ("run", "tiny.yaml", "--storage", "s3://results/of/us")


@pytest.fixture
def here(ran: Ran, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line in the folder of the run, called in this process: nothing is left to train."""
    monkeypatch.chdir(ran.stlab.folder)
    return say


def _written() -> dict[str, Any]:
    """Everything in the bucket, and when it was written."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="results")
    return {entry["Key"]: entry["LastModified"] for page in pages for entry in page.get("Contents", [])}


def _trials() -> pd.DataFrame:
    return Store("s3://results/of/us").read_table("studies/tiny/results/trials.parquet").to_pandas()


def test_results_and_report_are_objects_and_nothing_else_is(ran: Ran) -> None:
    answer, names = ran.answer, ran.written
    assert set(_trials().status) == {"finished"}
    assert sorted(_trials().variant) == ["full", "last_value", "no flow"]
    for trial in _trials().itertuples():
        files = {name.removeprefix(f"of/us/trials/{trial.trial_id}/") for name in names if trial.trial_id in name}
        assert {"trial.json", "result.json", "test.json", "predictions.parquet", "checkpoint/best.safetensors"} <= files
    assert not [name for name in names if ".ray" in name or ".probe" in name or ".tmp" in name]
    assert "report   s3://results/of/us/studies/tiny/report/index.html" in answer.out
    assert "of/us/studies/tiny/report/index.html" in names
    assert ran.here == {"tiny.yaml", "cache"}


def test_no_key_is_written_or_said(ran: Ran, s3_server: Any) -> None:
    answer = ran.answer
    client = boto3.client("s3")
    for secret in (s3_server.secret_key, s3_server.access_key):
        assert secret not in answer.out + answer.err
        for name in _written():
            assert secret.encode() not in client.get_object(Bucket="results", Key=name)["Body"].read(), name


def test_a_second_run_trains_nothing(here: Callable[..., Any]) -> None:
    before = {name: when for name, when in _written().items() if "/trials/" in name}
    answer = here(*RUN)
    assert answer.code == 0, answer
    assert answer.out.startswith("tiny  3 trials, 3 there already.")
    assert {name: when for name, when in _written().items() if "/trials/" in name} == before


def test_the_report_is_made_again_and_mlflow_brought_up_to_date(ran: Ran, here: Callable[..., Any], s3_server: Any) -> None:
    stlab = ran.stlab
    boto3.client("s3").delete_object(Bucket="results", Key="of/us/studies/tiny/report/index.html")
    answer = here("report", "tiny", "--storage", "s3://results/of/us")
    assert answer.code == 0, answer
    assert "of/us/studies/tiny/report/index.html" in _written()
    uri = f"sqlite:///{stlab.folder}/mlflow.db"
    for _ in range(2):
        answer = here("sync", "tiny", "--storage", "s3://results/of/us", "--tracking-uri", uri)
        assert answer.code == 0, answer
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.data.tags["kind"] for run in runs) == ["study", "summary", "summary", "summary", "trial", "trial", "trial"]
    assert all(run.info.artifact_uri.startswith("s3://results/of/us/mlartifacts/tiny/") for run in runs)
    best = [run for run in runs if run.data.tags.get("best") == "true"]
    assert len(best) == 1
    assert any("mlartifacts/tiny/models" in name for name in _written())
    everything = (stlab.folder / "mlflow.db").read_bytes()
    assert s3_server.secret_key.encode() not in everything


def test_the_earlier_study_is_kept_where_it_is_changed(here: Callable[..., Any]) -> None:
    assert here(*RUN, "--set", "name=other").code == 0  # of the same trials
    answer = here(*RUN, "--set", "name=other", "--set", "description=changed", "--tracking-uri", f"http://me:{PASSWORD}@127.0.0.1:9")
    assert answer.code == 0, answer
    kept = re.search(r"earlier results and report are kept in s3://results/(.*)\.", answer.out)
    assert kept, answer.out
    assert {f"{kept[1]}/study.yaml", f"{kept[1]}/results/trials.parquet", f"{kept[1]}/report/index.html"} <= set(_written())
    assert "of/us/studies/other/report/index.html" in _written()
    assert "MLflow is behind" in answer.out
    assert PASSWORD not in answer.out + answer.err
    client = boto3.client("s3")
    assert not [name for name in _written() if PASSWORD.encode() in client.get_object(Bucket="results", Key=name)["Body"].read()]


def test_a_bucket_that_is_not_there_is_said_before_anything_trains(here: Callable[..., Any]) -> None:
    answer = here("run", "tiny.yaml", "--storage", "s3://nowhere/runs")
    assert answer.code == 2
    assert "s3://nowhere/runs" in answer.err
    assert "There is no such bucket. Make it first" in answer.err
    assert "Traceback" not in answer.err


def test_keys_in_a_uri_are_refused(here: Callable[..., Any]) -> None:
    answer = here("run", "tiny.yaml", "--storage", f"s3://AKIA:{PASSWORD}@results/runs")
    assert answer.code == 2
    assert "keys do not belong in a URI" in answer.err
    assert PASSWORD not in answer.out + answer.err
