"""Two hundred trials through the real scheduler, MLflow on, beside fifty: all of them there once, and little memory for each.

``tests/benchmarks/bench_load.py`` runs two thousand of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.load import Load, run, write_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FEW, MANY = 50, 200


@pytest.fixture(scope="module")
def loads(stlab_on_cluster: Any) -> dict[int, Load]:
    """Slow: 250 trials, some 0.3 s each, and two reports."""
    write_data(stlab_on_cluster.folder)
    return {trials: run(stlab_on_cluster, trials) for trials in (FEW, MANY)}


@pytest.mark.parametrize("trials", [FEW, MANY])
def test_every_trial_ran_once_and_mlflow_has_it_once(loads: dict[int, Load], trials: int) -> None:
    loads[trials].assert_whole()


def test_a_trial_costs_the_driver_little_memory(loads: dict[int, Load]) -> None:
    growth = (loads[MANY].peak_bytes - loads[FEW].peak_bytes) / (MANY - FEW)
    assert growth < 300e3, f"{growth / 1e3:.0f} kB a trial"
