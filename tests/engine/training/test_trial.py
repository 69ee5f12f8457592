"""One trial and its directory: what is written, when, and what another call makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stlab.catalog import create_model
from stlab.data import load_dataset
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.storage.schema import trials_table
from stlab.study.spec import TrialSpec
from stlab.training import device, loop, run_trial
from stlab.training.checkpoint import load_trainable_state
from stlab.training.schedule import learning_rate
from stmodels.baselines.config import BASELINES

MakeTrial = Callable[..., TrialSpec]
ID = {
    "dataset": "small",
    "synthetic": False,
    "leaks": False,
    "protocol": "{}",
    "data_sha256": "ab",
    "code_version": "0+0",
}


def files(directory: TrialDirectory) -> dict[str, tuple[bytes, int]]:
    root = Path(directory.store.path(directory.prefix))
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def by_own_means(trial: TrialSpec, weights: dict[str, torch.Tensor], segment: str) -> tuple[np.ndarray, np.ndarray]:
    """Forecast and truth in the data's unit, one window after another, in numpy float64."""
    dataset = load_dataset(trial.data)
    model = create_model(trial.model, dataset.info)
    load_trainable_state(model, weights)
    model.eval()
    windows = dataset.windows(segment)
    data = np.load(trial.data.path)["data"].astype(np.float64)
    low, high = data[:168].min(), data[:168].max()
    with torch.inference_mode():
        scaled = [
            model(windows.gather(torch.tensor([i]))).value[0].numpy().astype(np.float64) for i in range(len(windows))
        ]
    first = {"validation": 168, "test": 204}[segment]
    truth = np.stack([data[first + i + 6 : first + i + 12] for i in range(len(windows))])
    return np.maximum((np.stack(scaled) + 1) / 2 * (high - low) + low, 0), truth


def rmse(forecast: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((forecast.astype(np.float64) - truth) ** 2)))


def test_what_a_trial_leaves_behind(make_trial: MakeTrial, directory: TrialDirectory) -> None:
    trial = make_trial(model={"dropout": 0.1})
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FINISHED
    result, test, epochs = directory.read("result.json"), directory.read("test.json"), directory.read_epochs()
    assert result is not None
    assert test is not None
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    assert (result["epochs"], result["stopped"]) == (4, "max_epochs")
    assert result["best_epoch"] == 1 + int(np.argmin([row["val_rmse"] for row in epochs]))
    assert result["val_rmse"] == min(row["val_rmse"] for row in epochs)
    assert result["wall_seconds"] == pytest.approx(sum(row["seconds"] for row in epochs))
    model = create_model(trial.model, load_dataset(trial.data).info)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    assert result["total_params"] == sum(size for size, _ in sizes)
    assert result["trainable_params"] == sum(size for size, trainable in sizes if trainable)
    spec = directory.read("trial.json") or {}
    assert TrialSpec(**{name: spec[name] for name in TrialSpec.model_fields}) == trial
    assert {name: spec[name] for name in ID} == ID
    row = trials_table([{"study": "small", "variant": "full", **directory.row()}]).to_pylist()[0]
    assert (row["test_rmse"], row["dataset"], row["param.model.rank"]) == (test["rmse"], "small", 2)

    best = load_file(directory.store.path(f"{directory.prefix}/checkpoint/best.safetensors"))
    assert not any("backbone" in name and "adapter" not in name for name in best)  # what is frozen is not kept
    for segment, value in (("validation", result["val_rmse"]), ("test", test["rmse"])):
        assert value == pytest.approx(rmse(*by_own_means(trial, best, segment)), rel=1e-5)


def test_predictions_are_what_the_test_figures_are_made_of(make_trial: MakeTrial, directory: TrialDirectory) -> None:
    trial = make_trial(max_epochs=1)
    run_trial(trial, ID, directory, test=True)
    table, test = directory.read_predictions(), directory.read("test.json") or {}
    assert table is not None
    shape = json.loads(table.schema.metadata[b"shape"])
    assert shape == [2, 4, 4]
    data, times = (np.load(trial.data.path)[key] for key in ("data", "timestamps"))
    window, ahead = table["window"].to_numpy(), table["horizon"].to_numpy()
    truth, forecast = (np.stack(table[name].to_pylist()).reshape(-1, *shape) for name in ("truth", "forecast"))
    step = window + 6 + ahead - 1
    assert sorted(set(zip(window.tolist(), ahead.tolist(), strict=True))) == [
        (w, h) for w in range(204, 229) for h in range(1, 7)
    ]
    np.testing.assert_allclose(truth, data[step], atol=1e-4)
    np.testing.assert_array_equal(table["time"].to_numpy(), times[step])
    assert test["windows"] == 25
    assert test["rmse"] == pytest.approx(rmse(forecast, data[step]), rel=1e-5)
    assert test["mae"] == pytest.approx(np.abs(forecast.astype(np.float64) - data[step]).mean(), rel=1e-5)
    horizon = directory.read_horizon()
    assert horizon is not None
    for row in horizon.to_pylist():
        if row["segment"] == "test":
            here = ahead == row["horizon"]
            assert row["rmse"] == pytest.approx(rmse(forecast[here], data[step][here]), rel=1e-5)
            assert row["count"] == here.sum() * 32
    validation = [row for row in horizon.to_pylist() if row["segment"] == "validation"]
    result = directory.read("result.json") or {}
    assert np.sqrt(np.mean([row["rmse"] ** 2 for row in validation])) == pytest.approx(result["val_rmse"], rel=1e-6)


