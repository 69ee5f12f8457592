"""What the architecture is for: trained on real sensors and real bikes it beats copying. Minutes on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stlab.catalog import config_class, config_values
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stlab.training.trial import run_trial

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "data"
SMALL = {"name": "st_vlm", "backbone": "vilt_test", "weights": "random", "hidden": 32}


def _mae(folder: Path, file: str, model: dict[str, Any], epochs: int, lr: float = 2e-3) -> float:
    """Test MAE of a trial."""
    trial = TrialSpec(
        study="learns",
        variant="full",
        seed=0,
        data=DataSpec(path=str(FOLDER / file), family="sensors"),
        model=config_values(config_class(model["name"])(**model)),
        train=TrainSpec(max_epochs=epochs, warmup_epochs=0, lr=lr, batch_size=32, weight_decay=0.0, select_by="mae"),
        resources=ResourcesSpec(gpus=0),
    )
    directory = TrialDirectory(Store(folder / "runs"), model["name"])
    run_trial(trial, {}, directory, test=True)
    errors = directory.read("test.json")
    assert errors is not None, directory.read("failed.json")
    return float(errors["mae"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("file", "epochs", "lr"), [("metrla_week.npz", 3, 5e-3), ("nycbike1.npz", 4, 2e-3)])
def test_beats_the_copies(file: str, epochs: int, lr: float, tmp_path: Path) -> None:
    """METR-LA's mean week (207 sensors), and Citi Bike's grid as 128 nodes: last value and last window, by the same protocol."""
    if not (FOLDER / file).exists():
        pytest.skip(f"{file} is not beside this checkout (../shared/data)")
    copies = [_mae(tmp_path, file, {"name": name}, 1) for name in ("last_value", "last_window")]
    assert _mae(tmp_path, file, SMALL, epochs, lr) < min(copies)
