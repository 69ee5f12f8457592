"""A file of UniST's ready-made windows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np


def unist_file(
    folder: Path, *, form: str = "pairs", name: str = "BikeNYC_short.json", **changes: Any
) -> tuple[str, dict[str, np.ndarray]]:
    """A file as UniST's loader reads it: pairs [windows, past days], timestamps by segment."""
    rng = np.random.default_rng(5)
    content: dict[str, Any] = {"timestamps": {}}
    arrays = {}
    for key, n in (("train", 40), ("val", 8), ("test", 9)):
        array = rng.integers(0, 50 if key != "test" else 90, (n, 12, 4, 3)).astype(np.float64)
        arrays[key] = array
        content[f"X_{key}"] = [array.tolist(), rng.integers(0, 50, (n, 12, 3, 4, 3)).tolist()]
        step = np.arange(n)[:, None] + np.arange(12)
        content["timestamps"][key] = {
            "pairs": np.stack([step // 24 % 7, step % 24], axis=-1).tolist(),
            "half-hours": step.tolist(),
            "text": [
                [str(datetime.datetime(2024, 3, 4) + datetime.timedelta(minutes=30 * int(i))) for i in row]
                for row in step
            ],
        }[form]
    content.update(changes)
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path), arrays
