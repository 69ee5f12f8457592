"""The report of a sensor network: the image a model sees, the nodes that stand out, errors by node, missing readings."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console
from scipy import stats

from stlab.data import load_dataset
from stlab.report import terminal_table, to_latex, write_report
from stlab.report.figures.data_set import data_set_figure
from stlab.report.figures.nodes import image_figure, node_error_figure, outstanding_figure, running_median
from stlab.report.model_input import choose_nodes, node_scores, read_model_input, without_missing
from stlab.report.page.text import headline
from stlab.report.predictions import Predictions, read_predictions
from stlab.report.statistics.summary import summarise
from stlab.report.tables.lines import against_anchor
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus
from stlab.storage.schema import model_input_table
from stlab.study.spec import DataSpec, ResourcesSpec, TrainSpec, TrialSpec
from stlab.training import run_trial
from stmodels.baselines.model import Baseline
from stmodels.types import Batch, ModelInput

NODES, WINDOWS, HORIZON = 30, 20, 3
START = np.datetime64("2024-03-04T00:00", "s")
CHANNELS = ("dtw", "cross_correlation", "spectrum")
PROTOCOL = json.dumps({
    "protocol": "forecast", "data_sha256": "ab" * 32, "family": "sensors", "channels": 1, "channel": 0, "history": 12,
    "horizon": HORIZON, "split": [0.6, 0.2, 0.2], "scaler": "z-score", "mask": 0.0, "scale": 1.0,
})  # fmt: skip


def an_image(strange: tuple[int, ...] = (7, 21)) -> dict[str, np.ndarray]:
    """Three channels of 30 nodes, of which all but two are similar."""
    draw = np.random.default_rng(3)
    image = 0.8 + 0.02 * draw.standard_normal((3, NODES, NODES))
    image = (image + image.swapaxes(1, 2)) / 2
    for depth, node in enumerate(strange):
        image[:, node, :] -= 0.5 - 0.1 * depth
        image[:, :, node] -= 0.5 - 0.1 * depth
    image = image.clip(0, 1).astype(np.float32)
    return {"dtw": 1 - image[0], "cross_correlation": image[1], "spectrum": image[2]}


def a_model_input(channels: dict[str, np.ndarray] | None = None, timed: bool = True) -> pa.Table:
    series = 50 + np.random.default_rng(0).standard_normal((NODES, 100))
    series[4, 10:20] = 2e-6  # no reading, by way of scaled space
    told = {"window": 40, "history": 12, "time": str(START) if timed else None, "step_seconds": 300 if timed else None}
    return model_input_table([f"s{node}" for node in range(NODES)], channels or an_image(), series, told)


def write_trial(store: Store, variant: str, noise: float, model_input: pa.Table | None = None, baseline: bool = False) -> Any:
    """A tested trial of 30 nodes; node i lacks its first i readings."""
    directory = TrialDirectory(store, re.sub(r"\W", "", variant))
    truth = 20.0 + np.arange(NODES) + np.zeros((WINDOWS, HORIZON, NODES))
    for node in range(WINDOWS - 1):
        truth[:node, :, node] = 0.0
    error = np.random.default_rng(1).normal(0, noise, truth.shape)
    directory.write_trial({
        "seed": 0, "baseline": baseline, "dataset": "roads", "synthetic": False, "leaks": False, "protocol": PROTOCOL,
        "data_sha256": "ab" * 32, "code_version": "0", "weights": None, "model": {"name": variant},
    })  # fmt: skip
    directory.write_result({"val_rmse": noise, "val_mae": noise, "best_epoch": 1, "epochs": 1, "wall_seconds": 1.0})
    seen = truth > 0
    found = {"mae": np.abs(error)[seen].mean(), "rmse": np.sqrt((error**2)[seen].mean()), "mape": 12.5 * noise}
    steps = [{"segment": "test", "horizon": q + 1, "mae": noise, "rmse": noise, "count": 1} for q in range(HORIZON)]
    predictions = pa.table({
        "window": np.repeat(np.arange(WINDOWS), HORIZON),
        "horizon": pa.array(np.tile(np.arange(1, HORIZON + 1), WINDOWS), pa.int32()),
        "time": pa.nulls(WINDOWS * HORIZON, pa.timestamp("s")),
        # What was 0 comes back from scaled space as a rounding error.
        "truth": list(np.where(seen, truth, -1.9e-6).reshape(-1, NODES).astype(np.float32)),
        "forecast": list((truth + error).reshape(-1, NODES).astype(np.float32)),
    }).replace_schema_metadata({"shape": f"[{NODES}, 1]", "every_nth_window": "4"})  # fmt: skip
    if model_input is not None:
        directory.write_model_input(model_input)
    directory.write_test({key: float(value) for key, value in found.items()}, steps, predictions)
    return {**directory.row(), "study": "s", "variant": variant}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def report_text(store: Store, rows: list[Any]) -> str:
    directory = StudyDirectory(store, "s")
    directory.write_study("name: s\nseeds: [0]\n")
    directory.write_trials(rows)
    html = Path(write_report(store, "s")).read_text()
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]+"', "", html)).split())


def test_a_score_is_the_likeness_in_median_deviations() -> None:
    channels = an_image()
    alike = [
        np.mean([
            np.mean([
                1 - channels["dtw"][i, j].astype(float), channels["cross_correlation"][i, j], channels["spectrum"][i, j]
            ])
            for j in range(NODES) if j != i
        ])
        for i in range(NODES)
    ]  # fmt: skip
    expected = (alike - np.median(alike)) / stats.median_abs_deviation(alike, scale="normal")
    np.testing.assert_allclose(node_scores(channels), expected, rtol=1e-4)
    choice = choose_nodes(node_scores(channels))
    assert choice.outstanding == (7, 21)
    assert choice.beyond == 2
    assert np.abs(choice.scores[list(choice.typical)]).max() == pytest.approx(np.sort(np.abs(choice.scores))[1])


def test_scores_where_most_nodes_are_alike() -> None:
    image = np.ones((12, 12), np.float32)
    assert (node_scores({"spectrum": image}) == 0).all()
    image[5, :] = image[:, 5] = 0.5
    scores = node_scores({"spectrum": image})
    assert scores.argmin() == 5
    assert scores[5] < -3.5
    for few in (1, 2, 3):
        choice = choose_nodes(node_scores({"dtw": np.eye(few, dtype=np.float32)}))
        assert len(choice.outstanding) == few // 3


def test_missing_readings_are_told_from_small_ones() -> None:
    draw = np.random.default_rng(0)
    readings = draw.integers(0, 900, 20_000).astype(np.float64)
    center, spread = readings.mean(), readings.std()
    back = ((readings - center) / spread).astype(np.float32) * np.float32(spread) + np.float32(center)
    np.testing.assert_array_equal(np.isnan(without_missing(back, 0.0)), readings == 0)
    np.testing.assert_array_equal(np.isnan(without_missing(back - 1, -1)), readings == 0)
    assert np.isfinite(without_missing(back, None)).all()


def test_errors_by_node_leave_missing_readings_out(store: Store) -> None:
    write_trial(store, "full", 1.0)
    found = read_predictions(store, "full")
    assert found is not None
    assert found.every_nth == 4
    mean, error = found.by_node()
    table = TrialDirectory(store, "full").read_predictions()
    assert table is not None
    truth, forecast = (np.array(table[name].to_pylist()) for name in ("truth", "forecast"))
    for node in range(NODES):
        seen = truth[:, node] > 1
        assert seen.sum() == HORIZON * (WINDOWS - (node if node < WINDOWS - 1 else 0))
        assert mean[node] == pytest.approx(truth[seen, node].mean())
        assert error[node] == pytest.approx(np.abs(forecast - truth)[seen, node].mean())
    assert found.busiest_cell() == (NODES - 1, 0)
    dead = Predictions(found.window, None, np.full_like(found.truth, np.nan), found.forecast)
    assert np.isnan(dead.by_node()).all()
    node_error_figure(("full", *dead.by_node()), None)


def test_the_running_median_is_that_of_pandas() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 70))
    order = np.argsort(x)
    expected = [pd.Series(values[order]).rolling(10).median().dropna().to_numpy() for values in (x, y)]
    np.testing.assert_allclose(running_median(x, y), expected)
    assert len(running_median(x[:3], y[:3])[0]) == 1


@pytest.mark.parametrize("timed", [True, False])
def test_a_model_input_comes_back_as_it_was_written(store: Store, timed: bool) -> None:
    write_trial(store, "full", 1.0, a_model_input(timed=timed))
    seen = read_model_input(store, "full")
    assert seen is not None
    for name, image in an_image().items():
        np.testing.assert_array_equal(seen.channels[name], image)
    assert (seen.window, seen.history, list(seen.names)[:2]) == (40, 12, ["s0", "s1"])
    assert np.isnan(seen.series).sum() == 10  # the readings that are missing
    steps = seen.steps()
    assert steps[12] == (START + np.timedelta64(1, "h") if timed else 52)
    assert read_model_input(store, "absent") is None
    outstanding_figure(seen, choose_nodes(node_scores(seen.channels)))


def test_every_column_of_a_model_input_says_what_it_means() -> None:
    for field in a_model_input().schema:
        assert len(field.metadata[b"meaning"]) > 3, field.name
        assert b"unit" in field.metadata, field.name


@pytest.mark.parametrize("nodes", [1, 2, 20, 60, 400])
@pytest.mark.parametrize("channels", [CHANNELS, CHANNELS[1:], ("own",)])
def test_an_image_of_any_size_is_drawn(nodes: int, channels: tuple[str, ...]) -> None:
    image = np.random.default_rng(0).random((nodes, nodes))
    figure = image_figure(dict.fromkeys(channels, image), [str(node) for node in range(nodes)], [0])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == len(channels) + (len(channels) == 3)
    np.testing.assert_array_equal(np.asarray(panels[0].images[0].get_array()), image)


def test_the_report_shows_the_whole_image_of_the_best_variant_that_sees_it(store: Store) -> None:
    without = {name: image for name, image in an_image().items() if name != "dtw"}
    rows = [
        write_trial(store, "full", 1.0, a_model_input()),
        write_trial(store, "w/o image", 0.9),
        write_trial(store, "w/o dtw", 0.95, a_model_input(without)),
        write_trial(store, "last_value", 1.2, baseline=True),
        write_trial(store, "last_window", 2.0, baseline=True),
    ]
    text = report_text(store, rows)
    for says in (
        "The image that the model sees (full, seed 0) for the test window with the largest total truth, 12 steps from 2024-03-04",
        "Dynamic time warping: the accumulated difference",
        "2 nodes have a score below −3.5 (dotted line); the lowest scores are those of 7, 21.",
        "Test error of each node against its mean reading: w/o image, seed 0, and last_value, the best baseline",
        "larger error at 30 of 30 nodes", "One in 4 windows was kept.", "Missing readings are left out.",
        "No maps: the data are not on a grid.", "sensors, channel 0 of the file, 12 → 3 steps",
        "readings equal to 0 masked out", "horizons and nodes together", "Test MAPE, %", "A busy node",
    ):  # fmt: skip
        assert says in text, says
    folder = Path(store.path("studies/s/report/figures"))
    names = {"rmse_by_horizon", "busiest_series", "error_by_node", "correlation_image", "outstanding_nodes"}
    assert {path.stem for path in folder.iterdir()} == names


def test_without_weeks_variants_stand_against_the_best_baseline(store: Store) -> None:
    rows = [
        write_trial(store, "full", 1.0), write_trial(store, "w/o SAF", 1.3),
        write_trial(store, "last_value", 1.2, baseline=True), write_trial(store, "last_window", 2.0, baseline=True),
    ]  # fmt: skip
    rmse = {row["variant"]: row["test_rmse"] for row in rows}
    headline = (
        "The mean by slot of week, the baseline that counts, is not among these results. The best baseline is last_value "
        f"(RMSE {rmse['last_value']:.3f}), beaten by full."
    )
    sink = io.StringIO()
    Console(file=sink, width=110).print(terminal_table(rows, width=110))
    printed, text, latex = " ".join(sink.getvalue().split()), report_text(store, rows), to_latex(rows)
    assert headline in printed
    assert headline in text
    assert "Compared with the best baseline, last_value" in text
    relative = f"{100 * (rmse['full'] / rmse['last_value'] - 1):+.1f} %".replace("-", "−")
    assert relative in printed
    assert relative in text
    assert "vs best" in printed
    assert "vs week" not in printed + text
    assert "MAPE" in printed
    assert "…" not in printed
    assert r"Test MAPE, \%" in latex
    assert "$12.50$" in latex
    assert max(map(len, sink.getvalue().splitlines())) <= 110


@pytest.fixture(scope="module")
def sensors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of readings every half hour at 6 nodes; some are missing, one node is dead."""
    draw = np.random.default_rng(5)
    values = 40 + 10 * np.sin(np.arange(144)[:, None] / 7 + np.arange(6)) + draw.standard_normal((144, 6))
    values[draw.random(values.shape) < 0.05] = 0
    values[:, 4] = 0
    path = tmp_path_factory.mktemp("sensors") / "roads.npz"
    times = np.datetime64("2024-03-04", "s") + np.arange(144) * np.timedelta64(1800, "s")
    np.savez(path, data=values[..., None].astype(np.float32), timestamps=times)
    return path


