"""A trial's directory. Its files are the only source about the trial; MLflow and the report are derived from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from stlab.model_files import short
from stlab.storage.schema import HORIZON, PREDICTIONS, epochs_table, flatten
from stlab.storage.store import Store

logger = logging.getLogger(__name__)


class TrialStatus(StrEnum):
    """The status of a trial according to the files in its directory."""

    NEW = "new"
    """Nobody has begun it."""
    STARTED = "started"
    """It has begun and has no end: it is being trained, or goes on from its last checkpoint."""
    FINISHED = "finished"
    """It is trained, and its weights are selected."""
    FAILED = "failed"
    """It ended with an error of its own, or its workers died too often."""
    PRUNED = "pruned"
    """Its search ended it early."""


_ENDS = {"result.json": TrialStatus.FINISHED, "pruned.json": TrialStatus.PRUNED, "failed.json": TrialStatus.FAILED}
_BESIDE = {"result.json": ("epochs.parquet",), "test.json": ("horizon.parquet", "predictions.parquet", "view.parquet")}
"""File → the files that are written before it. It records their sizes, so that a truncated file is noticed."""


def _epochs_file(stage: str) -> str:
    return f"epochs-{stage}.parquet" if stage else "epochs.parquet"


class TrialDirectory:
    """``<storage>/trials/<id>/``: specification, epochs, checkpoints, result.

    "Files left behind" in ``platform/README.md`` shows the layout.
    """

    def __init__(self, store: Store, trial_id: str) -> None:
        self.store = store
        self.trial_id = trial_id
        self.prefix = f"trials/{trial_id}"

    def _at(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def status(self) -> TrialStatus:
        """The trial's status, from one listing and one small file. A damaged result does not count, so the trial goes on."""
        sizes = self.store.sizes(self.prefix)
        for name, status in _ENDS.items():
            if name in sizes and self._is_whole(name, sizes):
                return status
        return TrialStatus.STARTED if "trial.json" in sizes else TrialStatus.NEW

    def is_tested(self) -> bool:
        """Whether the selected checkpoint has been measured on the test segment. ``test.json`` is the last file of a test."""
        sizes = self.store.sizes(self.prefix)
        return "test.json" in sizes and self._is_whole("test.json", sizes)

    def is_over(self) -> bool:
        """Whether nothing is left to do, because training and test are finished, or one of them failed and no retry was requested."""
        status = self.status()
        if status is TrialStatus.FINISHED:
            return self.is_tested() or self.read("failed.json") is not None
        return status is TrialStatus.FAILED

    def _is_whole(self, name: str, sizes: Mapping[str, int]) -> bool:
        return self._damaged_at(name, sizes) is None

    def _damaged_at(self, name: str, sizes: Mapping[str, int]) -> str | None:
        """The damaged file: ``name`` itself, or a file written before it that no longer has its recorded size; None if all are whole."""
        try:
            content = self.store.read_json(self._at(name))
        except (ValueError, FileNotFoundError):  # moved by another worker, perhaps
            return name
        if not isinstance(content, dict):
            return name
        return next((file for file, size in content.get("files", {}).items() if sizes.get(file) != size), None)

    def set_aside_damaged(self) -> list[str]:
        """Rename damaged files (``result.json.damaged-1``), so that they are made again.

        Returns:
            A line about each damaged file.
        """
        sizes = self.store.sizes(self.prefix)
        notes = []
        for name in ("trial.json", *_ENDS, "test.json"):
            damaged = self._damaged_at(name, sizes) if name in sizes else None
            if damaged is None:
                continue
            notes.append(f"{damaged} was damaged")
            if damaged in sizes:
                taken = sum(other.startswith(f"{damaged}.damaged-") for other in sizes)
                self.store.move(self._at(damaged), self._at(f"{damaged}.damaged-{taken + 1}"))
                notes[-1] += f" (kept as {damaged}.damaged-{taken + 1})"
        return notes

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of ``trial.json``, ``result.json``, ``test.json`` or ``failed.json``; None if it is missing or damaged."""
        try:
            content = self.store.read_json(self._at(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s is damaged (%s) and is ignored", self._at(name), error)
            return None
        return dict(content) if isinstance(content, dict) else None

    def micro_batches(self) -> int:
        """The number of parts into which a worker's share of a batch is divided because memory ran out; 1 if it did not."""
        return int((self.read("memory.json") or {}).get("micro_batches", 1))

    def memory_notes(self) -> list[str]:
        """Notes on the occasions when memory ran out."""
        return list((self.read("memory.json") or {}).get("notes", []))

    def write_micro_batches(self, parts: int, note: str) -> None:
        self.store.write_json(self._at("memory.json"), {"micro_batches": parts, "notes": [*self.memory_notes(), note]})

    def write_trial(self, trial: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("trial.json"), trial)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the last file of training; its presence means that the trial is finished."""
        self.store.write_json(self._at("result.json"), self._with_files("result.json", result))

    def _with_files(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        sizes = self.store.sizes(self.prefix)
        return {**content, "files": {file: sizes[file] for file in _BESIDE[name] if file in sizes}}

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("failed.json"), failure)

    def write_pruned(self, pruned: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("pruned.json"), pruned)

    def clear_failure(self) -> None:
        """Rename the record of an earlier failure, so that the trial runs again."""
        if self.store.exists(self._at("failed.json")):
            taken = sum(name.startswith("failed-") for name in self.store.names(self.prefix))
            self.store.move(self._at("failed.json"), self._at(f"failed-{taken + 1}.json"))

    def write_epochs(self, rows: Sequence[Mapping[str, Any]], stage: str = "") -> None:
        """Write ``epochs.parquet``, or ``epochs-<stage>.parquet`` of a stage that came before the training."""
        self.store.write_table(self._at(_epochs_file(stage)), epochs_table(rows))

    def read_epochs(self, stage: str = "") -> list[dict[str, Any]]:
        table = self._table(_epochs_file(stage))
        return [] if table is None else list(table.to_pylist())

    def checkpoint_epoch(self) -> int:
        """The number of epochs behind the newest checkpoint, by the name of its folder; 0 without one."""
        whole = (name.split(".")[0] for name in self.store.names(self._at("checkpoint")) if name.replace(".", "", 1).isdigit())
        return max((int(name) for name in whole), default=0)

    def write_test(self, test: Mapping[str, Any], horizon: Sequence[Mapping[str, Any]], predictions: pa.Table) -> None:
        self.store.write_table(
            self._at("horizon.parquet"), pa.Table.from_pylist([dict(r) for r in horizon], schema=HORIZON)
        )
        self.store.write_table(
            self._at("predictions.parquet"), predictions.cast(PREDICTIONS.with_metadata(predictions.schema.metadata))
        )
        self.store.write_json(self._at("test.json"), self._with_files("test.json", test))

    def read_horizon(self) -> pa.Table | None:
        return self._table("horizon.parquet")

    def read_predictions(self) -> pa.Table | None:
        """The test forecasts, with a row for each window and step ahead; the metadata ``shape`` (JSON) is the shape of a step."""
        return self._table("predictions.parquet")

    def write_model_input(self, model_input: pa.Table) -> None:
        """Write the image of one test window that the model sees (``schema.model_input_table``). It precedes the test's other files."""
        self.store.write_table(self._at("view.parquet"), model_input)

    def read_model_input(self) -> pa.Table | None:
        """The image that the model sees, with a row for each node; None if it sees no image, or has not been tested."""
        return self._table("view.parquet")

    def _table(self, name: str) -> pa.Table | None:
        """A table of the directory; None if it is missing or damaged."""
        try:
            return self.store.read_table(self._at(name))
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, OSError) as error:  # errors of Parquet; the store itself raises StorageError
            logger.warning("%s is damaged (%s) and is ignored", self._at(name), error)
            return None

    def row(self, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The trial as a row of ``trials.parquet``. ``study`` and ``variant`` are set by the study that lists it.

        Args:
            parameters: the sections of the specification, for the columns ``param.*``; by default as ``trial.json`` has them.
        """
        trial = self.read("trial.json") or {}
        result = self.read("result.json") or {}
        test = self.read("test.json") or {}
        failure = self.read("failed.json") or {}
        status = self.status()
        row: dict[str, Any] = {"trial_id": self.trial_id, "status": status.value, "first_study": trial.get("study")}
        row |= {
            key: trial.get(key)
            for key in (
                "seed",
                "baseline",
                "dataset",
                "synthetic",
                "leaks",
                "protocol",
                "data_sha256",
                "code_version",
                "weights",
                "information",
            )
        }
        row |= {key: value for key, value in result.items() if not isinstance(value, (dict, list))}
        if row.get("started_at"):
            row["started_at"] = datetime.fromisoformat(row["started_at"])
        row |= {f"test_{key}": test.get(key) for key in ("mae", "rmse", "mape", "mae_unmasked", "rmse_unmasked")}
        notes = [note for part in (result, failure, test) for note in part.get("notes", [])]
        row["notes"] = "; ".join(dict.fromkeys(notes)) or None
        if status is TrialStatus.FAILED:
            row |= {"error": failure.get("reason"), "epochs": failure.get("epoch")}
        elif status is TrialStatus.PRUNED:
            pruned = self.read("pruned.json") or {}
            row |= {"error": pruned.get("reason"), "epochs": pruned.get("epoch")}
        elif failure and status is TrialStatus.FINISHED and not test:
            # The trial is trained, but the test segment could not be measured, so there is no result to report.
            row |= {"error": failure.get("reason"), "status": TrialStatus.FAILED.value}
        if parameters is None:
            parameters = {key: trial[key] for key in ("data", "model", "train", "resources") if key in trial}
        row |= {f"param.{name}": value for name, value in flatten(parameters).items()}
        if isinstance(name := row.get("param.model.name"), str):
            row["param.model.name"] = short(name)
        return row
