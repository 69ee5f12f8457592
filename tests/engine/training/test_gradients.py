"""Gradient norms of the loss terms: right, and measured without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stlab.storage import Store, TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial, step
from stlab.training.loss import term_gradients, term_norms


def test_the_norms_are_those_of_each_term_alone() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(7, 3)), draw.normal(size=7)
    weight = nn.Parameter(torch.from_numpy(draw.normal(size=3)))
    unused = nn.Parameter(torch.ones(2))
    out = torch.from_numpy(x) @ weight
    terms = {"fit": (out - torch.from_numpy(y)).square().mean(), "size": weight.square().sum(), "none": torch.tensor(1.0)}
    found = term_norms(term_gradients(terms, [weight, unused], weight=1.0))
    w = weight.detach().numpy()
    assert found["grad_norm.fit"].item() == pytest.approx(np.linalg.norm(2 / 7 * x.T @ (x @ w - y)), rel=1e-6)
    assert found["grad_norm.size"].item() == pytest.approx(np.linalg.norm(2 * w), rel=1e-6)
    assert found["grad_norm.none"].item() == 0
    assert weight.grad is None
    (terms["fit"] + terms["size"]).backward()  # the graph is still whole


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_measuring_them_changes_no_digit_of_the_training(
    make_trial: Callable[..., TrialSpec], tmp_path: object, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    trial = make_trial(model={"dropout": dropout}, max_epochs=2)
    runs = {}
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr(step, "term_norms", lambda *_: {})
        directory = TrialDirectory(Store(f"{tmp_path}/{measured}"), "a")
        assert run_trial(trial, {}, directory, test=True) is TrialStatus.FINISHED
        runs[measured] = directory
    for with_norms, without in zip(runs[True].read_epochs(), runs[False].read_epochs(), strict=True):
        assert {"grad_norm.forecast", "grad_norm.flow"} <= with_norms.keys() - without.keys()
        assert all(with_norms[name] > 0 for name in ("grad_norm.forecast", "grad_norm.flow"))
        same = without.keys() - {"seconds", "samples_per_second"}
        assert {name: with_norms[name] for name in same} == {name: without[name] for name in same}
    assert (runs[True].read_predictions() or 0) == runs[False].read_predictions()
