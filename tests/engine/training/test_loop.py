"""The loop against its own equations: schedule, AdamW with clipping, data order, early stopping, losses that break."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stlab.data import load_dataset
from stlab.storage import Store, TrialDirectory
from stlab.study.spec import DataSpec, TrainSpec
from stlab.training import interruption, loop, step_log
from stlab.training.batches import BatchPlan
from stlab.training.checkpoint import Checkpoints, Progress
from stlab.training.loop import Loop
from stlab.training.schedule import learning_rate
from stlab.training.setup import TrainingSetup
from stlab.training.step_log import NonFiniteLoss
from stmodels.base import Forecaster
from stmodels.rng import permutation
from stmodels.types import Batch, Forecast


class Linear(Forecaster):
    """Every reading ahead is one linear map of the same cell's history: (P → Q), no bias; and a loss that can break."""

    def __init__(self, break_at: int | None = None) -> None:
        super().__init__()
        weight = np.random.default_rng(3).normal(0, 0.3, (6, 6)).astype(np.float32)
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.break_at = break_at
        self.steps = 0

    def forward(self, batch: Batch) -> Forecast:
        return Forecast(torch.einsum("bpchw,qp->bqchw", batch.history, self.weight))

    def loss_terms(self, forecast: Forecast, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        wrong = math.nan if self.steps == self.break_at else 1.0
        return {
            "forecast": wrong * (forecast.value - batch.target).square().mean(),
            "flow": forecast.value.square().mean(),
        }


@pytest.fixture
def make_loop(small_grid: Path, directory: TrialDirectory) -> Callable[..., Loop]:
    def make(
        model: nn.Module | None = None, seed: int = 5, report: Any = lambda event: None, loss_weights: Any = None, **train: Any
    ) -> Loop:
        spec = TrainSpec(**{"max_epochs": 3, "warmup_epochs": 1, "batch_size": 40, **train})
        dataset = load_dataset(DataSpec(path=str(small_grid)))
        plan = BatchPlan.of(spec, dataset)
        setup = TrainingSetup(model or Linear(), dataset, spec, seed, torch.device("cpu"), plan, loss_weights or {})  # type: ignore[arg-type]
        return Loop(setup, Checkpoints(directory), report=report)

    return make


@pytest.mark.parametrize(
    ("warmup", "epochs", "lr", "floor"), [(2, 8, 1e-3, 1e-5), (0, 5, 1e-2, 0.0), (5, 3, 1e-3, 1e-5), (1, 4, 1e-6, 1e-5)]
)
def test_learning_rate_is_a_line_and_then_a_cosine(warmup: int, epochs: int, lr: float, floor: float) -> None:
    per = 7
    train = TrainSpec(lr=lr, min_lr=floor, warmup_epochs=warmup, max_epochs=epochs)
    found = [learning_rate(step, per, train) for step in range(per * epochs)]
    low = min(floor, lr)
    for step, value in enumerate(found):
        if step < warmup * per:
            expected = lr * (step + 1) / (warmup * per)
        else:
            expected = low + 0.5 * (lr - low) * (
                1 + math.cos(math.pi * (step - warmup * per) / ((epochs - warmup) * per))
            )
        assert value == pytest.approx(expected, rel=1e-12)
    if warmup < epochs:
        assert max(found) == pytest.approx(lr)
        assert learning_rate(per * epochs, per, train) == pytest.approx(low)


def adamw_reference(
    path: Path, train: TrainSpec, seed: int, flow_weight: float
) -> tuple[np.ndarray, list[float], list[float], list[float]]:
    """Weights, losses, gradient norms and validation RMSE by epoch, in float64 from the equations."""
    data = np.load(path)["data"].astype(np.float64)
    low, high = data[:168].min(), data[:168].max()
    scaled = (data - low) / (high - low) * 2 - 1
    weight = np.random.default_rng(3).normal(0, 0.3, (6, 6)).astype(np.float32).astype(np.float64)
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    step, count = 0, 168 - 11
    losses, norms, errors = [], [], []
    for epoch in range(1, train.max_epochs + 1):
        order = permutation(count, seed, epoch).numpy()
        seen: list[tuple[float, float]] = []
        for start in range(0, count, train.batch_size):
            rows = order[start : start + train.batch_size]
            x = np.stack([scaled[r : r + 6] for r in rows])
            y = np.stack([scaled[r + 6 : r + 12] for r in rows])
            out = np.einsum("bpchw,qp->bqchw", x, weight)
            loss = ((out - y) ** 2).mean() + flow_weight * (out**2).mean()
            back = 2 * (out - y) / out.size + flow_weight * 2 * out / out.size
            gradient = np.einsum("bqchw,bpchw->qp", back, x)
            norm = np.sqrt((gradient**2).sum())
            gradient = gradient * min(1.0, train.clip_norm / (norm + 1e-6))
            rate = learning_rate(step, math.ceil(count / train.batch_size), train)
            step += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            weight = weight * (1 - rate * train.weight_decay)
            weight = weight - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            seen.append((loss, norm))
        losses.append(float(np.mean([s[0] for s in seen])))
        norms.append(float(np.mean([s[1] for s in seen])))
        starts = range(168, 204 - 11)
        ahead = np.stack([np.einsum("pchw,qp->qchw", scaled[s : s + 6], weight) for s in starts])
        unit = np.maximum((ahead + 1) / 2 * (high - low) + low, 0)
        errors.append(float(np.sqrt(np.mean((unit - np.stack([data[s + 6 : s + 12] for s in starts])) ** 2))))
    return weight, losses, norms, errors


@pytest.mark.parametrize("clip_norm", [0.01, 1e3], ids=["clipped", "free"])
def test_training_follows_the_equations(make_loop: Callable[..., Loop], small_grid: Path, clip_norm: float) -> None:
    model = Linear()
    training = make_loop(model, lr=2e-2, weight_decay=0.1, clip_norm=clip_norm, loss_weights={"flow": 0.3})
    training.run()
    weight, losses, norms, errors = adamw_reference(small_grid, training.train, seed=5, flow_weight=0.3)
    rows = training.progress.rows
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in rows], norms, rtol=1e-4)
    assert [row["clipped"] for row in rows] == [float(clip_norm < 1)] * len(rows)
    np.testing.assert_allclose([row["val_rmse"] for row in rows], errors, rtol=1e-5)
    np.testing.assert_allclose(
        [row["loss.forecast"] + 0.3 * row["loss.flow"] for row in rows], [row["loss"] for row in rows], rtol=1e-6
    )
    assert [row["step"] for row in rows] == [4, 8, 12]


