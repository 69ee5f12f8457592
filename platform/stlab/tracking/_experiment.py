"""A study's experiment in MLflow, and its runs."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import UserError
from stlab.storage import Store
from stlab.tracking._connection import is_database
from stlab.tracking._run import Run

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

NOTE = "mlflow.note.content"  # MLflow's page shows this tag as the description
_KIND = "mlflow.experimentKind"  # without this tag the page asks whether these are language model traces
PARENT = "mlflow.parentRunId"

_KEYS = {"study": "study", "trial": "trial_id", "summary": "label"}  # kind of run → the tag that identifies it


def find_or_create_experiment(client: MlflowClient, uri: str, store: Store, name: str, description: str) -> str:
    """The id of the study's experiment. If MLflow is a database, its artifacts go to ``mlartifacts/<name>`` in the store.

    Raises:
        UserError: it was deleted in MLflow.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None  # a server chooses the location
        if is_database(uri):
            folder = f"mlartifacts/{name}"
            location = Path(store.path(folder)).as_uri() if store.is_local else f"{store.location.partition('?')[0]}/{folder}"
        tags = {_KIND: "custom_model_development"} | ({NOTE: description} if description else {})
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the experiment '{name}' was deleted in MLflow. Restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or give the study another name."
        )
    return str(found.experiment_id)


def runs_by_key(client: MlflowClient, experiment_id: str) -> dict[tuple[str, str], Run]:
    """Kind and key (trial id, label) → run.

    A server that hangs may carry out a request after it was sent again, so a run can exist twice. The run with the most content is kept,
    and the others are deleted.
    """
    found: dict[tuple[str, str], list[MlflowRun]] = {}
    children: Counter[str] = Counter()
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=500, page_token=token)
        for run in page:
            kind = run.data.tags.get("kind", "")
            found.setdefault((kind, run.data.tags.get(_KEYS.get(kind, ""), "")), []).append(run)
            children[run.data.tags.get(PARENT, "")] += 1
        token = page.token
        if not token:
            break
    runs = {}
    for key, same in found.items():
        fullest = max(same, key=lambda run: (children[run.info.run_id], len(run.data.metrics), len(run.data.tags), run.info.run_id))
        for run in same:
            if key[0] in _KEYS and run is not fullest:
                _log.info("run %s of MLflow duplicates %s and was deleted", run.info.run_id, fullest.info.run_id)
                client.delete_run(run.info.run_id)
        runs[key] = Run(client, fullest)
    _set_parent(runs)
    return runs


def _set_parent(runs: dict[tuple[str, str], Run]) -> None:
    parents = [run.id for (kind, _), run in runs.items() if kind == "study"]
    for (kind, _), run in runs.items():
        if parents and kind in ("trial", "summary"):
            run.log(tags={PARENT: parents[0]})