def test_test_figures_come_from_the_best_checkpoint_not_the_last(
    make_trial: MakeTrial, directory: TrialDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, torch.Tensor]] = []
    script = [9.0, 5.0, 7.0, 8.0]

    def evaluate(model: torch.nn.Module, *_: Any) -> dict[str, Any]:
        measured.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"mae": 1.0, "rmse": script[len(measured) - 1]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    trial = make_trial(lr=2e-2)
    run_trial(trial, ID, directory, test=True)
    result, test = directory.read("result.json") or {}, directory.read("test.json") or {}
    assert (result["best_epoch"], result["val_rmse"]) == (2, 5.0)
    trainable = load_file(directory.store.path(f"{directory.prefix}/checkpoint/best.safetensors"))
    best, last = ({name: state[name] for name in trainable} for state in (measured[1], measured[-1]))
    assert test["rmse"] == pytest.approx(rmse(*by_own_means(trial, best, "test")), rel=1e-5)
    assert abs(test["rmse"] - rmse(*by_own_means(trial, last, "test"))) > 1e-3


def test_early_stopping_is_said(
    make_trial: MakeTrial, directory: TrialDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([9.0, 5.0, 7.0, 8.0, 1.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"mae": 1.0, "rmse": next(script)})
    run_trial(make_trial(max_epochs=9, patience=2), ID, directory, test=False)
    result = directory.read("result.json") or {}
    assert (result["epochs"], result["best_epoch"], result["stopped"]) == (4, 2, "no better validation RMSE")


def test_a_finished_trial_is_left_alone(make_trial: MakeTrial, directory: TrialDirectory) -> None:
    trial = make_trial(max_epochs=2)
    assert run_trial(trial, ID, directory, test=False) is TrialStatus.FINISHED
    before = files(directory)
    assert "test.json" not in before
    assert run_trial(trial, ID, directory, test=False) is TrialStatus.FINISHED
    assert files(directory) == before
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FINISHED  # measured, not trained again
    tested = files(directory)
    assert {name: tested[name] for name in before} == before
    assert set(tested) - set(before) == {"test.json", "horizon.parquet", "predictions.parquet"}
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FINISHED
    assert files(directory) == tested


def test_the_result_is_written_last(
    make_trial: MakeTrial, directory: TrialDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    trial = make_trial(max_epochs=2)
    monkeypatch.setattr(TrialDirectory, "write_result", killed)
    with pytest.raises(KeyboardInterrupt):
        run_trial(trial, ID, directory, test=True)
    monkeypatch.undo()
    assert directory.status() is TrialStatus.STARTED
    assert {"trial.json", "epochs.parquet", "checkpoint/best.safetensors"} <= set(files(directory))
    assert not directory.is_tested()
    monkeypatch.setattr(loop.Loop, "_epoch", killed)  # nothing is left to train
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FINISHED
    monkeypatch.undo()
    whole = TrialDirectory(Store(tmp_path / "whole"), "a")
    run_trial(trial, ID, whole, test=True)
    for name, key in (("result.json", "val_rmse"), ("test.json", "rmse")):
        assert (directory.read(name) or {})[key] == (whole.read(name) or {})[key]


def test_a_loss_that_diverges_is_a_failure_on_record(make_trial: MakeTrial, directory: TrialDirectory) -> None:
    trial = make_trial(lr=1e18, warmup_epochs=0)
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    rate = learning_rate(1, 5, trial.train)  # the first update breaks the weights, the second step sees it
    assert failure["reason"] == f"the loss is nan at step 2, learning rate {rate:.3g}"
    assert any("NonFiniteLoss" in line for line in failure["log_tail"])
    json.dumps(failure, allow_nan=False)
    assert directory.read("result.json") is None
    row = trials_table([directory.row()]).to_pylist()[0]
    assert (row["status"], row["error"]) == ("failed", failure["reason"])

    before = files(directory)
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FAILED
    assert files(directory) == before
    directory.clear_failure()
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FAILED
    assert (directory.read("failed-1.json") or {})["reason"] == (directory.read("failed.json") or {})["reason"]


def test_a_trial_that_failed_by_accident_goes_on_once_cleared(
    make_trial: MakeTrial, directory: TrialDirectory, tmp_path: Path
) -> None:
    trial = make_trial()
    calls: list[int] = []

    def full_disk(event: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    assert run_trial(trial, ID, directory, test=False, report=full_disk) is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert failure["reason"] == "OSError: [Errno 28] No space left on device"
    assert failure["epoch"] == 3
    directory.clear_failure()
    epochs: list[int] = []
    report = lambda event: epochs.extend(row["epoch"] for row in event["rows"])  # noqa: E731
    assert run_trial(trial, ID, directory, test=False, report=report) is TrialStatus.FINISHED
    assert epochs == [1, 2, 3, 4]  # two told again, two trained
    whole = TrialDirectory(Store(tmp_path / "whole"), "a")
    run_trial(trial, ID, whole, test=False)
    assert (directory.read("result.json") or {})["val_rmse"] == (whole.read("result.json") or {})["val_rmse"]


@pytest.mark.parametrize(
    ("model", "data", "reason"),
    [
        ({"patch": 3}, {}, "patches of 3×3"),
        ({"backbone": "vit_tset"}, {}, "vit_tset"),
        ({}, {"path": "/nowhere/x.npz"}, "/nowhere/x.npz: no such file"),
    ],
)
def test_what_cannot_be_built_fails_alone_and_says_why(
    make_trial: MakeTrial, directory: TrialDirectory, model: dict[str, Any], data: dict[str, Any], reason: str
) -> None:
    assert run_trial(make_trial(model=model, data=data), ID, directory, test=True) is TrialStatus.FAILED
    failure = directory.read("failed.json") or {}
    assert reason in failure["reason"]
    assert not failure["reason"].startswith(("ModelError", "DataError"))  # the user's to mend: said plainly
    assert (failure["epoch"], failure["step"]) == (0, 0)


@pytest.mark.parametrize("name", ["last_value", "last_window", "same_slot_yesterday"])
def test_a_baseline_is_a_trial_like_any_other(make_trial: MakeTrial, directory: TrialDirectory, name: str) -> None:
    assert name in BASELINES
    trial = make_trial(model={"name": name})
    assert run_trial(trial, ID, directory, test=True) is TrialStatus.FINISHED
    data = np.load(trial.data.path)["data"].astype(np.float64)
    ahead = np.arange(6)
    for file, key, first, count in (("result.json", "val_rmse", 168, 25), ("test.json", "rmse", 204, 25)):
        starts = first + np.arange(count)[:, None]
        source = {
            "last_value": starts + 5 + 0 * ahead,
            "last_window": starts + ahead,
            "same_slot_yesterday": starts + 6 + ahead - 24,
        }
        expected = rmse(data[source[name]], data[starts + 6 + ahead])
        assert (directory.read(file) or {})[key] == pytest.approx(expected, rel=1e-5)
    result = directory.read("result.json") or {}
    assert (result["trainable_params"], result["epochs"]) == (0, 0)
    trials_table([directory.row()])


def test_the_arithmetic_is_on_record(make_trial: MakeTrial, directory: TrialDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result says which instructions and kernels computed it: its last digits follow from them."""
    monkeypatch.setattr(device, "cpu_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(device, "linear_kernels", lambda: "onednn")
    assert run_trial(make_trial(max_epochs=1), ID, directory, test=False) is TrialStatus.FINISHED
    capability = torch.backends.cpu.get_cpu_capability()
    assert (directory.read("result.json") or {})["arithmetic"] == f"AuthenticAMD, {capability}, linear layers by onednn"


def test_bf16_is_close_and_is_said(make_trial: MakeTrial, directory: TrialDirectory, tmp_path: Path) -> None:
    run_trial(make_trial(), ID, directory, test=True)
    half = TrialDirectory(Store(tmp_path / "half"), "a")
    assert run_trial(make_trial(precision="bf16"), ID, half, test=True) is TrialStatus.FINISHED
    one, other = (d.read("result.json") or {} for d in (directory, half))
    assert (one["precision"], other["precision"]) == ("fp32", "bf16")
    assert other["val_rmse"] == pytest.approx(one["val_rmse"], rel=0.05)
    assert other["val_rmse"] != one["val_rmse"]
