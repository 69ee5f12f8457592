"""Python's way in: a forecaster from a trial, held against what the trial itself has forecast."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

import stlab
from stlab.api import Results
from stlab.catalog import config_class, config_values
from stlab.data import load_dataset
from stlab.errors import DataError, ModelError, StudyError, UserError
from stlab.inference import load_saved, load_trial
from stlab.report.predictions import read_predictions
from stlab.storage import Store, StudyDirectory, TrialDirectory, TrialStatus
from stlab.study.spec import DataSpec, ResourcesSpec, StudySpec, TrainSpec, TrialSpec
from stlab.training import run_trial

TINY = {"backbone": "vit_test", "weights": "random", "temporal_width": 8, "temporal_heads": 2, "temporal_layers": 1,
        "rank": 2, "prompts": 2, "cross_prompt_layers": 1}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "st_vfm": ("grid", {"name": "st_vfm", **TINY}),
    "st_vfm seasonal": ("grid", {"name": "st_vfm", **TINY, "calendar": True, "seasonal_residual": True}),
    "st_vlm": ("sensors", {"name": "st_vlm", "backbone": "vilt_test", "weights": "random", "hidden": 8, "lora_rank": 2}),
    "lstm by day": ("sensors", {"name": "lstm", "hidden": 8, "time_of_day": True}),
    "ridge": ("grid", {"name": "ridge"}),
    "week": ("sensors", {"name": "slot_of_week_mean"}),
    "last": ("grid", {"name": "last_value"}),
}
TIMED = {"st_vfm seasonal", "lstm by day", "ridge", "week"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five weeks in steps of three hours: counts on a 4×4 grid; and six sensors with missing readings (0)."""
    draw, steps, folder = np.random.default_rng(3), 280, tmp_path_factory.mktemp("data")
    times = np.datetime64("2024-01-01", "s") + np.arange(steps) * np.timedelta64(3 * 3600, "s")
    day = 12 + 9 * np.sin(2 * np.pi * np.arange(steps) / 8)
    grid = draw.poisson(day[:, None, None, None] * draw.uniform(0.5, 1.5, (2, 4, 4))).astype(np.float32)
    flow = (day[:, None, None] * draw.uniform(4, 9, (6, 1)) + draw.normal(0, 3, (steps, 6, 1))).astype(np.float32)
    flow[draw.random(flow.shape) < 0.02] = 0
    for name, data in (("grid", grid), ("sensors", flow)):
        np.savez(folder / f"{name}.npz", data=data, timestamps=times)
    return {name: folder / f"{name}.npz" for name in ("grid", "sensors")}


