"""One trial's directory. What lies in it is the truth about the trial; MLflow and the report are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa

from stlab.results.schema import HORIZON, PREDICTIONS, epochs_table, flatten
from stlab.results.store import Store


class TrialStatus(StrEnum):
    """What the files of a trial's directory say of it."""

    NEW = "new"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"


class TrialDirectory:
    """``<storage>/trials/<id>/``: specification, epochs, checkpoints, result. See the README's tour for the layout."""

    def __init__(self, store: Store, trial_id: str) -> None:
        self.store = store
        self.trial_id = trial_id
        self.prefix = f"trials/{trial_id}"

    def _at(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def status(self) -> TrialStatus:
        names = set(self.store.names(self.prefix))
        for name, status in (
            ("result.json", TrialStatus.FINISHED),
            ("pruned.json", TrialStatus.PRUNED),
            ("failed.json", TrialStatus.FAILED),
            ("trial.json", TrialStatus.STARTED),
        ):
            if name in names:
                return status
        return TrialStatus.NEW

    def is_tested(self) -> bool:
        """Whether the selected checkpoint has been measured on the test segment. ``test.json`` is written last of its files."""
        return self.store.exists(self._at("test.json"))

    def read(self, name: str) -> dict[str, Any] | None:
        """``trial.json``, ``result.json``, ``test.json`` or ``failed.json``; None where it is not (yet) there."""
        try:
            content = self.store.read_json(self._at(name))
        except FileNotFoundError:
            return None
        return dict(content)

    def write_trial(self, trial: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("trial.json"), trial)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Written last, in one piece: its being there means that the trial is finished."""
        self.store.write_json(self._at("result.json"), result)

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("failed.json"), failure)

    def write_pruned(self, pruned: Mapping[str, Any]) -> None:
        self.store.write_json(self._at("pruned.json"), pruned)

    def clear_failure(self) -> None:
        """Keep an earlier failure's record under another name, so that the trial is run again."""
        if self.store.exists(self._at("failed.json")):
            taken = sum(name.startswith("failed-") for name in self.store.names(self.prefix))
            self.store.move(self._at("failed.json"), self._at(f"failed-{taken + 1}.json"))

    def write_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.store.write_table(self._at("epochs.parquet"), epochs_table(rows))

    def read_epochs(self) -> list[dict[str, Any]]:
        try:
            return list(self.store.read_table(self._at("epochs.parquet")).to_pylist())
        except FileNotFoundError:
            return []

    def write_test(self, test: Mapping[str, Any], horizon: Sequence[Mapping[str, Any]], predictions: pa.Table) -> None:
        self.store.write_table(
            self._at("horizon.parquet"), pa.Table.from_pylist([dict(r) for r in horizon], schema=HORIZON)
        )
        self.store.write_table(
            self._at("predictions.parquet"), predictions.cast(PREDICTIONS.with_metadata(predictions.schema.metadata))
        )
        self.store.write_json(self._at("test.json"), test)

    def read_horizon(self) -> pa.Table | None:
        return self._table("horizon.parquet")

    def read_predictions(self) -> pa.Table | None:
        """One row a window and step ahead. The table's metadata names the shape of a step (``shape``, as JSON)."""
        return self._table("predictions.parquet")

    def write_view(self, view: pa.Table) -> None:
        """What the model sees of one test window (``schema.view_table``). Written before the test's own files."""
        self.store.write_table(self._at("view.parquet"), view)

    def read_view(self) -> pa.Table | None:
        """One row a node; None where the model sees no image, or has not been tested."""
        return self._table("view.parquet")

    def _table(self, name: str) -> pa.Table | None:
        try:
            return self.store.read_table(self._at(name))
        except FileNotFoundError:
            return None

    def row(self) -> dict[str, Any]:
        """The trial as a row of ``trials.parquet``. ``study`` and ``variant`` are set by the study that lists it."""
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
            )
        }
        row |= {key: value for key, value in result.items() if not isinstance(value, (dict, list))}
        if row.get("started_at"):
            row["started_at"] = datetime.fromisoformat(row["started_at"])
        row |= {f"test_{key}": test.get(key) for key in ("mae", "rmse", "mape", "mae_unmasked", "rmse_unmasked")}
        if status is TrialStatus.FAILED:
            row |= {"error": failure.get("reason"), "epochs": failure.get("epoch")}
        elif status is TrialStatus.PRUNED:
            pruned = self.read("pruned.json") or {}
            row |= {"error": pruned.get("reason"), "epochs": pruned.get("epoch")}
        elif failure and status is TrialStatus.FINISHED and not test:
            # Trained, but the test segment could not be measured: no result to report, and tried again next time.
            row |= {"error": failure.get("reason"), "status": TrialStatus.FAILED.value}
        spec: dict[str, Any] = {key: trial[key] for key in ("data", "model", "train", "resources") if key in trial}
        return row | {f"param.{name}": value for name, value in flatten(spec).items()}
