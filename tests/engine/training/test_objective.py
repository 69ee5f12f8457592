"""What training minimises: the loss that a study asks for, and how much of the horizon it covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stlab.catalog import create_config, create_model
from stlab.data import load_dataset
from stlab.storage import TrialDirectory, TrialStatus
from stlab.study.identity import trial_id
from stlab.study.spec import DataSpec, TrainSpec, TrialSpec
from stlab.training import run_trial
from stlab.training.batches import BatchPlan, up_to
from stlab.training.schedule import covered_horizon, curriculum_end
from stmodels.layers.losses import mean_huber
from stmodels.rng import initialise

MakeTrial = Callable[..., TrialSpec]


@pytest.mark.parametrize("delta", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seen", [1.0, 0.4, 0.0])
def test_hubers_loss_is_pytorchs(delta: float, seen: float) -> None:
    draw = torch.Generator().manual_seed(1)
    error = 2 * torch.randn(4, 12, 5, 1, generator=draw)
    mask = torch.rand(error.shape, generator=draw) < seen
    found = error.where(mask, torch.tensor(torch.nan)).requires_grad_()
    loss = mean_huber(found, mask, delta)
    present = error[mask].requires_grad_()
    expected = torch.nn.functional.huber_loss(present, torch.zeros_like(present), delta=delta) if seen else torch.zeros(())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, found)
    assert gradient.isfinite().all()
    if seen:
        torch.testing.assert_close(gradient[mask], torch.autograd.grad(expected, present)[0])


@pytest.mark.parametrize("name", ["st_vfm", "lstm"])
def test_a_study_names_the_loss_of_any_model(make_trial: MakeTrial, name: str, directory: TrialDirectory) -> None:
    """The first epoch's loss is that of the errors in the unit of the data, squared, absolute or Huber's, but for their scale."""
    losses = {}
    for loss in ("model", "mse", "mae", "huber"):
        trial = make_trial(
            model={"name": name}, data={"family": "sensors" if name == "lstm" else "grid"}, loss=loss, huber_delta=2.0,
            max_epochs=1, lr=1e-12, warmup_epochs=0, batch_size=1000,
        )  # fmt: skip
        place = TrialDirectory(directory.store, loss)
        assert run_trial(trial, {}, place, test=False) is TrialStatus.FINISHED
        (row,) = place.read_epochs()
        losses[loss] = row.get("loss.forecast", row["loss"])
    dataset = load_dataset(trial.data)
    windows = dataset.windows("train")
    batch = windows.gather(torch.arange(len(windows)))
    assert losses["model"] == losses["mse" if name == "st_vfm" else "mae"]
    spread = dataset.scaler.spread
    model = create_model(trial.model, dataset.info)
    initialise(model, trial.seed)
    with torch.no_grad():
        error = (model.eval()(batch).value - batch.target).double().numpy() * spread
    expected = {
        "mse": np.square(error).mean() / spread**2,
        "mae": np.abs(error).mean() / spread,
        "huber": np.where(np.abs(error) < 2, error**2 / 2, 2 * (np.abs(error) - 1)).mean() / spread**2,
    }
    for loss, value in expected.items():
        assert losses[loss] == pytest.approx(value, rel=2e-3), loss  # dropout and the order of sums


def test_a_loss_is_part_of_the_id_and_the_models_own_is_the_default(make_trial: MakeTrial) -> None:
    def of(**train: object) -> str:
        trial = make_trial(**train)
        return trial_id(trial, create_config(trial.model), "ab")

    assert of(loss="model") == of(huber_delta=3.0) == of()
    assert len({of(), of(loss="mse"), of(loss="mae"), of(loss="huber"), of(loss="huber", huber_delta=3.0)}) == 5
    assert of(curriculum_epochs=1.5) != of()


def test_what_selects_is_part_of_the_ids_of_references_that_choose(make_trial: MakeTrial) -> None:
    def of(model: str, **train: object) -> str:
        trial = make_trial(model={"name": model}, **train)
        return trial_id(trial, create_config(trial.model), "ab")

    assert of("ridge", select_by="mae") != of("ridge") == of("ridge", lr=0.5)
    assert of("last_value", select_by="mae") == of("last_value")


def test_the_curriculum_covers_one_step_more_after_each_stretch() -> None:
    train = TrainSpec(curriculum_epochs=1.5)
    covered = [covered_horizon(step, 4, train, horizon=3) for step in range(20)]
    assert covered == [1] * 6 + [2] * 6 + [3] * 8
    assert curriculum_end(train, 3) == 3
    assert covered_horizon(0, 4, TrainSpec(), 12) == 12
    assert curriculum_end(TrainSpec(), 12) == 0


def test_readings_beyond_the_curriculum_move_nothing(small_grid: Path) -> None:
    """The gradient of a step is that of a target which ends there; batches in parts agree."""
    dataset = load_dataset(DataSpec(path=str(small_grid)))
    windows = dataset.windows("train")
    index = torch.arange(12)
    batch = windows.gather(index)
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient(parts: int) -> Tensor:
        total = torch.zeros(6, 6)
        for part in BatchPlan(12, parts=parts).micro_batches(windows, index, horizon=2):
            forecast = torch.einsum("bpchw,qp->bqchw", part.batch.history, weight)
            error = (forecast - part.batch.target).square()
            assert part.batch.target_mask is not None
            loss = (error * part.batch.target_mask).sum() / part.batch.target_mask.sum()
            total += torch.autograd.grad(loss * part.weight, weight)[0]
        return total

    near = (torch.einsum("bpchw,qp->bqchw", batch.history, weight) - batch.target)[:, :2].square().mean()
    (expected,) = torch.autograd.grad(near, weight)
    assert (expected[:2] != 0).all()
    assert (expected[2:] == 0).all()
    for parts in (1, 3):
        torch.testing.assert_close(gradient(parts), expected)
    assert up_to(batch, 6) is batch
    assert up_to(batch, None) is batch


def test_patience_waits_for_the_whole_horizon_and_a_trial_goes_on_exactly(make_trial: MakeTrial, directory: TrialDirectory) -> None:
    """Six steps enter over five epochs; a run that is interrupted in the middle ends as one that is not."""
    trial = make_trial(curriculum_epochs=1, max_epochs=20, patience=1, lr=1e-12, warmup_epochs=0)
    whole, torn = (TrialDirectory(directory.store, name) for name in ("whole", "torn"))
    assert run_trial(trial, {}, whole, test=False) is TrialStatus.FINISHED
    assert (whole.read("result.json") or {})["epochs"] >= 6
    asked = iter([False] * 17 + [True] + [False] * 1000)
    assert run_trial(trial, {}, torn, test=False, stop=lambda: next(asked)) is TrialStatus.STARTED
    assert run_trial(trial, {}, torn, test=False) is TrialStatus.FINISHED
    columns = ("epoch", "step", "loss", "val_rmse", "grad_norm")
    assert [[row[c] for c in columns] for row in torn.read_epochs()] == [[row[c] for c in columns] for row in whole.read_epochs()]
