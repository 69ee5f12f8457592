"""Further channels of the sensors: what a model is given, what it counts for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.cli.options import load_study
from stlab.data import Dataset, load_dataset
from stlab.errors import DataError, StudyError
from stlab.execution.run_study import plan_study
from stlab.inference import load_saved, load_trial
from stlab.inspection.contract import Subject, examine
from stlab.inspection.data_summary import summarise
from stlab.inspection.why import why_new
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.plan import Plan, PlannedTrial
from stlab.study.spec import DataSpec
from stlab.tracking._models import _check, signature
from stlab.tracking.pyfunc import PyfuncForecaster
from stlab.training import run_trial
from stlab.training.trial import dataset_for

STEPS, NODES = 300, 5
STUDY = """\
name: net
base:
  data: {path: net.npz, family: sensors, history: 4, horizon: 3}
  model: {name: lstm, hidden: 8}
  train: {max_epochs: 30, warmup_epochs: 0, lr: 1.0e-2}
  resources: {gpus: 0}
variants:
  alone: {}
  more: {data.inputs: [0, 2, 1]}
seeds: [0]
"""


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """(T, N, 3): noise, and two further channels. The second tells the first one step before it comes."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    made = np.stack([draw.normal(50, 9, (STEPS, NODES)), np.zeros((STEPS, NODES)), draw.normal(3, 1, (STEPS, NODES))], axis=-1)
    made[:-1, :, 1] = 0.01 * made[1:, :, 0]
    np.savez("net.npz", data=made.astype(np.float32))
    Path("net.yaml").write_text(STUDY)
    return made.astype(np.float32)


def changed(values: np.ndarray) -> None:
    """Write other values into the file, which a process reads once."""
    np.savez("net.npz", data=values)
    dataset_for.cache_clear()


def dataset(**data: Any) -> Dataset:
    return load_dataset(DataSpec(path="net.npz", family="sensors", history=4, horizon=3, **data))


def plan(*changes: str) -> Plan:
    return plan_study(*load_study("net.yaml", list(changes)))


def by_variant(made: Plan) -> dict[str, PlannedTrial]:
    return {trial.spec.variant: trial for trial in made.trials}


def test_the_history_of_further_channels_is_scaled_by_the_train_segment_of_each(values: np.ndarray) -> None:
    found = dataset(inputs=[0, 2, 1])
    train = values[: int(0.6 * STEPS), :, [2, 1]].astype(np.float64)
    scaled = (values[:, :, [2, 1]] - train.mean((0, 1))) / train.std((0, 1))
    batch = found.windows("validation").gather(torch.tensor([0, 7]))
    assert found.info.inputs == 2
    assert found.info.shape == (NODES, 1)
    for i, start in enumerate(batch.start):
        np.testing.assert_allclose(batch.history_inputs[i], scaled[start : start + 4], atol=1e-5)
    assert found.sha256 == dataset().sha256
    assert dataset().windows("train").gather(torch.tensor([0])).history_inputs is None
    segment = found.windows("train").readings()
    np.testing.assert_allclose(segment.inputs, scaled[: len(train)], atol=1e-5)


