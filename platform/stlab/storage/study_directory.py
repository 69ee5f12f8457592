"""A study's directory: the resolved study, the table of its trials, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stlab.errors import UserError
from stlab.storage.schema import trials_table
from stlab.storage.store import Store

_PARTS = ("study.yaml", "results", "report")


class StudyDirectory:
    """``<storage>/studies/<name>/``: ``study.yaml``, ``results/trials.parquet``, ``report/``."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.prefix = f"studies/{name}"

    def read_study(self) -> str | None:
        """The resolved study that this folder belongs to, as YAML; None in a new folder."""
        try:
            return self.store.read(f"{self.prefix}/study.yaml").decode()
        except FileNotFoundError:
            return None

    def write_study(self, text: str, *, extends: bool = False) -> str | None:
        """Write the resolved study. Files that another study of this name left here are moved to a folder of their own.

        Args:
            extends: the existing files are part of the new study (it has more seeds, for example), so nothing is moved.

        Returns:
            The folder that the files were moved to, or None if nothing was moved.
        """
        before = self.read_study()
        kept = None
        if before is not None and before != text and not extends:
            kept = f"{self.prefix}/earlier/{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
            for part in _PARTS:
                if self.store.exists(f"{self.prefix}/{part}"):
                    self.store.move(f"{self.prefix}/{part}", f"{kept}/{part}")
        if before != text:
            self.store.write(f"{self.prefix}/study.yaml", text.encode())
        return kept

    def write_plan(self, trials: Sequence[Mapping[str, Any]], left_out: Mapping[str, str] | None = None) -> None:
        """List the study's trials (``trial_id``, ``label``, …) before they run, so that its progress can be read from the directories.

        Args:
            left_out: data sets that cannot be used, with the reasons.
        """
        content = {"trials": [dict(trial) for trial in trials], "left_out": dict(left_out or {})}
        self.store.write_json(f"{self.prefix}/plan.json", content)

    def read_left_out(self) -> dict[str, str]:
        """The data sets that the study was run without, with the reasons."""
        try:
            return dict(self.store.read_json(f"{self.prefix}/plan.json").get("left_out") or {})
        except FileNotFoundError:
            return {}

    def read_plan(self) -> list[dict[str, Any]] | None:
        """The trials that ``write_plan`` listed; None if it was never called."""
        try:
            return list(self.store.read_json(f"{self.prefix}/plan.json")["trials"])
        except FileNotFoundError:
            return None

    def write_trials(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.store.write_table(f"{self.prefix}/results/trials.parquet", trials_table(rows))

    def read_trials(self) -> pa.Table:
        """The table of the study's trials.

        Raises:
            UserError: the study has not been run.
        """
        try:
            return self.store.read_table(f"{self.prefix}/results/trials.parquet")
        except FileNotFoundError:
            known = ", ".join(self.store.names("studies")) or "none"
            raise UserError(
                f"no results of a study '{self.name}' in {self.store.location} (there: {known}). Run it first: stlab run {self.name}"
            ) from None

    def report_path(self, name: str = "index.html") -> str:
        """Path of a file of the report, relative to the store."""
        return f"{self.prefix}/report/{name}"
