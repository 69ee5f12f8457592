"""A study in MLflow, compared with its trial directories, on a real SQLite database."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from scipy import stats

from stlab.errors import UserError
from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.storage.schema import PREDICTIONS
from stlab.tracking import Tracker, TrackingUnavailable, default_uri, study_url, sync, ui_command

STUDY = "name: bikes\ndescription: What the flow branch is worth.\naxes: {}\n"
SECRET = "hunter2-do-not-log"
EPOCHS = 12
RMSE = {("full", 0): 7.1, ("full", 1): 7.4, ("full", 2): 7.0, ("no flow", 0): 7.9, ("no flow", 1): 8.0}
STARTED = datetime(2025, 3, 1, 12, tzinfo=UTC)


def epoch_rows(count=EPOCHS):
    return [
        {"epoch": e, "step": 10 * e, "loss": 1 / e, "loss.flow": 0.1 / e, "val_mae": 3 + 1 / e, "val_rmse": 7 + 2 / e,
         "lr": 1e-3 / e, "grad_norm": math.nan if e == 3 else 0.5, "seconds": 2.0, "samples_per_second": None}
        for e in range(1, count + 1)
    ]


def write_trial(store, study, variant, seed, rmse, epochs=EPOCHS):
    """Write a trial's directory (a failed trial if there is no RMSE); returns its row."""
    directory = TrialDirectory(store, f"{study}-{variant}-{seed}".replace(" ", ""))
    directory.write_trial(
        {"seed": seed, "baseline": False, "dataset": "nycbike1", "synthetic": False, "leaks": False,
         "weights": "random",
         "protocol": '{"family": "grid"}', "data_sha256": "ab12", "code_version": "0.1.0+abc",
         "data": {"path": "nycbike1.npz", "split": [0.7, 0.15, 0.15], "null": None},
         "model": {"name": "st_vfm", "backbone": "dinov2_small", "flow": variant == "full", "note": "x" * 900,
                   **{f"field_{i}": i for i in range(120)}},
         "train": {"lr": 3e-4}}
    )  # fmt: skip
    directory.write_epochs(epoch_rows(epochs))
    if rmse is None:
        directory.write_failure({"reason": "loss is not finite", "epoch": epochs})
    else:
        directory.write_result({"val_rmse": rmse + 0.1, "val_mae": 3.0, "best_epoch": 9, "epochs": epochs,
                                "wall_seconds": 24.5, "trainable_params": 1234, "started_at": STARTED.isoformat()})
        directory.write_test({"rmse": rmse, "mae": rmse / 2}, [], PREDICTIONS.empty_table())
    return {"study": study, "variant": variant} | directory.row()


def write_study(store, name="bikes"):
    rows = [write_trial(store, name, *key, rmse) for key, rmse in RMSE.items()]
    rows.append(write_trial(store, name, "no flow", 2, None, epochs=4))
    study = StudyDirectory(store, name)
    study.write_study(STUDY.replace("bikes", name))
    stored = [row | {"started_at": STARTED if row["status"] == "finished" else None} for row in rows]
    study.write_trials(stored)
    store.write(study.report_path(), b"<html></html>")
    store.write(study.report_path("tables/ablation.csv"), b"variant\n")
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("the storage") / "größe #1 100%")


@pytest.fixture(scope="module")
def uri(store):
    return default_uri(store)


@pytest.fixture(scope="module")
def rows(store):
    return write_study(store)


@pytest.fixture(scope="module")
def synced(store, uri, rows):
    """The database after three synchronisations."""
    patch = pytest.MonkeyPatch()
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "STLAB_ANYTHING"):
        patch.setenv(name, SECRET)
    assert [sync(store, "bikes", uri) for _ in range(3)] == [len(rows)] * 3
    patch.undo()
    return uri


@pytest.fixture(scope="module")
def client(synced):
    from mlflow.tracking import MlflowClient

    return MlflowClient(synced)


def runs_of(client, experiment="bikes"):
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def trial_run(client, row, experiment="bikes"):
    (run,) = [run for run in runs_of(client, experiment) if run.data.tags.get("trial_id") == row["trial_id"]]
    return run


def summaries(client, experiment):
    return {r.data.tags["label"]: r for r in runs_of(client, experiment) if r.data.tags["kind"] == "summary"}


def test_importing_the_package_does_not_import_mlflow():
    code = "import sys, stlab.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_synchronising_thrice_doubles_no_run(client, rows):
    kinds = Counter(run.data.tags["kind"] for run in runs_of(client))
    assert kinds == {"study": 1, "trial": len(rows), "summary": 2}


