"""What `stlab status` says of a trial that has not ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stlab.inspection.status import trial_state
from stlab.storage import TrialDirectory, TrialStatus
from stlab.study.spec import TrialSpec
from stlab.training import run_trial


@pytest.mark.parametrize(("steps", "epochs"), [(3, 0), (6, 1), (14, 2)])
def test_a_trial_that_is_under_way_has_the_epochs_of_its_checkpoint(
    make_trial: Callable[..., TrialSpec], directory: TrialDirectory, steps: int, epochs: int
) -> None:
    """Some five steps an epoch. The table of the epochs is written at the end alone."""
    asked = iter([False] * steps + [True])
    assert run_trial(make_trial(), {}, directory, test=False, stop=lambda: next(asked)) is TrialStatus.STARTED
    listed = {"trial_id": directory.trial_id, "label": "full, seed 0", "max_epochs": 4}
    state = trial_state(directory.store, listed)
    assert (state.state, state.epoch, state.max_epochs) == ("running", epochs, 4)
