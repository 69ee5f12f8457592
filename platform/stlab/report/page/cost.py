"""The estimated cost of a study (``stlab plan --probe``) beside its actual cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from stlab.report.page.text import duration, memory
from stlab.report.statistics.summary import Row, Summary
from stlab.storage import Store, outcome


def read_cost_estimates(store: Store, studies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Trial id → its estimate (``epoch_seconds``, ``seconds_at_most``, ``peak_memory_bytes``); empty if the studies have none."""
    found: dict[str, dict[str, Any]] = {}
    for study in studies:
        path = f"studies/{study}/forecast.json"
        if store.exists(path):
            found |= store.read_json(path)["trials"]
    return found


def estimated_and_actual_cost(
    store: Store, studies: Sequence[str], rows: Sequence[Row], lines: Sequence[Summary]
) -> dict[str, Any] | None:
    """The page's section: a line for each variant, and the sum over the finished trials that have an estimate.

    None if no finished trial has one.
    """
    estimates = read_cost_estimates(store, studies)
    done = {row["trial_id"]: row for row in rows if row["trial_id"] in estimates and outcome(row) == "finished"}
    table = []
    for line in lines:
        mine = [trial_id for trial_id in line.trial_ids if trial_id in done]
        if mine and not line.baseline:
            table.append({"label": line.label, **_line([estimates[i] for i in mine], [done[i] for i in mine])})
    return {"table": table, "sentence": cost_text(estimates, list(done.values()))} if table else None


def cost_text(estimates: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """Estimated and actual cost of the finished trials that have an estimate, as a sentence; empty if none has."""
    done = [row for row in rows if row["trial_id"] in estimates and outcome(row) == "finished"]
    if not done:
        return ""
    at_most = [float(estimates[row["trial_id"]]["seconds_at_most"]) for row in done]
    took = [float(row.get("wall_seconds") or 0.0) for row in done]
    text = f"{len(done)} trial{'' if len(done) == 1 else 's'}, one after the other: estimated at most {duration(math.fsum(at_most))}"
    text += f", took {duration(math.fsum(took))}"
    gpus = [_gpus(row) for row in done]
    if any(gpus):
        hours = [math.fsum(s * g for s, g in zip(seconds, gpus, strict=True)) / 3600 for seconds in (at_most, took)]
        text += f"; GPU-hours: estimated at most {hours[0]:.3g}, took {hours[1]:.3g}"
    prices = [float(row.get("param.resources.price_per_gpu_hour") or 0.0) for row in done]
    if any(g * p for g, p in zip(gpus, prices, strict=True)):
        each = [g * p / 3600 for g, p in zip(gpus, prices, strict=True)]
        money = [math.fsum(s * rate for s, rate in zip(seconds, each, strict=True)) for seconds in (at_most, took)]
        text += f"; price: estimated at most {money[0]:.2f}, spent {money[1]:.2f}"
    return text + "."


def _line(estimates: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, str]:
    epochs = [float(row.get("epochs") or 0) for row in rows]
    took = [float(row.get("wall_seconds") or 0.0) for row in rows]
    planned = [sum(float(row.get(f"param.train.{name}") or 0) for name in ("max_epochs", "decay_epochs")) for row in rows]
    peaks = [float(row["peak_memory_bytes"]) for row in rows if row.get("peak_memory_bytes")]
    return {
        "epoch_estimate": duration(fmean([one["epoch_seconds"] for one in estimates])),
        "epoch": duration(math.fsum(took) / math.fsum(epochs)) if math.fsum(epochs) else "–",
        "epochs_estimate": f"{fmean(planned):g}",
        "epochs": f"{fmean(epochs):.3g}",
        "trial_estimate": duration(fmean([one["seconds_at_most"] for one in estimates])),
        "trial": duration(fmean(took)),
        "memory_estimate": memory(max(one["peak_memory_bytes"] for one in estimates)),
        "memory": memory(max(peaks, default=None)),
    }


def _gpus(row: Row) -> float:
    """GPUs that a trial used, summed over its workers."""
    workers = float(row.get("param.resources.workers") or 1)
    gpus = row.get("param.resources.gpus")
    if gpus is None:  # one if the machine had one; the name of a CPU ends with its threads
        gpus = 0.0 if str(row.get("device") or "threads").endswith(("thread", "threads")) else 1.0
    return float(gpus) * workers
