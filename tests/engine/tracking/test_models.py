"""The best trial's model in MLflow, compared with the forecasts that the trial kept, on a real SQLite database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stlab.catalog import config_class, config_values, create_config
from stlab.data import load_dataset
from stlab.report.predictions import read_predictions
from stlab.storage import Store, StudyDirectory, TrialDirectory, best_trial
from stlab.study.identity import code_version, source_digests
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stlab.tracking import Tracker, default_uri, sync
from stlab.training import run_trial

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"name": "lstm", "hidden": 4},
    "by day": {"name": "lstm", "hidden": 4, "time_of_day": True},
}
TEXT = "name: flow\naxes: {}\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty days of five sensors in steps of two hours."""
    draw, steps = np.random.default_rng(5), 240
    level = 50 + 30 * np.sin(2 * np.pi * np.arange(steps) / 12)
    path = tmp_path_factory.mktemp("data") / "flow.npz"
    values = (level[:, None, None] + draw.normal(0, 4, (steps, 5, 1))).astype(np.float32)
    np.savez(path, data=values, timestamps=np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(7200, "s"))
    return path


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two studies of one trained trial each, and a baseline."""
    store = Store(tmp_path_factory.mktemp("runs"))
    for variant, model in {**MODELS, "last_value": {"name": "last_value"}}.items():
        trial = TrialSpec(
            study="flow", variant=variant, seed=0, data=DataSpec(path=str(data), family="sensors"),
            model=config_values(config_class(model["name"])(**model)),
            train=TrainSpec(max_epochs=2, warmup_epochs=1, lr=1e-2, batch_size=16), resources=ResourcesSpec(gpus=0),
        )  # fmt: skip
        held = load_dataset(trial.data)
        told = {"dataset": "flow", "protocol": json.dumps(held.protocol), "data_sha256": held.sha256}
        told |= {"code_version": code_version(), "code": source_digests(create_config(trial.model))}
        run_trial(trial, told, TrialDirectory(store, variant.replace(" ", "-")), test=True)
    return store


def row(store: Store, variant: str, **other: Any) -> dict[str, Any]:
    own = TrialDirectory(store, variant.replace(" ", "-")).row()
    return {**own, "study": "flow", "variant": variant, "baseline": variant == "last_value", **other}


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[MlflowClient]:
    """Studies ``plain`` and ``by-day`` in MLflow, each brought up to date twice."""
    uri = default_uri(store) or ""
    for variant in MODELS:
        name = variant.replace(" ", "-")
        study = StudyDirectory(store, name)
        study.write_study(TEXT.replace("flow", name))
        study.write_trials([row(store, variant), row(store, "last_value")])
        store.write(study.report_path("figures/learning_curves.png"), b"a picture")
        store.write(study.report_path(), b"<html></html>")
        assert sync(store, name, uri) == sync(store, name, uri) == 2
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)  # as a user has it who loads a model
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(before)


def best_run(client: MlflowClient, study: str) -> Any:
    experiment = client.get_experiment_by_name(study)
    (run,) = client.search_runs([experiment.experiment_id], "tags.best = 'true'")
    return run


def parent_run(client: MlflowClient, study: str) -> Any:
    (run,) = client.search_runs([client.get_experiment_by_name(study).experiment_id], "tags.kind = 'study'")
    return run


def histories(data: Path, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data) as file:
        return file["data"][starts[:, None] + np.arange(12)], file["timestamps"][starts]


@pytest.mark.parametrize("study", ["plain", "by-day"])
def test_the_model_forecasts_what_the_trial_did(study: str, client: MlflowClient, store: Store, data: Path) -> None:
    import mlflow

    kept = read_predictions(store, study)
    assert kept is not None
    history, times = histories(data, kept.window)
    given: Any = history if study == "plain" else {"history": history, "start": times.astype(np.int64)}
    run = best_run(client, study)
    assert run.data.tags["trial_id"] == study
    uris = [f"runs:/{run.info.run_id}/model", parent_run(client, study).data.tags["model"]]
    for uri in uris:
        model = mlflow.pyfunc.load_model(uri)
        np.testing.assert_allclose(model.predict(given), kept.forecast, rtol=1e-5, atol=1e-4)
    assert tuple(model.metadata.signature.outputs.inputs[0].shape) == (-1, 12, 5, 1)
    if study == "plain":
        with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
            model.predict(history[:, :5])


def test_nothing_is_pickled_and_everything_travels(client: MlflowClient, store: Store, tmp_path: Path) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(parent_run(client, "plain").data.tags["model"], dst_path=str(tmp_path)))
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "forecaster.json", "weights.safetensors", "requirements.txt"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    pinned = (folder / "requirements.txt").read_text().split()
    assert {"stlab", "torch", "safetensors"} <= {line.partition("==")[0] for line in pinned}
    assert all("==" in line for line in pinned)
    assert "loader_module: stlab.tracking.pyfunc" in (folder / "MLmodel").read_text()


def test_a_model_is_logged_once_with_the_trials_figures(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("plain")
    (model,) = client.search_logged_models([experiment.experiment_id])
    run = best_run(client, "plain")
    assert (model.source_run_id, str(model.status)) == (run.info.run_id, "READY")
    assert {metric.key: metric.value for metric in model.metrics}["test_rmse"] == run.data.metrics["test_rmse"]
    assert len(client.get_metric_history(run.info.run_id, "test_rmse")) == 1
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_figures_are_artifacts_of_the_study(client: MlflowClient) -> None:
    listed = client.list_artifacts(parent_run(client, "plain").info.run_id, "report/figures")
    assert [info.path for info in listed] == ["report/figures/learning_curves.png"]


def test_another_best_trial_takes_the_tag(client: MlflowClient, store: Store) -> None:
    rows = [row(store, "plain", val_rmse=2.0), row(store, "by day", val_rmse=1.0), row(store, "last_value", val_rmse=0.5)]
    tracker = Tracker(default_uri(store) or "", store, "moved")
    tracker.open(TEXT)
    for one in rows:
        tracker.finish(one)
    first = tracker.attach_best(rows[:1])
    second = tracker.attach_best(rows)
    assert first != second
    assert best_run(client, "moved").data.tags["variant"] == "by day"
    assert parent_run(client, "moved").data.tags["best_variant"] == "by day"
    assert tracker.attach_best(rows[:1]) == first  # that model is still there


def test_a_model_that_cannot_be_made_stops_nothing(
    client: MlflowClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    lost = TrialDirectory(store, "lost")
    told = TrialDirectory(store, "plain").read("trial.json") or {}
    lost.write_trial(told | {"data": told["data"] | {"path": "/nowhere/flow.npz"}})
    lost.write_result(TrialDirectory(store, "plain").read("result.json") or {})
    rows = [{**lost.row(), "study": "gone", "variant": "plain"}]
    tracker = Tracker(default_uri(store) or "", store, "gone")
    tracker.open(TEXT)
    tracker.finish(rows[0])
    assert tracker.attach_best(rows) is None
    assert "/nowhere/flow.npz" in caplog.text
    assert "/nowhere/flow.npz" in parent_run(client, "gone").data.tags["model"]
    assert best_run(client, "gone").data.tags["trial_id"] == "lost"


def test_an_upload_that_was_cut_short_is_made_again(
    client: MlflowClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(default_uri(store) or "", store, "cut")
    tracker.open(TEXT)
    tracker.finish(row(store, "plain"))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.log_model_artifacts", killed)
        patch.setattr("mlflow.tracking.MlflowClient.finalize_logged_model", killed)
        with pytest.raises(KeyboardInterrupt):
            tracker.attach_best([row(store, "plain")])
    uri = tracker.attach_best([row(store, "plain")])
    models = client.search_logged_models([client.get_experiment_by_name("cut").experiment_id])
    assert [f"models:/{model.model_id}" for model in models] == [uri]


def test_the_best_is_chosen_by_validation() -> None:
    rows = [
        {"trial_id": "a", "status": "finished", "val_rmse": 3.0, "val_mae": 1.0, "test_rmse": 1.0},
        {"trial_id": "b", "status": "finished", "val_rmse": 2.0, "val_mae": 2.0, "test_rmse": 9.0},
        {"trial_id": "c", "status": "failed", "val_rmse": 1.0},
        {"trial_id": "d", "status": "finished", "val_rmse": float("nan")},
        {"trial_id": "e", "status": "finished", "val_rmse": 0.5, "baseline": True},
    ]
    assert (best_trial(rows) or {})["trial_id"] == "b"
    by_mae = [one | {"param.train.select_by": "mae"} for one in rows]
    assert (best_trial(by_mae) or {})["trial_id"] == "a"
    assert best_trial(rows[2:]) is None
