"""One study's directory: the resolved study, its trials together, its report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stlab.errors import ProtocolMismatch, UserError
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
        """The resolved study this folder was made from, as YAML; None in a new folder."""
        try:
            return self.store.read(f"{self.prefix}/study.yaml").decode()
        except FileNotFoundError:
            return None

    def write_study(self, text: str, *, extends: bool = False) -> str | None:
        """Write the resolved study. What another study of this name left here is kept in a folder of its own.

        Args:
            extends: what lies here is part of the new study (it has more seeds, say), so that nothing has to be kept.

        Returns:
            The folder it was moved to, or None where there was nothing to move.
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

    def write_plan(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """List the study's trials before they run (``trial_id``, ``label``, …), so that its directories tell how far it is."""
        self.store.write_json(f"{self.prefix}/plan.json", {"trials": [dict(trial) for trial in trials]})

    def read_plan(self) -> list[dict[str, Any]] | None:
        """What ``write_plan`` listed; None where nothing did."""
        try:
            return list(self.store.read_json(f"{self.prefix}/plan.json")["trials"])
        except FileNotFoundError:
            return None

    def write_trials(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.store.write_table(f"{self.prefix}/results/trials.parquet", trials_table(rows))

    def read_trials(self) -> pa.Table:
        """Raises UserError where the study has not been run."""
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


def single_protocol(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The one protocol fingerprint that all rows share.

    Raises:
        ProtocolMismatch: they do not share one; the message names the first field that differs and two rows that differ in it.
    """
    first: Mapping[str, Any] | None = None
    shared: dict[str, Any] = {}
    for row in rows:
        if not row.get("protocol"):
            continue
        protocol = json.loads(row["protocol"])
        if first is None:
            first, shared = row, protocol
        for field in dict.fromkeys([*shared, *protocol]):
            if shared.get(field) != protocol.get(field):
                raise ProtocolMismatch(
                    f"these rows were made by different protocols and do not belong in one table: {field} is {shared.get(field)!r} for "
                    f"{first['variant']} ({first['trial_id']}) and {protocol.get(field)!r} for {row['variant']} ({row['trial_id']}). "
                    "Report them apart."
                )
    return shared
