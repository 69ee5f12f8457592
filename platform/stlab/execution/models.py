"""Models as a study asks for them, built on the driver before anything trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stlab.catalog import create_model
from stlab.errors import ModelError, StudyError
from stlab.study.spec import ResourcesSpec, TrialSpec
from stlab.training.trial import dataset_for

if TYPE_CHECKING:
    from stmodels.base import Forecaster


def build_model(spec: TrialSpec) -> Forecaster:
    """The model of a trial, as :func:`stlab.catalog.create_model` makes it.

    Raises:
        StudyError: it does not fit the data, or its weights cannot be had; names the variant.
    """
    try:
        return create_model(spec.model, dataset_for(spec.data).info)
    except ModelError as error:
        raise StudyError(f"variant '{spec.variant}': {error}") from error


@contextlib.contextmanager
def threads_of(resources: ResourcesSpec) -> Iterator[None]:
    """Compute with as many threads as a worker of a trial has; more would fight over the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(resources.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
