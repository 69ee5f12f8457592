"""Models as a study asks for them, before anything trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlab.catalog import create_model
from stlab.errors import ModelError, StudyError
from stlab.training.trial import dataset_for

if TYPE_CHECKING:
    from stlab.study.spec import TrialSpec
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
