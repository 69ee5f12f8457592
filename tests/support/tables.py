"""Results of a study on several data sets with known true errors, without any training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stlab.storage import Store, StudyDirectory

Row = dict[str, Any]


def table_of(
    truth: Mapping[str, float], datasets: Sequence[str], seeds: int = 3, noise: float = 0.01, chance: int = 0, per_dataset: float = 0.0
) -> list[Row]:
    """A row for each trial. A model's error on a data set is its true factor times the data set's size, which seeds scatter.

    Args:
        truth: model → factor.
        noise: relative standard deviation over seeds; seeds share half of it between models, as trials of one seed do.
        per_dataset: relative standard deviation of a model's factor over data sets.
    """
    draw = np.random.default_rng(chance)
    rows = []
    for dataset in datasets:
        size = float(np.exp(draw.normal(2, 1)))
        factors = {model: factor * float(np.exp(draw.normal(0, per_dataset))) for model, factor in truth.items()}
        shared = draw.normal(0, noise / 2, seeds)
        for model, factor in factors.items():
            for seed in range(seeds):
                rmse = size * factor * (1 + shared[seed] + draw.normal(0, noise))
                rows.append(row(dataset, model, seed, float(rmse), float(rmse / 2 * (1 + draw.normal(0, noise)))))
        rows.append(row(dataset, "slot_of_week_mean", 0, size * 1.2, size * 0.7) | {"baseline": True})
    return rows


def row(dataset: str, model: str, seed: int, rmse: float, mae: float) -> Row:
    """A finished trial as ``trials.parquet`` has it."""
    protocol = {"family": "grid", "history": 6, "horizon": 6, "split": [0.7, 0.15, 0.15], "mask": None, "data_sha256": dataset}
    return {
        "study": "whole", "dataset": dataset, "variant": model, "seed": seed, "baseline": False, "status": "finished",
        "trial_id": f"{dataset}-{model}-{seed}".replace(" ", "_"), "test_rmse": rmse, "test_mae": mae, "val_rmse": rmse * 0.97,
        "val_mae": mae, "protocol": json.dumps(protocol), "information": "window", "trainable_params": 10_000, "wall_seconds": 60.0,
    }  # fmt: skip


def write_table(store: Store, rows: Sequence[Row], **study: Any) -> None:
    """A study of these rows in the storage, as if it had been run."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    models = list(dict.fromkeys(row["variant"] for row in rows if not row["baseline"]))
    content = {
        "name": "whole",
        "base": {"data": {"path": "datasets"}, "model": {"name": "stid"}},
        "datasets": {name: {"path": f"/data/{name}.npz"} for name in names},
        "variants": {model: {} for model in models},
        "seeds": sorted({row["seed"] for row in rows}),
        **study,
    }
    directory = StudyDirectory(store, "whole")
    directory.write_study(json.dumps(content))
    directory.write_trials(rows)
