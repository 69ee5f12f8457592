"""The runs of a study's experiment, each once."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from stlab.tracking._run import Run

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"

_KEYS = {"study": "study", "trial": "trial_id", "summary": "label"}  # kind of run → the tag it is found again by


def runs_by_key(client: MlflowClient, experiment_id: str) -> dict[tuple[str, str], Run]:
    """Kind and key (trial id, label) → run.

    A server that hangs does what it was asked to all the same, later, when it has been asked again. Of runs that came to be twice so
    the fullest is kept and the others are deleted.
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
                _log.info("run %s of MLflow is there twice, as %s: deleted", run.info.run_id, fullest.info.run_id)
                client.delete_run(run.info.run_id)
        runs[key] = Run(client, fullest)
    _hang_from_the_parent(runs)
    return runs


def _hang_from_the_parent(runs: dict[tuple[str, str], Run]) -> None:
    parents = [run.id for (kind, _), run in runs.items() if kind == "study"]
    for (kind, _), run in runs.items():
        if parents and kind in ("trial", "summary"):
            run.log(tags={PARENT: parents[0]})