def test_no_later_step_reaches_a_window(values: np.ndarray) -> None:
    batch = dataset(inputs=[1]).windows("test").gather(torch.tensor([3]))
    cut = int(batch.start) + 4
    values[cut:] = np.random.default_rng(1).normal(9, 9, values[cut:].shape)
    np.savez("net.npz", data=values)
    assert torch.equal(dataset(inputs=[1]).windows("test").gather(torch.tensor([3])).history_inputs, batch.history_inputs)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"inputs": [3]}, r"has 3 channels, and data\.inputs=3 is none of them"),
        ({"inputs": [2], "channel": 4}, r"data\.channel=4 is none of them"),
    ],
)
def test_a_channel_that_is_not_there_is_named(values: np.ndarray, data: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        dataset(**data)


def test_gaps_and_channels_that_stand_still_are_named(values: np.ndarray) -> None:
    values[9, 2, 2] = np.nan
    np.savez("net.npz", data=values)
    with pytest.raises(DataError, match=r"1 of .* \[T=9, N=2, C=2\]"):
        dataset(inputs=[1, 2])
    summary = summarise(DataSpec(path="net.npz", family="sensors", history=4, horizon=3, inputs=[1, 2]))
    assert any("[T=9, N=2, C=2]" in problem for problem in summary.problems)
    filled = {method: dataset(inputs=[2], missing=method) for method in ("zero", "interpolate")}
    assert filled["zero"].parts["inputs"] != filled["interpolate"].parts["inputs"]
    assert dataset(inputs=[1]).inputs is not None, "a gap in a channel that nobody reads is nobody's"
    assert torch.isfinite(dataset(inputs=[2], missing="zero").inputs.values).all()
    values[:, :, 2] = 1
    np.savez("net.npz", data=values)
    with pytest.raises(DataError, match=r"channel 3 of data\.inputs: every reading in the train segment is 1"):
        dataset(inputs=[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("variants.more={data.inputs: [1, 1]}", "names a channel twice"),
        ("variants.more={data.family: grid, data.inputs: [1]}", "is for sensors"),
        ("variants.more={data.inputs: [0]}", "the same trials as 'alone'"),
        ("model={name: ridge}", "the same trials as 'alone'"),
        ("base.model={name: ./needy.py:NeedyConfig}", r"needy.py:NeedyConfig needs further channels.*data\.inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: np.ndarray, change: str, words: str) -> None:
    Path("needy.py").write_text(
        "from dataclasses import dataclass\n\nfrom stmodels.config import ModelConfig\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        'class NeedyConfig(ModelConfig):\n    NEEDS = ("inputs",)\n\n    name: str = "needy"\n'
    )
    with pytest.raises(StudyError, match=words):
        plan(change)


def test_they_count_in_the_ids_of_those_that_read_them(values: np.ndarray) -> None:
    plain, further = by_variant(plan("variants={more: {}}")), by_variant(plan())
    assert further["more"].trial_id != further["alone"].trial_id == plain["more"].trial_id
    assert all(further[name].trial_id == trial.trial_id for name, trial in plain.items() if name != "more")
    references = [trial.spec.variant for trial in plan().trials if trial.spec.baseline]
    assert len(set(references)) == len(references) > 1, "references stand once"
    values[..., 1] *= 2
    changed(values)
    now = by_variant(plan())
    assert now["alone"].trial_id == further["alone"].trial_id
    assert now["more"].trial_id != further["more"].trial_id


def test_interpolated_channels_leak_into_what_reads_them(values: np.ndarray) -> None:
    values[9, 2, 2] = np.nan
    changed(values)
    made = by_variant(plan("data.missing=interpolate"))
    assert {name: trial.identity["leaks"] for name, trial in made.items() if not trial.spec.baseline} == {"alone": False, "more": True}


def test_a_model_that_ignores_them_is_named(values: np.ndarray) -> None:
    made = plan("variants.other={model: {name: ridge}, data.inputs: [1]}")
    assert "data.inputs: ridge cannot read further channels and forecasts without them." in made.notes


def test_a_model_that_is_told_more_forecasts_better_and_is_saved_with_it(values: np.ndarray, tmp_path: Path) -> None:
    store, errors = Store(tmp_path / "runs"), {}
    trials = by_variant(plan())
    for variant in ("alone", "more"):
        trial = trials[variant]
        directory = TrialDirectory(store, trial.trial_id)
        assert run_trial(trial.spec, trial.identity, directory, test=True) is TrialStatus.FINISHED
        rows = directory.read_horizon().to_pylist()
        errors[variant] = next(row["rmse"] for row in rows if row["segment"] == "test" and row["horizon"] == 1)
    assert errors["more"] < 0.5 * errors["alone"]

    loaded = load_trial(store, trials["more"].trial_id)
    loaded.save(tmp_path / "saved")
    saved = load_saved(tmp_path / "saved")
    history, further = values[None, :4, :, :1], values[:4][None, ..., [2, 1]]
    expected = loaded.predict(history, inputs=further)
    np.testing.assert_array_equal(saved.predict(history, inputs=further), expected)
    np.testing.assert_array_equal(PyfuncForecaster(saved).predict({"history": history, "inputs": further}), expected)
    assert np.abs(saved.predict(history, inputs=further + np.float32([0, 0.1])) - expected).max() > 0.1
    assert [tensor.name for tensor in signature(saved).inputs] == ["history", "inputs"]
    _check(saved, store, trials["more"].trial_id)
    with pytest.raises(DataError, match=r"reads further channels \(channel 3, channel 2\): predict\(history, inputs=…\)"):
        saved.predict(history)
    with pytest.raises(DataError, match="inputs: its shape is"):
        saved.predict(history, inputs=further[..., :1])
    assert load_trial(store, trials["alone"].trial_id).inputs_shape is None

    told = why_new(plan("variants.more={data.inputs: [1]}"), by_variant(plan("variants.more={data.inputs: [1]}"))["more"].trial_id, store)
    assert [difference.what for difference in told.differences] == ["inputs"]
    changed(values * np.float32([1, 2, 2]))
    with pytest.raises(DataError, match=r"its further channels \(data\.inputs\) are not what trial"):
        load_trial(store, trials["more"].trial_id)
    assert load_trial(store, trials["alone"].trial_id) is not None


@pytest.mark.parametrize("model", ["lstm", "ridge"])
def test_the_contract_is_checked_with_them(values: np.ndarray, model: str) -> None:
    subject = Subject({"name": model}, dataset(inputs=[1, 2]))
    assert [finding for finding in examine(subject) if finding.problem] == []