def test_children_hang_from_the_parent(client):
    runs = runs_of(client)
    (parent,) = [run for run in runs if run.data.tags["kind"] == "study"]
    assert parent.info.run_name == "bikes"
    assert parent.info.status == "FINISHED"
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs if run is not parent} == {parent.info.run_id}


def test_tags_and_parameters_are_the_rows(client, rows):
    run = trial_run(client, rows[1])
    expected = {"variant": "full", "seed": "1", "dataset": "nycbike1", "backbone": "dinov2_small",
                "weights": "random",
                "protocol": '{"family": "grid"}', "code_version": "0.1.0+abc", "status": "finished",
                "baseline": "false", "synthetic": "false", "leaks": "false"}
    assert {key: run.data.tags.get(key) for key in expected} == expected
    assert run.info.run_name == "full · seed 1"
    params = run.data.params
    assert len(params) == sum(key.startswith("param.") and value is not None for key, value in rows[1].items())
    assert float(params["train.lr"]) == 3e-4
    assert params["model.flow"] == "true"
    assert len(params["model.note"]) == 500


def test_every_epoch_is_there_once_with_its_value(client, rows):
    run = trial_run(client, rows[0])
    history = client.get_metric_history(run.info.run_id, "epoch/val_rmse")
    assert [metric.step for metric in history] == list(range(1, EPOCHS + 1))
    assert [metric.value for metric in history] == [7 + 2 / e for e in range(1, EPOCHS + 1)]
    assert [m.timestamp - 1000 * STARTED.timestamp() for m in history] == [2000 * e for e in range(1, EPOCHS + 1)]
    gradient = client.get_metric_history(run.info.run_id, "epoch/grad_norm")
    assert [metric.step for metric in gradient if math.isnan(metric.value)] == [3]
    assert "epoch/samples_per_second" not in run.data.metrics


def test_final_metrics_stand_once_beside_the_epochs(client, rows):
    run = trial_run(client, rows[0])
    expected = {"test_rmse": 7.1, "test_mae": 3.55, "val_rmse": 7.2, "best_epoch": 9, "wall_seconds": 24.5}
    assert {key: run.data.metrics[key] for key in expected} == pytest.approx(expected)
    assert run.data.metrics["epochs"] == EPOCHS
    assert len(client.get_metric_history(run.info.run_id, "test_rmse")) == 1
    assert run.info.end_time - run.info.start_time == 24500


def test_a_failed_trial_says_why(client, rows):
    run = trial_run(client, rows[-1])
    assert run.info.status == "FAILED"
    assert run.data.tags["status"] == "failed"
    assert run.data.tags["error"] == "loss is not finite"
    assert "test_rmse" not in run.data.metrics


def test_artifacts_are_the_directory_less_its_checkpoints(client, rows, store):
    run = trial_run(client, rows[0])
    names = {info.path for info in client.list_artifacts(run.info.run_id)}
    tables = {"epochs.parquet", "horizon.parquet", "predictions.parquet"}
    assert names == tables | {"trial.json", "result.json", "test.json"}
    copied = Path(client.download_artifacts(run.info.run_id, "epochs.parquet"))
    assert copied.read_bytes() == store.read(f"trials/{rows[0]['trial_id']}/epochs.parquet")
    assert run.info.artifact_uri.startswith(Path(store.path("mlartifacts/bikes")).as_uri())


def test_the_report_lies_with_the_parent(client):
    (parent,) = [run for run in runs_of(client) if run.data.tags["kind"] == "study"]
    assert {info.path for info in client.list_artifacts(parent.info.run_id)} == {"study.yaml", "report"}
    report = {info.path for info in client.list_artifacts(parent.info.run_id, "report")}
    assert report == {"report/index.html", "report/tables"}


@pytest.mark.parametrize(("variant", "failed"), [("full", 0), ("no flow", 1)])
def test_summaries_are_the_students_interval(client, variant, failed):
    run = summaries(client, "bikes")[variant]
    values = [rmse for (name, _), rmse in RMSE.items() if name == variant]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    metrics = run.data.metrics
    assert metrics["test_rmse"] == pytest.approx((interval.low + interval.high) / 2)
    assert metrics["test_rmse_ci95"] == pytest.approx((interval.high - interval.low) / 2)
    assert metrics["test_rmse_sd"] == pytest.approx(stats.tstd(values))
    assert metrics["test_rmse_n"] == len(values)
    assert metrics["failed"] == failed


