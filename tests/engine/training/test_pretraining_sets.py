"""A pre-training over several data sets: what it reads, in which batches, what it counts for, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlab.cli.options import load_study
from stlab.data import load_dataset
from stlab.data.joint import JointWindows
from stlab.data.windows import Windows
from stlab.errors import StudyError
from stlab.execution.run_study import plan_study
from stlab.inference import load_trial
from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.plan import Plan
from stlab.study.spec import DataSpec, TrialSpec
from stlab.training import run_trial
from stlab.training.trial import dataset_for
from tests.engine.training.test_stages import weights

SETS = {"own": ((2, 4, 4), 60), "wide": ((1, 6, 8), 30), "slow": ((2, 3, 5), 120)}
"""Name → shape of a step, and minutes of a step."""
STEPS = {"own": 400, "wide": 300, "slow": 200}
SMALL = {"width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_layers": 1, "decoder_heads": 2, "memory": 8}

MakeTrial = Callable[..., TrialSpec]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Three data sets of counts with a daily rhythm; name → values."""
    monkeypatch.chdir(tmp_path)
    made = {}
    for seed, (name, (shape, minutes)) in enumerate(SETS.items()):
        hour = np.arange(STEPS[name]) * minutes / 60
        level = 12 + 9 * np.sin(2 * np.pi * hour / 24)
        made[name] = np.random.default_rng(seed).poisson(level[:, None, None, None] * np.ones(shape)).astype(np.float32)
        write(name, made[name])
    return made


def write(name: str, values: np.ndarray) -> None:
    times = np.datetime64("2024-01-01", "s") + np.arange(len(values)) * np.timedelta64(60 * SETS[name][1], "s")
    np.savez(f"{name}.npz", data=values, timestamps=times)
    dataset_for.cache_clear()


def joint(*names: str, size: int | None = None, **data: Any) -> Windows:
    return load_dataset(DataSpec(path="own.npz", pretrain=[f"{name}.npz" for name in names], **data)).pretrain_windows()


def trained(make_trial: MakeTrial, name: str, *sets: str, data: dict[str, Any] | None = None, **options: Any) -> TrialDirectory:
    """A pre-training of two epochs and a training of one."""
    model = {"name": "unist", **SMALL, "prompt": "none", "period": "none", "pretrain_epochs": 2}
    given = {"path": "own.npz", "pretrain": [f"{one}.npz" for one in sets], **(data or {})}
    trial = make_trial(model=model, data=given, max_epochs=1, warmup_epochs=0)
    directory = TrialDirectory(Store("runs"), name)
    dataset = dataset_for(trial.data)
    identity = {"data_sha256": dataset.sha256, "pretrain_sha256": dataset.parts["pretrain"]}
    run_trial(trial, identity, directory, test=False, **options)
    return directory