def sensors_trial(path: Path) -> TrialSpec:
    data = DataSpec(**{"path": str(path), "family": "sensors", "history": 4, "horizon": 2})
    return TrialSpec(
        study="s", variant="last_value", seed=0, data=data, model={"name": "last_value"}, train=TrainSpec(batch_size=8),
        resources=ResourcesSpec(gpus=0), baseline=True,
    )  # fmt: skip


def a_baseline_sees(self: Baseline, batch: Batch) -> ModelInput:
    """A stand-in for a model's image: how far apart the nodes' last readings are."""
    last = batch.history[:, -1, :, 0].sigmoid()
    return ModelInput(("gap",), (last[:, :, None] - last[:, None, :]).abs()[:, None])


def test_a_tested_trial_keeps_what_its_model_sees(
    sensors_file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Baseline, "model_input", a_baseline_sees)
    written: list[str] = []
    write = Store.write
    monkeypatch.setattr(Store, "write", lambda self, at, content: (written.append(at), write(self, at, content))[1])
    directory = TrialDirectory(store, "a")
    assert run_trial(sensors_trial(sensors_file), {}, directory, test=True) is TrialStatus.FINISHED
    assert written.index("trials/a/view.parquet") < written.index("trials/a/test.json")
    seen = read_model_input(store, "a")
    assert seen is not None
    data, times = (np.load(sensors_file)[name] for name in ("data", "timestamps"))
    starts = np.arange(115, 144 - 6 + 1)  # floor(0.8 · 144) on
    window = starts[np.argmax([data[start + 4 : start + 6].sum() for start in starts])]
    assert (seen.window, seen.time, seen.step_seconds, seen.history) == (window, times[window], 1800, 4)
    np.testing.assert_allclose(seen.series, data[window:, :, 0].T, atol=1e-4)
    train = data[:86]
    scaled = 1 / (1 + np.exp(-(data[window + 3, :, 0] - train[train != 0].mean()) / train[train != 0].std()))
    np.testing.assert_allclose(seen.channels["gap"], np.abs(scaled[:, None] - scaled), atol=1e-5)


