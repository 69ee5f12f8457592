"""From a row of ``trials.parquet`` to MLflow's names, tags, parameters and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from stlab.storage import outcome, table_rows

Row = Mapping[str, Any]

# Tags of a trial's run. The run page and the column picker show them in alphabetical order.
TAGS = (
    "variant", "seed", "trial_id", "dataset", "backbone", "weights", "protocol", "code_version", "status", "baseline",
    "synthetic", "leaks", "label", "number",
)

# Results of a trial. Metrics by epoch are named ``epoch/…``, so that the page draws them in a section of their own and the
# best checkpoint's ``val_rmse`` is not confused with the last epoch's.
FINAL_METRICS = (
    "test_rmse", "test_mae", "test_mape", "val_rmse", "val_mae", "best_epoch", "wall_seconds", "device_seconds",
    "peak_memory_bytes", "trainable_params", "total_params", "samples_per_second",
)

# The number of epochs done, logged with each epoch. Its history shows which epochs a run has.
EPOCH_MARKER = "epochs"

SUMMARISED = ("test_rmse", "test_mae", "val_rmse", "val_mae")

RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "interrupted": "KILLED"}


def text(value: Any) -> str:
    """A value as a string for MLflow: strings stay as they are, other values become JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


DATASET = "dataset"
"""The column of the data set, which is one more axis of a study on several."""


def axes_of(study_text: str) -> list[str]:
    """The dotted paths of a study's axes, after ``DATASET`` if it has several data sets."""
    study = yaml.safe_load(study_text)
    if not isinstance(study, dict):
        return []
    return [*([DATASET] if study.get("datasets") else []), *(study.get("axes") or {})]


def description_of(study_text: str) -> str:
    study = yaml.safe_load(study_text)
    return str(study.get("description") or "") if isinstance(study, dict) else ""


def label(row: Row, axes: Iterable[str]) -> str:
    """The variant and the trial's values on the axes: ``full · data.train_ratio=0.1``. The data set, if it is an axis, comes first."""
    axes = list(axes)
    values: dict[str, Any] = {}
    for axis in () if row.get("baseline") else axes:  # a baseline is computed once, whatever the axes
        name = f"param.{axis}"
        values |= {key[6:]: value for key, value in row.items() if key == name or key.startswith(f"{name}.")}
    parts = [f"{key}={text(value)}" for key, value in values.items() if value is not None]
    where = [str(row.get("dataset"))] if DATASET in axes else []
    return " · ".join([*where, str(row.get("variant")), *parts])


def trial_name(row: Row, axes: Iterable[str]) -> str:
    return label(row, axes) if row.get("baseline") else f"{label(row, axes)} · seed {row.get('seed')}"


def trial_tags(row: Row, axes: Iterable[str]) -> dict[str, str]:
    """The known tags. All seeds have the same ``label``, so that runs can be grouped by it."""
    known = {"backbone": row.get("param.model.backbone"), **row, "label": label(row, axes)}
    tags = {name: text(known[name])[:5000] for name in TAGS if known.get(name) is not None}
    if row.get("error"):
        tags["error"] = str(row["error"])[:5000]
    return tags


def summary_tags(name: str, rows: list[Row]) -> dict[str, str]:
    """The tags that all the trials share, and their seeds."""
    tags = [trial_tags(row, ()) for row in rows]
    own = {"seed", "trial_id", "status", "label", "error"}
    shared = {key: value for key, value in tags[0].items() if key not in own and all(t.get(key) == value for t in tags)}
    return {**shared, "label": name, "status": "summary", "seeds": ", ".join(str(row.get("seed")) for row in rows)}


def trial_params(row: Row) -> dict[str, str]:
    params = {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
    return {key: text(value)[:500] for key, value in params.items() if value is not None}


def final_metrics(row: Row) -> dict[str, float]:
    return {name: float(row[name]) for name in FINAL_METRICS if row.get(name) is not None}


def epoch_metrics(row: Row) -> dict[str, float]:
    """An epoch's metrics, the marker first. MLflow draws ``loss.flow`` and the like beside ``loss``."""
    names = [name for name in row if name not in ("epoch", "step") and row[name] is not None]
    return {EPOCH_MARKER: float(row["epoch"])} | {f"epoch/{name}": float(row[name]) for name in names}


def milliseconds(moment: datetime | str | None) -> int | None:
    """Milliseconds since 1970. A time without a zone is UTC."""
    if moment is None:
        return None
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def summary_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """Statistics over the finished trials of one variant, and the number of failed trials.

    ``test_rmse`` is the mean, so that summaries and trials share a column. ``test_rmse_sd`` is the standard deviation (n - 1),
    ``test_rmse_ci95`` the half width of the 95 % Student-t interval and ``test_rmse_n`` the number of trials. The other errors have the
    same suffixes. A single trial has neither deviation nor interval.
    """
    from scipy import stats

    rows = list(rows)
    done = [row for row in rows if outcome(row) == "finished"]
    metrics: dict[str, float] = {"failed": float(sum(outcome(row) == "failed" for row in rows))}
    for name in SUMMARISED:
        values = [float(row[name]) for row in done if row.get(name) is not None]
        if not values:
            continue
        n, mean = len(values), math.fsum(values) / len(values)
        metrics |= {name: mean, f"{name}_n": float(n)}
        if n > 1:
            sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
            metrics |= {f"{name}_sd": sd, f"{name}_ci95": float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)}
    return metrics


def by_label(rows: Iterable[Row], axes: Iterable[str]) -> dict[str, list[Row]]:
    """Label → the rows that differ only in their seed, in order of first appearance. A search has its selected trials only."""
    axes = list(axes)
    groups: dict[str, list[Row]] = {}
    for row in table_rows(rows):
        groups.setdefault(label(row, axes), []).append(row)
    return groups
