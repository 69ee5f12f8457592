"""Bring MLflow up to date from the directories alone."""

from __future__ import annotations

import logging
from typing import Any

from stlab.storage import Store, StudyDirectory, TrialDirectory
from stlab.tracking._rows import RUN_STATUS
from stlab.tracking._tracker import Tracker

_log = logging.getLogger(__name__)


def sync(store: Store, study_name: str, uri: str) -> int:
    """Bring MLflow up to date from the directories of a study and its trials. Repeated calls log nothing twice.

    Returns:
        The number of trials that MLflow now shows as their directories do.

    Raises:
        UserError: the store has no such study, or MLflow does not track to the URI.
        TrackingUnavailable: MLflow cannot be reached.
    """
    study = StudyDirectory(store, study_name)
    rows = [_current(store, row) for row in study.read_trials().to_pylist()]
    tracker = Tracker(uri, store, study_name)
    tracker.open(study.read_study() or "")
    shown = [row for row in rows if row["status"] != "missing"]
    for row in shown:
        if row["status"] in RUN_STATUS:
            tracker.finish(row)
        else:
            tracker.trial(row)
            tracker.epochs(row["trial_id"], TrialDirectory(store, row["trial_id"]).read_epochs())
    tracker.summarise(rows)
    if store.exists(study.report_path()):
        tracker.attach_report(f"{study.prefix}/report")
    tracker.attach_best(rows)
    ended = all(row["status"] in RUN_STATUS for row in rows)
    tracker.close("finished" if ended else "interrupted")
    _log.info("MLflow shows %d trials of %s", len(shown), study_name)
    return len(shown)


def _current(store: Store, listed: dict[str, Any]) -> dict[str, Any]:
    """A row with the current content of its trial's directory; study and variant stay as the study lists them."""
    directory = TrialDirectory(store, listed["trial_id"]).row()
    if directory["status"] == "new":
        return listed
    return listed | {key: value for key, value in directory.items() if value is not None}
