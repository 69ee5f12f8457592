"""A trial's model in MLflow: a pyfunc with a signature that stlab loads itself, without pickle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import ModelError
from stlab.storage import Store, TrialDirectory
from stlab.version import __version__

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

    from stlab.inference import TrainedForecaster

NAME = "model"
"""The model's name within its run: ``runs:/<run id>/model``."""

_LOADER = "stlab.tracking.pyfunc"
_TRIAL = "trial_id"
_METRICS = ("val_rmse", "val_mae", "test_rmse", "test_mae", "test_mape")
_CHECKED_WINDOWS = 4
# The packages that a forecast is computed with.
_NEEDED = (
    "torch", "torchvision", "timm", "transformers", "peft", "safetensors", "numba", "numpy", "scipy", "pandas", "pyarrow",
    "pydantic", "pyyaml",
)  # fmt: skip

# Shares of the forecasts' spread. Results differ with the number of threads, and in bf16 with the device.
_TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1}


def keep_model(client: MlflowClient, experiment_id: str, run_id: str, store: Store, trial_id: str, tags: Mapping[str, str]) -> str:
    """The URI of a trial's model, ``models:/m-…``; the model is logged if MLflow does not have it yet.

    Raises:
        UserError: see :func:`log_model`.
    """
    model = find_model(client, experiment_id, trial_id) or log_model(client, experiment_id, run_id, store, trial_id, tags)
    return f"models:/{model.model_id}"


def find_model(client: MlflowClient, experiment_id: str, trial_id: str) -> LoggedModel | None:
    """The trial's complete model, or None. An incomplete upload is deleted."""
    found = None
    for model in _models(client, experiment_id):
        if model.tags.get(_TRIAL) != trial_id:
            continue
        if str(model.status) == "READY":
            found = model
        else:
            client.delete_logged_model(model.model_id)
    return found


def _models(client: MlflowClient, experiment_id: str) -> Iterator[LoggedModel]:
    token: str | None = None
    while True:
        page = client.search_logged_models([experiment_id], filter_string=f"name = '{NAME}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def log_model(client: MlflowClient, experiment_id: str, run_id: str, store: Store, trial_id: str, tags: Mapping[str, str]) -> LoggedModel:
    """Upload the selected checkpoint of a trial as a model of its run.

    Raises:
        UserError: the checkpoint cannot become a forecaster, because its data is gone or it needs readings from before its history.
        ModelError: the exported forecaster does not reproduce the trial's forecasts.
    """
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    from stlab.inference import load_saved, load_trial

    forecaster = load_trial(store, trial_id)
    with tempfile.TemporaryDirectory(prefix="stlab-model-") as folder:
        saved, whole = Path(folder, "forecaster"), Path(folder, "model")
        forecaster.save(saved)
        _check(load_saved(saved), store, trial_id)
        model = client.create_logged_model(
            experiment_id, NAME, source_run_id=run_id, tags={**tags, _TRIAL: trial_id}, model_type=str(forecaster.facts.model["name"])
        )
        try:
            described = Model(artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id)
            mlflow.pyfunc.save_model(
                str(whole), loader_module=_LOADER, data_path=str(saved), mlflow_model=described,
                signature=signature(forecaster), pip_requirements=requirements(),
            )  # fmt: skip
            client.log_model_artifacts(model.model_id, str(whole))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _log_metrics(client, run_id, model.model_id)
    return client.finalize_logged_model(model.model_id, "READY")


def _check(forecaster: TrainedForecaster, store: Store, trial_id: str) -> None:
    """Forecast some test windows with the exported forecaster, and compare them with the forecasts that the trial kept."""
    import numpy as np
    import torch

    from stlab.study.spec import DataSpec
    from stlab.training.trial import dataset_for

    directory = TrialDirectory(store, trial_id)
    table = directory.read_predictions()
    if table is None:
        return
    window = table["window"].to_numpy()
    numbers = np.unique(window)
    chosen = numbers[np.linspace(0, len(numbers) - 1, min(_CHECKED_WINDOWS, len(numbers))).astype(int)]
    kept = table.filter(np.isin(window, chosen)).sort_by([("window", "ascending"), ("horizon", "ascending")])
    shape = (len(chosen), *forecaster.forecast_shape)
    expected = np.stack(kept["forecast"].to_numpy(zero_copy_only=False)).reshape(shape)
    dataset = dataset_for(DataSpec(**(directory.read("trial.json") or {})["data"]).without_pretraining())
    windows = dataset.windows("test")
    positions = torch.from_numpy(np.searchsorted(windows.starts.numpy(), chosen))
    batch = windows.gather(positions)
    history = dataset.scaler.inverse(batch.history).numpy()
    further = None if dataset.inputs is None or batch.history_inputs is None else dataset.inputs.scaling.inverse(batch.history_inputs)
    times = windows.times(positions)
    step = forecaster.facts.step_seconds
    start = None if times is None or step is None else times[:, 0] - forecaster.facts.info.history * np.timedelta64(step, "s")
    worst = float(np.abs(forecaster.predict(history, start, further) - expected).max())
    allowed = _TOLERANCE.get(forecaster.facts.precision, 1e-1) * max(dataset.scaler.spread, float(expected.std()))
    if not worst <= allowed:
        raise ModelError(
            f"trial {trial_id}: the exported model differs from the trial's own forecasts by up to {worst:.3g}, in the data's unit. "
            "Perhaps it was trained by another version of the code."
        )


def signature(forecaster: TrainedForecaster) -> ModelSignature:
    """The signature: history as input and forecast as output, float32 in the data's unit.

    The input is one array (−1, P, *S). A model that needs the time of the history or further channels takes a mapping of ``history``,
    ``start`` (−1,), the seconds since 1970 at which each history begins, and ``inputs`` (−1, P, N, K).
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    real = np.dtype("float32")
    history, forecast = (-1, *forecaster.history_shape), (-1, *forecaster.forecast_shape)
    inputs: list[ColSpec | TensorSpec] = [TensorSpec(real, history)]
    beside: list[ColSpec | TensorSpec] = []
    if forecaster.needs_start:
        beside.append(TensorSpec(np.dtype("int64"), (-1,), "start"))
    if forecaster.inputs_shape is not None:
        beside.append(TensorSpec(real, (-1, *forecaster.inputs_shape), "inputs"))
    if beside:
        inputs = [TensorSpec(real, history, "history"), *beside]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(real, forecast)]))


def requirements() -> list[str]:
    """stlab and the packages that a forecast is computed with, each at the installed version."""
    from packaging.version import Version

    # A build's own suffix (+cu128, +cpu) is not on PyPI.
    return [f"stlab=={__version__}", *(f"{name}=={Version(metadata.version(name)).public}" for name in _NEEDED)]


def _log_metrics(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Log the trial's metrics with the model, at their original time, so that the run does not have them twice."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    metrics = []
    for name in _METRICS:
        for metric in client.get_metric_history(run_id, name)[-1:] if name in known else ():
            metrics.append(Metric(name, metric.value, metric.timestamp, metric.step, run_id=run_id, model_id=model_id))
    if metrics:
        client.log_batch(run_id, metrics=metrics)
