"""Saved views of an experiment's page; without them it shows one folded row and no metric.

The page keeps a view in a tag of the experiment, as JSON. The format is that of "Save as new view" in MLflow 3.17. A version
of MLflow that does not know such tags shows its default page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from stlab.errors import UserError
from stlab.files import shown
from stlab.tracking._connection import connect, is_database, reaching
from stlab.tracking._rows import DATASET

_PREFIX = "mlflow.sharedViewState."

_TRIAL_METRICS = (
    "test_rmse", "test_mae", "val_rmse", "best_epoch", "epochs", "wall_seconds", "trainable_params",
)
_SUMMARY_METRICS = (
    "test_rmse", "test_rmse_ci95", "test_mae", "test_mae_ci95", "test_rmse_n", "failed", "test_rmse_sd", "val_rmse",
)
_SHARED_TAGS = ("weights", "synthetic", "leaks")


def view_tags(axes: Iterable[str] = ()) -> dict[str, str]:
    """Tags of the experiment for the views "Variants" and "Trials", with the best test RMSE first and a column for each axis.

    A study on several data sets has a column for them, by which "Variants" and "Trials" are sorted, since errors on two are not compared.
    Its view "Data sets" is sorted by variant, so that one model's data sets stand together.
    """
    axes = list(axes)
    several = DATASET in axes
    params = [_column("params", axis) for axis in axes if axis != DATASET]
    where = [_column("tags", DATASET)] if several else []
    trials = [_column("tags", name) for name in ("variant", "seed", "status", "best")]
    shared = [_column("tags", name) for name in _SHARED_TAGS]
    order = where[0] if where else _column("metrics", "test_rmse")
    summary = [*_metrics(_SUMMARY_METRICS), *shared]
    views = {
        f"{_PREFIX}variants": _view("Variants", "summary", [*where, *summary], order),
        f"{_PREFIX}trials": _view("Trials", "trial", [*where, *trials, *params, *_metrics(_TRIAL_METRICS), *shared], order),
    }
    if several:
        variant = _column("tags", "variant")
        views[f"{_PREFIX}datasets"] = _view("Data sets", "summary", [variant, *where, *summary], variant)
    return views


def study_url(uri: str, study_name: str, server: str = "http://127.0.0.1:5000") -> str:
    """Address of the page that compares a study's variants.

    Args:
        server: the address at which ``ui_command`` serves a database; a tracking server serves its own pages.

    Raises:
        UserError: MLflow has no such study.
        TrackingUnavailable: MLflow cannot be reached.
    """
    with reaching(uri):
        experiment = connect(uri).get_experiment_by_name(study_name)
    if experiment is None:
        raise UserError(f"MLflow has no study '{study_name}' yet. Log it with: stlab sync {study_name}")
    base = server if is_database(uri) else shown(uri)
    return f"{base.rstrip('/')}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=variants"


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _metrics(names: Iterable[str]) -> list[str]:
    return [_column("metrics", name) for name in names]


def _view(name: str, kind: str, columns: list[str], order: str) -> str:
    state = {
        "searchFilter": f"tags.kind = '{kind}' and tags.status != 'superseded'",
        "orderByKey": order,
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