def test_a_model_that_sees_no_image_keeps_none(sensors_file: Path, store: Store) -> None:
    directory = TrialDirectory(store, "a")
    run_trial(sensors_trial(sensors_file), {}, directory, test=True)
    assert directory.is_tested()
    assert directory.read_model_input() is None


def test_the_picture_of_a_network_leaves_missing_readings_out(sensors_file: Path) -> None:
    figure = data_set_figure(load_dataset(sensors_trial(sensors_file).data))
    nodes, missing, day = figure.axes
    train = np.load(sensors_file)["data"][:86, :, 0].astype(float)
    alive = [0, 1, 2, 3, 5]
    x, y = nodes.lines[0].get_data()
    assert list(x) == alive
    np.testing.assert_allclose(y, [train[train[:, node] != 0, node].mean() for node in alive], rtol=1e-6)
    np.testing.assert_allclose([bar.get_height() for bar in missing.patches], 100 * (train == 0).mean(axis=0))
    _, means = day.lines[0].get_data()
    by_step = np.nanmean(np.where(train == 0, np.nan, train), axis=1)
    np.testing.assert_allclose(means, [by_step[slot::48].mean() for slot in range(48)], rtol=1e-6)
    assert "1 never had a reading" in nodes.get_title(loc="left")


def test_a_part_of_the_data_too_short_for_a_week_hides_no_loser() -> None:
    """Few-shot: only the whole train segment has a mean by slot of week; the other rows are compared with their best baseline."""
    rows = [
        {
            "variant": variant, "seed": 0, "baseline": variant != "full", "status": "finished", "trial_id": f"{variant}{ratio}",
            "test_rmse": error, "test_mae": error, "param.data.train_ratio": ratio, "protocol": "{}",
        }
        for variant, errors in {"full": (30.0, 9.0), "last_value": (10.0, 10.0), "slot_of_week_mean": (None, 9.5)}.items()
        for ratio, error in zip((0.05, 1.0), errors, strict=True)
        if error is not None
    ]  # fmt: skip
    lines = summarise(rows, ["data.train_ratio"])
    told = headline(lines)
    assert "exists for only some of these rows" in told
    assert "1 of 2 rows beat the best baseline on their own data; not: full · train_ratio=0.05." in told
    assert [against_anchor(line, lines) for line in lines if not line.baseline] == ["+200.0 %", "−5.3 %"]