def test_data_order_follows_from_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    one = permutation(1000, seed=4, epoch=7)
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(one, permutation(1000, seed=4, epoch=7))
    assert torch.equal(one.sort().values, torch.arange(1000))
    assert not torch.equal(one, permutation(1000, seed=4, epoch=8))
    assert not torch.equal(one, permutation(1000, seed=5, epoch=7))


def test_every_window_is_seen_once_an_epoch_in_that_order(
    make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_loop(max_epochs=2)
    seen: list[Tensor] = []
    gather = training.windows.gather
    monkeypatch.setattr(training.windows, "gather", lambda index: (seen.append(index), gather(index))[1])
    training.run()
    assert [len(index) for index in seen] == [40, 40, 40, 37] * 2
    assert torch.equal(torch.cat(seen), torch.cat([permutation(157, 5, 1), permutation(157, 5, 2)]))


@pytest.mark.parametrize(("break_at", "every"), [(1, 50), (3, 50), (7, 50), (6, 2), (7, 2)])
def test_a_loss_that_breaks_names_step_and_learning_rate(
    make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, break_at: int, every: int
) -> None:
    monkeypatch.setattr(step_log, "CHECK_EVERY", every)
    training = make_loop(Linear(break_at))
    expected = learning_rate(break_at - 1, 4, training.train)
    with pytest.raises(NonFiniteLoss, match=rf"the loss is nan at step {break_at}, learning rate {expected:.3g}$"):
        training.run()


def test_weights_that_break_in_the_last_step_fail_too(make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step is taken before the step; only the validation shows what its last update did."""
    model = Linear()
    training = make_loop(model, max_epochs=1)
    step = training.optimiser.step

    def broken_step() -> None:
        step()
        if model.steps == 4:
            model.weight.data.fill_(math.nan)

    monkeypatch.setattr(training.optimiser, "step", broken_step)
    with pytest.raises(NonFiniteLoss, match=r"validation RMSE is nan .*step 4, learning rate"):
        training.run()


def scripted(monkeypatch: pytest.MonkeyPatch, model: nn.Module, rmse: list[float]) -> list[dict[str, Tensor]]:
    """Validation answers from a list; returns the weights that were measured, one set an epoch."""
    measured: list[dict[str, Tensor]] = []

    def evaluate(*_: Any) -> Mapping[str, Any]:
        measured.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"mae": 1.0, "rmse": rmse[len(measured) - 1]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return measured


@pytest.mark.parametrize(
    ("rmse", "patience", "epochs", "best"),
    [
        ([5, 4, 3, 3.5, 3.2, 3.0, 1, 1], 3, 6, 3),  # equal is not better; the 1 is never reached
        ([5, 4, 3, 2, 1, 0.5, 0.4, 0.3], 3, 8, 8),
        ([1, 2, 3, 4, 5, 6, 7, 8], 1, 2, 1),
        ([3, 4, 4, 2, 4, 4, 4, 1], 3, 7, 4),
    ],
)
def test_stops_early_and_keeps_the_weights_of_least_validation_rmse(
    make_loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, rmse: list[float], patience: int, epochs: int, best: int
) -> None:
    model = Linear()
    measured = scripted(monkeypatch, model, rmse)
    events: list[Mapping[str, Any]] = []
    training = make_loop(model, report=events.append, max_epochs=8, patience=patience)
    weights = training.run()
    assert (training.progress.epoch, training.progress.best_epoch) == (epochs, best)
    assert torch.equal(weights["weight"], measured[best - 1]["weight"])
    assert [row["epoch"] for event in events for row in event["rows"]] == list(range(1, epochs + 1))


@pytest.mark.parametrize(("seconds", "written"), [(0.0, [1, 2, 3, 4]), (25.0, [3, 4]), (1e9, [4])])
def test_checkpoints_are_written_by_the_clock_and_at_the_end(
    make_loop: Callable[..., Loop],
    monkeypatch: pytest.MonkeyPatch,
    directory: TrialDirectory,
    seconds: float,
    written: list[int],
) -> None:
    """Ten seconds pass in each validation, none in the steps."""
    measure, passed = loop.evaluate, [0.0]

    def evaluate(*arguments: Any) -> Any:
        passed[0] += 10.0
        return measure(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr(interruption.time, "monotonic", lambda: passed[0])
    saved: list[int] = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, *a: (saved.append(a[3].epoch), save(self, *a))[1])
    make_loop(max_epochs=4, checkpoint_seconds=seconds).run()
    assert saved == written
    kept = [name for name in directory.store.names(f"{directory.prefix}/checkpoint") if name.isdigit()]
    assert kept == [f"{epoch:06d}" for epoch in written[-2:]]


def test_a_checkpoint_of_another_model_leaves_no_trace(
    make_loop: Callable[..., Loop], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is passed over as a whole: not half of its weights stay in the model."""

    class Two(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.full((2,), float(width)))
            self.second = nn.Parameter(torch.zeros(width))

    checkpoints = Checkpoints(TrialDirectory(Store(tmp_path / "other"), "x"))
    other, model = Two(3), Two(4)
    checkpoints.save(other, torch.optim.AdamW(other.parameters()), {}, Progress(epoch=1))
    assert checkpoints.restore(model, torch.optim.AdamW(model.parameters())) is None
    assert "cannot be used" in caplog.text
    assert torch.equal(model.first, torch.full((2,), 4.0))