def test_nothing_of_the_environment_is_logged(client, store):
    for run in runs_of(client):
        assert SECRET not in str(run.to_dictionary())
    files = [path for path in Path(store.location).rglob("*") if path.is_file()]
    assert Path(store.location, "mlflow.db") in files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_new_tracker_goes_on_where_the_last_one_stopped(client, store, uri):
    row = write_trial(store, "resumed", "full", 0, 7.0)
    start = {key: value for key, value in row.items() if key in ("trial_id", "variant", "seed")} | {"status": "started"}
    for upto in (5, 8):
        tracker = Tracker(uri, store, "resumed")
        tracker.open(STUDY)
        tracker.trial(start)
        tracker.epochs(row["trial_id"], epoch_rows(upto))
        assert trial_run(client, row, "resumed").info.status == "RUNNING"
        tracker.close("interrupted")
        assert trial_run(client, row, "resumed").info.status == "KILLED"
    tracker.open(STUDY)
    tracker.finish(row)
    tracker.finish(row)
    run = trial_run(client, row, "resumed")
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "epoch/loss")] == list(range(1, EPOCHS + 1))


def test_fast_epochs_are_written_together_and_none_is_lost(client, store, uri):
    tracker = Tracker(uri, store, "fast")
    tracker.open(STUDY)
    row = {"trial_id": "fast-0", "variant": "full", "seed": 0, "status": "started"}
    tracker.trial(row)
    for epoch in epoch_rows():
        tracker.epochs("fast-0", [epoch])  # each epoch is told once only
    tracker.close("interrupted")
    run = trial_run(client, row, "fast")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "epoch/loss")] == list(range(1, EPOCHS + 1))


def test_axes_are_summarised_apart_and_what_is_no_longer_listed_is_marked(client, store, uri):
    rows = [
        {"trial_id": f"axis-{ratio}-{seed}", "variant": "full", "seed": seed, "status": "finished",
         "test_rmse": ratio + seed, "param.data.train_ratio": ratio}
        for ratio in (0.1, 1.0) for seed in (0, 1)
    ]
    tracker = Tracker(uri, store, "axes")
    tracker.open("name: axes\naxes: {data.train_ratio: [0.1, 1.0]}\n")
    for row in rows:
        tracker.trial(row)
    tracker.summarise(rows)
    means = {label: run.data.metrics["test_rmse"] for label, run in summaries(client, "axes").items()}
    assert means == pytest.approx({"full · data.train_ratio=0.1": 0.6, "full · data.train_ratio=1.0": 1.5})
    tracker.summarise(rows[:2])
    left = [run.data.tags for run in runs_of(client, "axes") if run.data.tags.get("status") == "superseded"]
    superseded = {tags["label"] for tags in left}
    assert superseded == {"full · data.train_ratio=1.0"}
    tracker.trial(rows[3])
    assert trial_run(client, rows[3], "axes").data.tags["status"] == "finished"


def test_a_server_that_is_away_is_told_within_seconds(store, rows, unused_port):
    tracker = Tracker(f"http://user:{SECRET}@127.0.0.1:{unused_port}", store, "bikes")
    for call in (lambda: tracker.open(STUDY), lambda: tracker.trial(rows[0]), lambda: tracker.finish(rows[0])):
        begun = time.monotonic()
        with pytest.raises(TrackingUnavailable, match=r"127\.0\.0\.1") as raised:
            call()
        assert time.monotonic() - begun < 10
        assert SECRET not in str(raised.value)


def test_a_database_that_is_away_is_told_within_seconds(store, tmp_path):
    (tmp_path / "broken.db").write_bytes(b"not a database " * 100)
    begun = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="not a database"):
        Tracker(f"sqlite:///{tmp_path}/broken.db", store, "bikes").open(STUDY)
    assert time.monotonic() - begun < 10


def test_what_was_missed_while_the_database_was_away_is_made_up_for(client, store, uri, monkeypatch):
    row = write_trial(store, "outage", "full", 0, 7.0)
    tracker = Tracker(uri, store, "outage")
    tracker.open(STUDY)

    def refuse(*_, **__):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.create_run", refuse)
        with pytest.raises(TrackingUnavailable, match="gone"):
            tracker.trial(row | {"status": "started"})
    time.sleep(0.3)  # what failed is not tried again at once
    tracker.epochs(row["trial_id"], epoch_rows(3))
    tracker.finish(row)
    run = trial_run(client, row, "outage")
    assert run.data.tags["variant"] == "full"
    assert run.data.metrics["epochs"] == EPOCHS


