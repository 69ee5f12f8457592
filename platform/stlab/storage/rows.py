"""Rows of ``trials.parquet``: the ones that stand in a table, their outcome, the best trial and the common protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from stlab.errors import ProtocolMismatch

Row = TypeVar("Row", bound=Mapping[str, Any])


def table_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that stand in a study's table. A search contributes only the trials that it selected."""
    return [row for row in rows if not row.get("searched")]


def outcome(row: Mapping[str, Any]) -> str:
    """A row's status. A trial whose error is not a finite number counts as failed, whatever its files say."""
    status = str(row.get("status"))
    metrics = [row.get(name) for name in ("val_rmse", "val_mae", "test_rmse", "test_mae")]
    diverged = any(value is not None and not math.isfinite(value) for value in metrics)
    return "failed" if status == "finished" and diverged else status


def best_trial(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The finished trial with the lowest validation error (the first one of several), or None if none has finished.

    The error is MAE if all trials have ``train.select_by`` mae, else RMSE. The test segment plays no part: a tested trial is not
    preferred. A search contributes only its selected configuration.

    Args:
        rows: rows of ``trials.parquet``; baselines are left out.
    """
    done = [row for row in table_rows(rows) if not row.get("baseline") and row.get("status") == "finished"]
    by_mae = bool(done) and all(row.get("param.train.select_by") == "mae" for row in done)
    error = "val_mae" if by_mae else "val_rmse"
    known = [row for row in done if row.get(error) is not None and math.isfinite(row[error])]
    return min(known, key=lambda row: float(row[error]), default=None)


def single_protocol(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The one protocol fingerprint that all rows share.

    Raises:
        ProtocolMismatch: the rows have different protocols; the message names the first field that differs and two rows.
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
