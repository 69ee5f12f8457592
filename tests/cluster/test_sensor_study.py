"""A study on a network of sensors, run as a user runs it: real Ray, real files; the same path as any other study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = (
    "data.path=PEMS99.npz", "data.start=2018-01-01", "data.step_minutes=60", "model.backbone=vilt_test", "model.weights=random",
    "model.hidden=8", "train.max_epochs=2", "seeds=[0]",
    "variants={full: {}, w/o image: {model: {fusion: none}}, LSTM: {model: {name: lstm, hidden: 8}}}",
)  # fmt: skip
RUN = ("run", "st_vlm_ablation", "--storage", "runs", *(word for setting in SETTINGS for word in ("--set", setting)))


@pytest.fixture(scope="module")
def ran(stlab_on_cluster: Any) -> Any:
    """The shipped study on a file in PEMS's layout: three channels, some readings missing (0), and one dead sensor."""
    stlab = stlab_on_cluster
    draw = np.random.default_rng(0)
    steps, nodes = 24 * 21, 9
    day = 60 + 40 * np.sin(2 * np.pi * np.arange(steps) / 24)[:, None]
    flow = draw.poisson(day * draw.uniform(0.5, 1.5, nodes)).astype(np.float32) + 1
    flow[draw.random(flow.shape) < 0.05] = 0
    flow[:, 4] = 0
    np.savez(stlab.folder / "PEMS99.npz", data=np.stack([flow, draw.random(flow.shape), draw.random(flow.shape)], axis=-1))
    answer = stlab(*RUN, timeout=600)
    assert answer.code == 0, answer
    return stlab, answer, flow


def _rows(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "runs" / "studies" / "st_vlm_ablation" / "results" / "trials.parquet").set_index("variant")


def test_every_variant_and_baseline_is_a_row(ran: Any) -> None:
    rows = _rows(ran[0].folder)
    assert set(rows.status) == {"finished"}
    assert {"full", "w/o image", "LSTM", "last_value", "last_window", "ridge", "slot_of_week_mean"} <= set(rows.index)
    assert (rows.test_mape > 0).all()
    assert rows.protocol.nunique() == 1
    assert rows["param.model.fusion"].to_dict()["w/o image"] == "none"


def test_the_last_window_is_what_numpy_says(ran: Any) -> None:
    """Masked, and with missing readings counted: by plain float64, window by window."""
    folder, flow = ran[0].folder, ran[2].astype(np.float64)
    row = _rows(folder).loc["last_window"]
    steps = len(flow)
    start = int(0.8 * steps)
    windows = range(start, steps - 24 + 1)
    error = np.stack([flow[i : i + 12] - flow[i + 12 : i + 24] for i in windows])
    seen = np.stack([flow[i + 12 : i + 24] for i in windows]) != 0
    assert row.test_mae == pytest.approx(np.abs(error[seen]).mean(), rel=1e-5)
    assert row.test_rmse == pytest.approx(np.sqrt(np.square(error[seen]).mean()), rel=1e-5)
    assert row.test_mae_unmasked == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert row.test_rmse_unmasked == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-5)


def test_the_report_shows_what_the_model_sees(ran: Any) -> None:
    folder = ran[0].folder
    rows = _rows(folder)
    view = pq.read_table(folder / "runs" / "trials" / rows.trial_id["full"] / "view.parquet")
    assert view.num_rows == 9
    assert {"dtw", "cross_correlation", "spectrum", "series"} <= set(view.column_names)
    image = np.array(view["cross_correlation"].to_pylist())
    np.testing.assert_allclose(image, image.T, atol=1e-6)
    assert not (folder / "runs" / "trials" / rows.trial_id["LSTM"] / "view.parquet").exists()
    report = folder / "runs" / "studies" / "st_vlm_ablation" / "report"
    assert {"correlation_image.png", "outstanding_nodes.png", "error_by_node.png"} <= {p.name for p in (report / "figures").iterdir()}
    assert "unmasked" in (report / "index.html").read_text()


def test_the_same_command_does_nothing_twice(ran: Any) -> None:
    stlab = ran[0]
    before = {path: path.stat().st_mtime_ns for path in (stlab.folder / "runs" / "trials").glob("*/*.json")}
    answer = stlab(*RUN, timeout=600)
    assert answer.code == 0, answer
    assert before == {path: path.stat().st_mtime_ns for path in (stlab.folder / "runs" / "trials").glob("*/*.json")}