def test_a_deleted_experiment_is_the_users_to_restore(client, store, uri):
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(UserError, match="restore"):
        Tracker(uri, store, "deleted").open(STUDY)


@pytest.mark.parametrize("wrong", ["./mlruns", "file:///tmp/mlruns", "ftp://host/x", ""])
def test_a_uri_of_another_kind_is_refused(wrong, store):
    with pytest.raises(UserError, match=r"URI"):
        Tracker(wrong, store, "bikes")


def test_a_study_that_was_not_run_cannot_be_synchronised(store, uri):
    with pytest.raises(UserError, match="no results"):
        sync(store, "never", uri)


def test_default_uri_lies_in_a_local_storage_only(store):
    assert default_uri(store) == f"sqlite:///{store.location}/mlflow.db"
    assert default_uri(Store("file:///data/runs")) == "sqlite:////data/runs/mlflow.db"
    assert default_uri(Store("s3://bucket/runs?region=eu-west-1")) is None


def test_ui_command_binds_to_this_machine():
    command = ui_command("sqlite:////data/mlflow.db", port=5111)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == "sqlite:////data/mlflow.db"
    assert ui_command("http://tracking:5000")[-1] == "http://tracking:5000"


def test_data_sets_are_summarised_apart_and_each_has_a_best_trial_and_a_column(client, store, uri):
    rows = [
        {"trial_id": f"{name}-{variant}-{seed}", "variant": variant, "seed": seed, "dataset": name, "status": "finished",
         "test_rmse": error + seed, "val_rmse": error, "val_mae": error, "param.train.lr": 0.1}
        for name, size in (("small", 1.0), ("large", 100.0)) for variant, error in (("a", size), ("b", 2 * size)) for seed in (0, 1)
    ]  # fmt: skip
    tracker = Tracker(uri, store, "sets")
    tracker.open("name: sets\ndatasets: {small: {path: s.npz}, large: {path: l.npz}}\n")
    for row in rows:
        tracker.trial(row)
    tracker.summarise(rows)
    found = summaries(client, "sets")
    assert {label: run.data.metrics["test_rmse"] for label, run in found.items()} == pytest.approx(
        {"small · a": 1.5, "small · b": 2.5, "large · a": 100.5, "large · b": 200.5}
    )
    assert {run.data.tags["dataset"] for run in found.values()} == {"small", "large"}
    tracker.attach_best(rows)
    best = {run.data.tags["trial_id"] for run in runs_of(client, "sets") if run.data.tags.get("best") == "true"}
    assert best == {"small-a-0", "large-a-0"}, "errors on two data sets are not compared"
    tags = client.get_experiment_by_name("sets").tags
    views = {json.loads(value)["name"]: json.loads(json.loads(value)["state"]) for key, value in tags.items() if "sharedViewState" in key}
    assert set(views) == {"Variants", "Trials", "Data sets"}
    assert all("tags.`dataset`" in view["selectedColumns"] for view in views.values())
    assert views["Data sets"]["orderByKey"] == "tags.`variant`"


def test_the_page_of_a_study_shows_a_view_that_its_experiment_has(client, synced):
    experiment = client.get_experiment_by_name("bikes")
    address, _, view = study_url(synced, "bikes").partition("?viewStateShareKey=")
    assert address == f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    columns = json.loads(json.loads(experiment.tags[f"mlflow.sharedViewState.{view}"])["state"])["selectedColumns"]
    logged = set(summaries(client, "bikes")["full"].data.metrics)
    assert {column.split("`")[1] for column in columns if column.startswith("metrics.")} <= logged
    with pytest.raises(UserError, match="stlab sync"):
        study_url(synced, "never")


def test_a_remote_storage_is_copied_from(client, store, uri):
    remote = Store(store.location)
    rows = write_study(remote, "remote")
    remote.is_local = False  # so that nothing is opened by its path
    assert sync(remote, "remote", uri) == len(rows)
    (parent,) = [run for run in runs_of(client, "remote") if run.data.tags["kind"] == "study"]
    tables = client.list_artifacts(parent.info.run_id, "report/tables")
    assert [(info.path, info.file_size) for info in tables] == [("report/tables/ablation.csv", 8)]
    assert len(client.list_artifacts(trial_run(client, rows[0], "remote").info.run_id)) == 6


def test_a_missing_database_driver_is_named(store):
    with pytest.raises(UserError, match="nosuchdriver"):
        Tracker("mysql+nosuchdriver://u:p@host/db", store, "bikes").open(STUDY)


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
