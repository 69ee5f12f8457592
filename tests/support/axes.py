"""Trials along λ with known means, so that the curve of a report is known beforehand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from stlab.storage import Store, TrialDirectory

LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
MEANS = (7.9, 7.12, 7.1, 7.0, 7.01, 7.05, 8.4)
PATH = "model.flow_weight"


def lambda_study(store: Store, seeds: int = 4, variants: tuple[str, ...] = ("full",), path: str = PATH) -> list[dict[str, Any]]:
    """Seeds that move all values alike, 0.02 of noise of their own; 2.0 and 0.0 far off. Norms: 3 and 6 / (1 + λ)."""
    draw = np.random.default_rng(5)
    common = draw.normal(0, 0.4, seeds)
    rows = []
    for variant in variants:
        for value, mean in zip(LAMBDAS, MEANS, strict=True):
            for seed in range(seeds):
                trial_id = f"{variant}{value}{seed}"
                rmse = float(mean + common[seed] + draw.normal(0, 0.02))
                epochs = [{"epoch": e, "step": e, "loss": 1.0, "val_rmse": rmse, "grad_norm.forecast": 3.0 if e > 4 else 90.0,
                           "grad_norm.flow": 6 / (1 + value) if e > 4 else 90.0} for e in range(1, 7)]  # fmt: skip
                TrialDirectory(store, trial_id).write_epochs(epochs)
                rows.append({"variant": variant, "seed": seed, "trial_id": trial_id, "status": "finished", "baseline": False,
                             "test_rmse": rmse, "test_mae": rmse / 2, "val_rmse": rmse - 0.3, "dataset": "bike", f"param.{path}": value,
                             "protocol": json.dumps({"family": "grid", "history": 6, "horizon": 6})})  # fmt: skip
    week = {"variant": "slot_of_week_mean", "trial_id": "week", "seed": 0, "baseline": True, "test_rmse": 7.2, "test_mae": 3.0}
    return [{**rows[0], f"param.{path}": None, **week}, *rows]