def test_a_batch_is_of_one_set_and_an_epoch_has_every_window_once() -> None:
    windows = joint("own", "wide", "slow")
    counts = [int(0.7 * STEPS[name]) - 11 for name in SETS]
    assert len(windows) == sum(counts)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    batches = windows.batches(order, 32)
    assert len(batches) == windows.batch_count(32) == sum(-(-count // 32) for count in counts)
    assert torch.equal(torch.cat(list(batches)).sort().values, torch.arange(len(windows)))
    first = torch.tensor([0, counts[0], counts[0] + counts[1]])
    owners = [torch.bucketize(batch, first, right=True) for batch in batches]
    assert all(len(owner.unique()) == 1 for owner in owners)
    turns = [int(owner[0]) for owner in owners]
    assert sum(one != other for one, other in itertools.pairwise(turns)) > 3, "the sets take turns"
    for batch, turn in zip(batches, turns, strict=True):
        shape = SETS[list(SETS)[turn - 1]][0]
        assert windows.gather(batch).history.shape == (len(batch), 6, *shape)
    with pytest.raises(ValueError, match="several data sets"):
        windows.gather(first[1] - torch.tensor([0, 1]))
    with pytest.raises(IndexError):
        windows.gather(torch.tensor([len(windows)]))


def test_a_window_is_that_of_its_own_set_scaled_by_the_train_segment_of_that() -> None:
    windows, alone = joint("slow", "wide"), load_dataset(DataSpec(path="wide.npz")).windows("train")
    index = torch.tensor([0, 5, 100])
    found, expected = windows.gather(index + int(0.7 * STEPS["slow"]) - 11), alone.gather(index)
    assert torch.equal(found.history, expected.history)
    assert torch.equal(found.target, expected.target)


def test_slots_are_those_of_the_week_of_the_forecasts() -> None:
    """Hours for forecasts: half hours become the hour in which they lie, and two hours the first of both."""
    for name in ("wide", "slow"):
        batch = joint(name).gather(torch.arange(40))
        assert batch.history_slot is not None
        assert batch.target_slot is not None
        steps = torch.arange(40)[:, None] + torch.arange(12)
        hours = steps * SETS[name][1] // 60 % 168
        assert torch.equal(torch.cat([batch.history_slot, batch.target_slot], dim=1), hours)


def test_the_own_set_is_read_as_the_trial_reads_it(files: dict[str, np.ndarray]) -> None:
    few = load_dataset(DataSpec(path="own.npz", train_ratio=0.3)).windows("train")
    assert len(joint("own", train_ratio=0.3)) == len(few)
    times = np.datetime64("2024-01-01", "s") + np.arange(STEPS["own"]) * np.timedelta64(3600, "s")
    np.savez("copy.npz", data=files["own"], timestamps=times)
    assert len(joint("copy", train_ratio=0.3)) == len(few), "its content tells"
    assert len(joint("wide", train_ratio=0.3)) == int(0.7 * STEPS["wide"]) - 11


def test_nothing_after_a_train_segment_is_read(make_trial: MakeTrial, files: dict[str, np.ndarray]) -> None:
    trained(make_trial, "a", "own", "wide", "slow")
    for name, values in files.items():
        later = values.copy()
        later[int(0.7 * len(values)) :] = 7 * values[: len(values) - int(0.7 * len(values))] + 100
        write(name, later)
    trained(make_trial, "b", "own", "wide", "slow")
    before, after = weights("a", "pretrain"), weights("b", "pretrain")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    write("wide", files["wide"][::-1])
    trained(make_trial, "c", "own", "wide", "slow")
    assert any(not torch.equal(before[name], now) for name, now in weights("c", "pretrain").items())


def test_an_interruption_leaves_no_trace(make_trial: MakeTrial) -> None:
    trained(make_trial, "straight", "wide", "slow")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 7  # in the middle of the first epoch of eleven batches

    assert trained(make_trial, "resumed", "wide", "slow", stop=stop).status() is TrialStatus.STARTED
    assert trained(make_trial, "resumed", "wide", "slow").status() is TrialStatus.FINISHED
    for stage in ("pretrain", ""):
        straight, resumed = weights("straight", stage), weights("resumed", stage)
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


STUDY = """\
name: sets
base:
  data: {path: own.npz, pretrain: [own.npz, wide.npz]}
  model: {name: unist, width: 16, encoder_heads: 2, decoder_heads: 2, period: none, prompt: sc}
  resources: {gpus: 0}
variants:
  pretrained: {}
  from scratch: {model.pretrain_epochs: 0}
  other: {model: {name: stid}}
"""


def plan(*changes: str) -> Plan:
    Path("sets.yaml").write_text(STUDY)
    return plan_study(*load_study("sets.yaml", list(changes)))


def ids(*changes: str) -> dict[str, str]:
    return {trial.spec.variant: trial.trial_id for trial in plan(*changes).trials}


def test_the_sets_count_for_the_ids_of_those_that_are_pretrained(files: dict[str, np.ndarray]) -> None:
    first = ids()
    fewer = ids("data.pretrain=[own.npz]")
    Path("wide.npz").rename("renamed.npz")
    renamed = ids("data.pretrain=[own.npz, renamed.npz]")
    write("wide", files["wide"] + 1)
    others = ids()
    assert renamed == first
    for changed in (fewer, others):
        assert {name for name in first if changed[name] != first[name]} == {"pretrained"}
    assert len(set(first.values())) == len(first)


def test_what_cannot_be_is_refused_by_the_name_of_the_set(files: dict[str, np.ndarray]) -> None:
    np.savez("bare.npz", data=files["own"])
    with pytest.raises(StudyError, match=r"data\.pretrain, bare\.npz: unist reads hour and weekday"):
        plan("data.pretrain=[own.npz, bare.npz]")
    with pytest.raises(StudyError, match=r"data\.pretrain, wide\.npz: model\.channels=joint takes images of 2 channels"):
        plan("model.channels=joint", "variants.other=null")
    with pytest.raises(StudyError, match=r"'own\.npz' is named twice"):
        plan("data.pretrain=[own.npz, own.npz]")


def test_what_a_search_chooses_is_held_against_the_sets() -> None:
    space = "search={space: {model.channels: {categorical: [independent, joint]}}, max_trials: 2}"
    with pytest.raises(StudyError, match=r'"joint" cannot be in .pretrained.: model: data\.pretrain, wide\.npz: model\.channels=joint'):
        plan(space, "variants.other=null", "variants.from scratch=null")


def test_a_study_that_pretrains_nothing_is_told() -> None:
    notes = plan("variants.pretrained=null").notes
    assert [note for note in notes if note.startswith("data.pretrain")]
    assert not [note for note in plan().notes if note.startswith("data.pretrain")]


def test_a_forecaster_needs_no_set_of_its_pretraining(make_trial: MakeTrial) -> None:
    directory = trained(make_trial, "a", "wide")
    expected = load_trial(directory.store, "a").predict(np.ones((1, 6, 2, 4, 4), np.float32), start="2024-02-01")
    Path("wide.npz").unlink()
    dataset_for.cache_clear()
    found = load_trial(directory.store, "a").predict(np.ones((1, 6, 2, 4, 4), np.float32), start="2024-02-01")
    assert np.array_equal(found, expected)


def test_batches_of_a_set_alone_are_its_own() -> None:
    windows = joint("wide")
    assert isinstance(windows, JointWindows)
    order = torch.randperm(len(windows))
    assert all(torch.equal(*pair) for pair in zip(windows.batches(order, 16), order.split(16), strict=True))
