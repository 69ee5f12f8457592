"""One trial, from its specification to its directory."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from torch import Tensor

from stlab.catalog import create_model
from stlab.data import Dataset, Windows, load_dataset
from stlab.errors import TrialFailed, UserError
from stlab.results import TrialDirectory, TrialStatus
from stlab.training.checkpoint import Checkpoints, Progress, load_trainable_state, trainable_state
from stlab.training.device import PeakMemory, autocast_for, device_name, pick_device, pick_precision
from stlab.training.loop import Fit, Report, TrialPruned, default_batch_size
from stlab.training.metrics import Errors, evaluate
from stlab.training.view import view_of_window
from stmodels.forecaster import Forecaster
from stmodels.rng import initialise

if TYPE_CHECKING:
    from stlab.spec import TrialSpec

logger = logging.getLogger(__name__)

_MAX_PREDICTED_VALUES = 5_000_000  # of truth and forecast each; a larger test segment is kept in evenly spaced windows
_TAIL_LINES = 15

# A worker keeps the data of the trials before; specifications are frozen and so hashable.
dataset_for = functools.lru_cache(maxsize=4)(load_dataset)


def run_trial(
    trial: TrialSpec, identity: Mapping[str, Any], directory: TrialDirectory, *, test: bool, report: Report = lambda event: None,
    prunable: bool = False,
) -> TrialStatus:
    """Train one trial, resuming where its directory left off, and measure it on the test segment if asked.

    Whatever goes wrong inside the trial is written to its directory and ends this trial alone.

    Args:
        trial: the resolved specification.
        identity: what ``trial.json`` says beside it: fingerprints, versions.
        directory: where everything goes.
        test: whether a study reports this trial on the test segment.
        report: called on the first worker with ``{"kind": "epochs", "rows": [...]}`` as epochs end.
        prunable: whether the trial stops early when ``report`` answers why it should. One that was pruned before is left as it is
            then, and trained to its end otherwise.
    """
    if prunable and directory.status() is TrialStatus.PRUNED:
        return TrialStatus.PRUNED
    if directory.status() is TrialStatus.FAILED or (directory.status() is TrialStatus.FINISHED and (directory.is_tested() or not test)):
        return directory.status()
    lead = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    job: _Job | None = None
    try:
        if lead and directory.read("trial.json") is None:
            directory.write_trial({**_plain(trial), **identity})
        job = _Job(trial, directory, report, lead, prunable)
        if directory.status() is not TrialStatus.FINISHED:
            job.train()
        if test and lead:
            job.test()
    except TrialPruned as reason:
        if lead and job is not None and job.progress is not None:
            directory.write_epochs(job.progress.rows)
            directory.write_pruned({"reason": str(reason), "epoch": job.progress.epoch, "pruned_at": datetime.now(UTC).isoformat()})
    except Exception as error:  # one trial's error must not end the others; it is recorded in full
        if lead:
            if job is not None and job.progress is not None and job.progress.rows:
                directory.write_epochs(job.progress.rows)
            directory.write_failure(_failure(error, job))
        logger.error("trial %s failed: %s", directory.trial_id, error)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and not isinstance(error, TrialFailed):
            raise  # it may have happened here alone, and the other workers wait: the whole group has to start anew
    return directory.status()


def _plain(trial: TrialSpec) -> dict[str, Any]:
    """The specification as ``trial.json`` holds it. Images without pydantic give it as frozen dataclasses of the same fields."""
    return dataclasses.asdict(trial) if dataclasses.is_dataclass(trial) else trial.model_dump(mode="json")


def _failure(error: Exception, job: _Job | None) -> dict[str, Any]:
    rows = job.progress.rows if job is not None and job.progress is not None else []
    expected = isinstance(error, (TrialFailed, UserError))
    return {
        "reason": str(error) if expected else f"{type(error).__name__}: {error}",
        "epoch": rows[-1]["epoch"] if rows else 0,
        "step": rows[-1]["step"] if rows else 0,
        "failed_at": datetime.now(UTC).isoformat(),
        "log_tail": "".join(traceback.format_exception(error)).splitlines()[-_TAIL_LINES:],
    }


class _Job:
    """The parts that one trial needs, made once for training and test."""

    def __init__(self, trial: TrialSpec, directory: TrialDirectory, report: Report, lead: bool, prunable: bool) -> None:
        self.trial, self.directory, self.report, self.lead, self.prunable = trial, directory, report, lead, prunable
        self.progress: Progress | None = None
        self.device = pick_device(trial.resources.gpus)
        self.precision = pick_precision(trial.train.precision, self.device)
        self.autocast = autocast_for(self.precision, self.device)
        self.dataset: Dataset = dataset_for(trial.data)
        model = create_model(trial.model, self.dataset.info)
        initialise(model, trial.seed)
        self.model: Forecaster = model.to(self.device)
        self.checkpoints = Checkpoints(directory)
        self.batch_size = trial.train.batch_size or default_batch_size(self.dataset)

    def windows(self, segment: str) -> Windows:
        return self.dataset.windows(segment, self.device)

    def train(self) -> None:
        """Train or fit, and write ``result.json`` last."""
        started_at = datetime.now(UTC).isoformat()
        is_trained = any(p.requires_grad for p in self.model.parameters())
        result = self._optimise() if is_trained else self._fit()
        if self.lead:
            parameters = list(self.model.parameters())
            self.directory.write_result(
                {
                    **result,
                    "trainable_params": sum(p.numel() for p in parameters if p.requires_grad),
                    "total_params": sum(p.numel() for p in parameters),
                    "precision": self.precision,
                    "device": device_name(self.device),
                    "started_at": started_at,
                }
            )

    def _optimise(self) -> dict[str, Any]:
        train = self.trial.train
        fit = Fit(
            self.model, self.dataset, train, self.trial.seed, self.device, self.autocast, self.checkpoints, self.report, self.prunable
        )
        self.progress = fit.progress
        best = fit.run()
        rows = self.progress.rows
        load_trainable_state(self.model, best)
        if self.lead:
            self.checkpoints.save_best(best)
            self.directory.write_epochs(rows)
        seconds = sum(row["seconds"] for row in rows)
        chosen = rows[self.progress.best_epoch - 1]
        return {
            "val_mae": chosen["val_mae"],
            "val_rmse": chosen["val_rmse"],
            "best_epoch": self.progress.best_epoch,
            "epochs": self.progress.epoch,
            "stopped": f"no better validation {train.select_by.upper()}" if self.progress.epoch < train.max_epochs else "max_epochs",
            "wall_seconds": seconds,
            "device_seconds": seconds * self.trial.resources.workers,
            "peak_memory_bytes": self.progress.peak_memory_bytes,
            "samples_per_second": float(np.mean([row["samples_per_second"] for row in rows])),
        }

    def _fit(self) -> dict[str, Any]:
        """Models without a trainable parameter: fitted in closed form, if at all."""
        memory, started = PeakMemory(self.device), time.perf_counter()
        self.model.fit(self.windows("train"))
        errors = evaluate(self.model, self.dataset, self.windows("validation"), self.batch_size, self.autocast)
        if self.lead:
            self.checkpoints.save_best(trainable_state(self.model))
        seconds = time.perf_counter() - started
        return {
            "val_mae": errors["mae"],
            "val_rmse": errors["rmse"],
            "epochs": 0,
            "wall_seconds": seconds,
            "device_seconds": seconds,
            "peak_memory_bytes": memory.bytes(),
        }

    def test(self) -> None:
        """Measure the selected checkpoint on the test segment: once, after all selection."""
        self.checkpoints.load_best(self.model)
        self.model.fit(self.windows("train"))
        validation = evaluate(self.model, self.dataset, self.windows("validation"), self.batch_size, self.autocast, keep=_ignore)
        windows = self.windows("test")
        kept = _Kept(self.dataset, windows)
        errors = evaluate(self.model, self.dataset, windows, self.batch_size, self.autocast, keep=kept)
        horizon = [*_by_horizon("validation", validation), *_by_horizon("test", errors)]
        summary = {key: errors[key] for key in ("mae", "rmse", "mape", "mae_unmasked", "rmse_unmasked")}
        view = view_of_window(self.model, self.dataset, windows, kept.busiest(), self.autocast)
        if view is not None:
            self.directory.write_view(view)
        self.directory.write_test({**summary, "windows": len(windows), "tested_at": datetime.now(UTC).isoformat()}, horizon, kept.table())


def _by_horizon(segment: str, errors: Errors) -> list[dict[str, Any]]:
    return [{"segment": segment, **row} for row in errors["horizon"]]


def _ignore(index: Tensor, forecast: Tensor, truth: Tensor) -> None:
    """Nothing is kept of this segment."""


class _Kept:
    """Forecasts and truth of the test windows, as rows of ``predictions.parquet``."""

    def __init__(self, dataset: Dataset, windows: Windows) -> None:
        self.dataset, self.windows = dataset, windows
        values_a_window = dataset.info.horizon * int(np.prod(dataset.info.shape))
        self.stride = max(1, -(-len(windows) * values_a_window // _MAX_PREDICTED_VALUES))
        self.parts: list[dict[str, Any]] = []

    def __call__(self, index: Tensor, forecast: Tensor, truth: Tensor) -> None:
        chosen = index % self.stride == 0
        if not bool(chosen.any()):
            return
        index, forecast, truth = index[chosen], forecast[chosen], truth[chosen]
        horizon = self.dataset.info.horizon
        times = self.windows.times(index)
        self.parts.append(
            {
                "number": index.cpu().numpy(),
                "window": np.repeat(self.windows.starts[index].cpu().numpy(), horizon),
                "horizon": np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(index)),
                "time": None if times is None else times.reshape(-1),
                "truth": truth.flatten(0, 1).flatten(1).float().cpu().numpy(),
                "forecast": forecast.flatten(0, 1).flatten(1).float().cpu().numpy(),
            }
        )

    def busiest(self) -> int:
        """Number of the kept window with the largest total truth; the first of equals."""
        total = np.concatenate([part["truth"].reshape(len(part["number"]), -1).sum(1, dtype=np.float64) for part in self.parts])
        return int(np.concatenate([part["number"] for part in self.parts])[total.argmax()])

    def table(self) -> pa.Table:
        """The table; its metadata name the shape of a step and of how many windows one was kept."""

        def joined(name: str) -> Any:
            return np.concatenate([part[name] for part in self.parts])

        rows = sum(len(part["window"]) for part in self.parts)
        has_times = self.parts[0]["time"] is not None
        table = pa.table(
            {
                "window": joined("window"),
                "horizon": joined("horizon"),
                "time": pa.array(joined("time").astype("datetime64[s]")) if has_times else pa.nulls(rows, pa.timestamp("s")),
                "truth": _lists(joined("truth")),
                "forecast": _lists(joined("forecast")),
            }
        )
        return table.replace_schema_metadata({"shape": json.dumps(self.dataset.info.shape), "every_nth_window": str(self.stride)})


def _lists(rows: np.ndarray[Any, Any]) -> pa.Array:
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1), pa.float32()))
