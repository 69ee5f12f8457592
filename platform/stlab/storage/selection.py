"""Which trial a study would use: by validation, never by test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])


def table_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows of ``trials.parquet`` that stand in a study's table: of a search, what it selected."""
    return [row for row in rows if not row.get("searched")]


def outcome(row: Mapping[str, Any]) -> str:
    """A row's status; a trial whose error is not a finite number has failed, whatever its files say."""
    status = str(row.get("status"))
    metrics = [row.get(name) for name in ("val_rmse", "val_mae", "test_rmse", "test_mae")]
    diverged = any(value is not None and not math.isfinite(value) for value in metrics)
    return "failed" if status == "finished" and diverged else status


def best_trial(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The finished trial with the lowest validation error; the first of equals, None where none has finished.

    The error is the one the trials were selected by: MAE where all have ``train.select_by`` mae, else RMSE. A trial that a test
    segment was measured for counts no more than another. Of a search only the selected configuration counts.

    Args:
        rows: rows of ``trials.parquet``; baselines are left out.
    """
    done = [row for row in table_rows(rows) if not row.get("baseline") and row.get("status") == "finished"]
    by_mae = bool(done) and all(row.get("param.train.select_by") == "mae" for row in done)
    error = "val_mae" if by_mae else "val_rmse"
    known = [row for row in done if row.get(error) is not None and math.isfinite(row[error])]
    return min(known, key=lambda row: float(row[error]), default=None)