def trial_of(files: dict[str, Path], name: str) -> TrialSpec:
    family, model = MODELS[name]
    values = config_values(config_class(model["name"])(**model))
    return TrialSpec(
        study="small", variant=name, seed=1, data=DataSpec(path=str(files[family]), family=family), model=values,
        train=TrainSpec(max_epochs=2, warmup_epochs=1, lr=3e-3, batch_size=32), resources=ResourcesSpec(gpus=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrialDirectory]:
    """The directory of a finished, tested trial of one of ``MODELS``; each is trained once."""
    store, done = Store(tmp_path_factory.mktemp("runs")), {}

    def get(name: str) -> TrialDirectory:
        if name not in done:
            trial, done[name] = trial_of(files, name), TrialDirectory(store, name.replace(" ", "-"))
            data = load_dataset(trial.data)
            told = {"dataset": data.name, "protocol": json.dumps(data.protocol), "data_sha256": data.sha256}
            assert run_trial(trial, told, done[name], test=True) is TrialStatus.FINISHED
        return done[name]

    return get


def windows_of(files: dict[str, Path], family: str, starts: np.ndarray, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Histories in the data's unit, straight from the file, and the times they begin."""
    with np.load(files[family]) as file:
        data, times = file["data"], file["timestamps"]
    return data[starts[:, None] + np.arange(history)], times[starts]


@pytest.mark.parametrize("name", MODELS)
def test_a_forecaster_forecasts_what_its_trial_did(
    name: str, files: dict[str, Path], trained: Callable[[str], TrialDirectory], tmp_path: Path
) -> None:
    directory = trained(name)
    kept = read_predictions(directory.store, directory.trial_id)
    assert kept is not None
    forecaster = load_trial(directory.store, directory.trial_id)
    history, times = windows_of(files, MODELS[name][0], kept.window, forecaster.history_shape[0])
    given = times if name in TIMED else None
    np.testing.assert_allclose(forecaster.predict(history, given), kept.forecast, rtol=1e-5, atol=1e-4)
    forecaster.save(tmp_path / "saved")
    moved = load_saved(tmp_path / "saved")
    np.testing.assert_array_equal(moved.predict(history, given), forecaster.predict(history, given))
    assert moved.facts == forecaster.facts
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}


def test_a_forecast_of_another_week_has_that_weeks_season(
    files: dict[str, Path], trained: Callable[[str], TrialDirectory]
) -> None:
    """Years after the data ends: the mean by slot of week of the train segment's readings, in float64."""
    forecaster = load_trial(trained("week").store, "week")
    with np.load(files["sensors"]) as file:
        train, times = file["data"][: int(0.6 * 280)].astype(np.float64), file["timestamps"][: int(0.6 * 280)]
    start = np.array(["2031-05-07T09:00", "2031-05-11T21:00"], dtype="datetime64[s]")  # a Wednesday and a Sunday
    forecast = forecaster.predict(np.ones((2, *forecaster.history_shape)), start)
    ahead = start[:, None] + np.arange(12, 24) * np.timedelta64(3 * 3600, "s")
    week = 7 * 86400 * np.timedelta64(1, "s")
    for window in range(2):
        for step in range(12):
            same = (times - ahead[window, step]) % week == np.timedelta64(0, "s")
            for node in range(6):
                readings = train[same, node, 0]
                if (readings != 0).any():
                    assert forecast[window, step, node, 0] == pytest.approx(readings[readings != 0].mean(), rel=1e-5)


def test_what_a_forecaster_cannot_use_is_refused(
    files: dict[str, Path], trained: Callable[[str], TrialDirectory], tmp_path: Path
) -> None:
    plain, timed = (load_trial(trained(name).store, trained(name).trial_id) for name in ("st_vfm", "st_vfm seasonal"))
    good = np.ones((2, 6, 2, 4, 4))
    assert plain.predict(good[:0]).shape == (0, 6, 2, 4, 4)
    assert (plain.needs_start, timed.needs_start) == (False, True)
    with pytest.raises(DataError, match=r"\(2, 2, 4, 4\).*\(windows, 6, 2, 4, 4\)"):
        plain.predict(good[:, 0])
    with pytest.raises(DataError, match="1 values are not finite"):
        plain.predict(np.where(np.arange(good.size).reshape(good.shape) == 7, np.nan, good))
    with pytest.raises(DataError, match="start"):
        timed.predict(good)
    with pytest.raises(DataError, match="start"):
        timed.predict(good, np.array(["2024-01-01"] * 3, dtype="datetime64[s]"))
    np.testing.assert_array_equal(timed.predict(good, np.datetime64("2024-01-01")), timed.predict(good, ["2024-01-01"] * 2))
    with pytest.raises(UserError, match="no such trial"):
        load_trial(trained("st_vfm").store, "none")
    with pytest.raises(ModelError, match=r"forecaster\.json is missing"):
        load_saved(tmp_path)


def test_a_trial_whose_data_has_changed_gives_no_forecaster(
    files: dict[str, Path], tmp_path: Path, trained: Callable[[str], TrialDirectory]
) -> None:
    kept, directory = trained("last"), TrialDirectory(Store(tmp_path), "moved")
    with np.load(files["grid"]) as file:
        np.savez(tmp_path / "other.npz", data=file["data"] + 1, timestamps=file["timestamps"])
    told = kept.read("trial.json") or {}
    directory.write_trial(told | {"data": told["data"] | {"path": str(tmp_path / "other.npz")}})
    directory.write_result(kept.read("result.json") or {})
    with pytest.raises(DataError, match="is not what trial moved was trained on"):
        load_trial(directory.store, "moved")


@pytest.fixture(scope="module")
def study(files: dict[str, Path], trained: Callable[[str], TrialDirectory]) -> Results:
    """A study of two of these trials and two baselines."""
    store = trained("st_vfm").store
    names = ("st_vfm", "st_vfm seasonal", "last", "ridge")
    rows = [
        {**trained(name).row(), "study": "small", "variant": name, "baseline": name in ("last", "ridge")} for name in names
    ]
    directory = StudyDirectory(store, "small")
    directory.write_study("name: small\naxes: {}\n")
    directory.write_trials(rows)
    return stlab.results(store.location, "small")


def test_results_are_the_directories(study: Results, files: dict[str, Path]) -> None:
    trials = study.trials
    assert list(trials["variant"]) == ["st_vfm", "st_vfm seasonal", "last", "ridge"]
    assert study.arrow.schema.field("test_rmse").metadata[b"unit"] == b"data unit"
    best = trials[~trials["baseline"]].sort_values("val_rmse").iloc[0]
    assert study.best["trial_id"] == best["trial_id"]
    table = study.table().set_index("variant")
    assert table.loc["ridge", "test_rmse_mean"] == trials.set_index("variant").loc["ridge", "test_rmse"]
    epochs = study.epochs()
    assert list(epochs.columns[:3]) == ["variant", "seed", "trial_id"]
    assert epochs.groupby("variant")["epoch"].max().to_dict() == {"st_vfm": 2, "st_vfm seasonal": 2}
    kept = study.predictions("st_vfm")
    assert np.sqrt(np.mean((kept.forecast - kept.truth) ** 2)) == pytest.approx(
        trials.set_index("trial_id").loc["st_vfm", "test_rmse"], rel=1e-5
    )
    history, _ = windows_of(files, "grid", kept.window[:3], 6)
    assert study.load_model("st_vfm").predict(history) == pytest.approx(kept.forecast[:3], rel=1e-5, abs=1e-4)
    assert "2 of 2" in repr(study)
    with pytest.raises(UserError, match="no forecasts"):
        study.predictions("none")


def test_the_table_is_held_against_what_the_report_is(tmp_path: Path) -> None:
    """The study's own reference, and the base's point on an axis."""
    store = Store(tmp_path)
    rows = [
        {"study": "s", "variant": name, "trial_id": f"{name}-{seed}", "seed": seed, "status": "finished", "baseline": False,
         "test_rmse": rmse + 0.1 * seed + 0.01 * (seed == 1), "test_mae": rmse, "val_rmse": rmse, "protocol": "{}", "dataset": "d"}
        for name, rmse in (("full", 3.0), ("plain", 4.0)) for seed in range(3)
    ]  # fmt: skip
    directory = StudyDirectory(store, "s")
    directory.write_study("name: s\nreference: plain\naxes: {}\n")
    directory.write_trials(rows)
    table = stlab.results(store.location, "s").table().set_index("variant")
    assert table.loc["full", "reference"] == "plain"
    assert table.loc["full", "diff_rmse"] == pytest.approx(-1.0, abs=0.02)


def test_figures_are_drawn_without_a_report(study: Results) -> None:
    with pytest.raises(UserError, match="no report"):
        _ = study.report_path
    drawn = study.figures()
    assert {"rmse_by_horizon", "learning_curves", "busiest_series"} <= set(drawn)
    assert all(isinstance(figure, Figure) for figure in drawn.values())


def test_results_are_found_by_storage_and_name_or_by_the_studys_folder(study: Results) -> None:
    for found in (stlab.results(study.storage), stlab.results(f"{study.storage}/studies/small"), Results(study.storage, "small")):
        assert (found.name, found.storage) == ("small", study.storage)
    with pytest.raises(UserError, match="there: small"):
        stlab.results(study.storage, "smal")
    with pytest.raises(UserError, match="no studies"):
        stlab.results(f"{study.storage}/trials")


def test_importing_stlab_is_light() -> None:
    code = "import sys, stlab; stlab.__version__; sys.exit(bool({'torch', 'pyarrow', 'pandas', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        stlab.rum  # noqa: B018


@pytest.mark.parametrize("form", ["mapping", "spec", "path"])
def test_a_study_may_be_given_in_any_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "name: one\nbase: {data: {path: x.npz}, model: {name: st_vfm}}\nvariants: {a.b: {model.patch: 2}}\nseeds: [0, 1]\n"
    seen = {}

    def remember(spec: StudySpec, storage: str, **options: Any) -> None:
        seen.update(options, spec=spec, storage=storage)
        raise UserError("far enough")

    monkeypatch.setattr("stlab.execution.run_study.run_study", remember)
    (tmp_path / "one.yaml").write_text(text)
    given = {"path": tmp_path / "one.yaml", "mapping": yaml.safe_load(text), "spec": StudySpec(**yaml.safe_load(text))}[form]
    with pytest.raises(UserError, match="far enough"):
        stlab.run(given, tmp_path / "runs", overrides={"train.lr": 1e-05, "seeds": [4], "model.use_cls": True}, retry_failed=True)
    spec = seen["spec"]
    assert (spec.base.train.lr, spec.seeds, spec.base.model["use_cls"], list(spec.variants)) == (1e-5, [4], True, ["a.b"])
    assert seen["retry_failed"] is True
    with pytest.raises(StudyError, match="lrr"):
        stlab.run(given, tmp_path / "runs", overrides={"train.lrr": 1})


@pytest.mark.slow
def test_a_study_runs_from_python(files: dict[str, Path], tmp_path: Path) -> None:
    """Slow: Ray starts on this machine, and two worker groups."""
    study = {
        "name": "python", "baselines": ["last_value"],
        "base": {"data": {"path": str(files["grid"])}, "model": MODELS["st_vfm"][1], "train": {"max_epochs": 1, "warmup_epochs": 1}},
    }  # fmt: skip
    done = stlab.run(study, tmp_path / "runs")
    assert list(done.trials["status"]) == ["finished", "finished"]
    written = {path.stem for path in (Path(done.report_path).parent / "figures").glob("*.png")}
    assert set(done.figures()) == written
    model = done.load_model()
    assert model.predict(np.ones((1, *model.history_shape))).shape == (1, *model.forecast_shape)
