"""A study in MLflow: an experiment with a parent run, a child run for each trial and a summary run for each variant."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from stlab.errors import UserError
from stlab.files import shown
from stlab.storage import Store, TrialDirectory, best_trial
from stlab.tracking._call_timer import CallTimer
from stlab.tracking._connection import TrackingUnavailable, check_uri, connect, reaching
from stlab.tracking._experiment import NOTE, PARENT, find_or_create_experiment, runs_by_key
from stlab.tracking._models import keep_model
from stlab.tracking._rows import (
    DATASET,
    RUN_STATUS,
    Row,
    axes_of,
    by_label,
    description_of,
    final_metrics,
    label,
    milliseconds,
    summary_metrics,
    summary_tags,
    trial_name,
    trial_params,
    trial_tags,
)
from stlab.tracking._run import Run, files_below
from stlab.tracking._views import view_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

# After a call that failed in t seconds, no call is made for this many times t, so a dead server costs a tenth of the time.
_PATIENCE = 10.0
_LONGEST_PAUSE = 30.0  # seconds; a server that is back is noticed after this time

# Epochs of a trial are written at most this often, since a call costs about 3 ms for any number of epochs.
_SECONDS_BETWEEN_WRITES = 2.0

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _guarded(method: Callable[Concatenate[Tracker, _P], _T]) -> Callable[Concatenate[Tracker, _P], _T]:
    """Turn failures into TrackingUnavailable within seconds, and have the next call read MLflow's content anew."""

    @functools.wraps(method)
    def call(self: Tracker, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        begun = time.monotonic()
        if begun < self._closed_until:
            raise TrackingUnavailable(f"{self._last_failure} (not tried again for {self._closed_until - begun:.0f} s)")
        try:
            with reaching(self.uri):
                return method(self, *args, **kwargs)
        except TrackingUnavailable as error:
            now = time.monotonic()
            self._runs = None
            self._closed_until = now + min(_PATIENCE * (now - begun), _LONGEST_PAUSE)
            self._last_failure = str(error)
            raise

    return call


class Tracker:
    """Writes one study to MLflow. Every call may be repeated: existing content is neither duplicated nor changed.

    One process writes a study at a time. If MLflow cannot be reached, every method raises TrackingUnavailable within seconds. The caller
    goes on, and :func:`stlab.tracking.sync` brings MLflow up to date later.

    Args:
        uri: a database (``sqlite:///…``, ``postgresql://…``) or a server (``http(s)://…``).
        store: the store of the trial directories. If MLflow is a database, artifacts go to ``mlartifacts/`` in the store.
        study_name: name of the experiment.
        description: description of the experiment; by default the study's own.

    Raises:
        UserError: MLflow does not track to the URI.
    """

    def __init__(self, uri: str, store: Store, study_name: str, description: str = "") -> None:
        check_uri(uri)
        self.uri = uri
        self._store = store
        self._name = study_name
        self._description = description
        self._study_text: str | None = None
        self._axes: list[str] = []
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._rows: dict[str, Row] = {}
        self._pending: dict[str, dict[int, Row]] = {}  # trial id → epoch → row, not yet written
        self._written_at: dict[str, float] = {}
        self._runs: dict[tuple[str, str], Run] | None = None  # (kind, trial id or label) → run
        self._closed_until = 0.0
        self._last_failure = ""
        self._timer = CallTimer()

    @property
    def shown_uri(self) -> str:
        """The URI of MLflow, without a password."""
        return shown(self.uri)

    @property
    def waits_for(self) -> float:
        """Seconds since the current call to MLflow began; 0 if no call is under way."""
        return self._timer.seconds()

    @property
    def is_paused(self) -> bool:
        """Whether calls are refused for now, because the last one failed."""
        return time.monotonic() < self._closed_until

    def try_again(self) -> None:
        """End the pause after a failure, and read MLflow's content anew, since it may have carried out calls late."""
        self._closed_until = 0.0
        if self._last_failure:
            self._runs = None

    def open(self, study_text: str) -> None:
        """Create what is absent: the database, the experiment, the parent run.

        Args:
            study_text: the resolved study, as YAML.

        Raises:
            UserError: the experiment was deleted in MLflow, or the database's driver is not installed.
        """
        self._study_text = study_text
        self._axes = axes_of(study_text)
        self._description = self._description or description_of(study_text)
        self._open()

    def trial(self, row: Row) -> None:
        """Find or create the run of a trial.

        Args:
            row: the known part of the trial's row of ``trials.parquet``, with its current ``status``.
        """
        self._rows[str(row["trial_id"])] = row  # kept, so that a later call can log it if this one fails
        self._log_trial(row)

    def epochs(self, trial_id: str, rows: list[dict[str, Any]]) -> None:
        """Log metrics by epoch (rows of ``epochs.parquet``), with step = epoch. Epochs that the run has are not logged again.

        Rows of fast epochs, and rows that could not be written at once, are collected and written together, by ``finish`` or ``close``
        at the latest.

        Raises:
            KeyError: ``trial`` was never called with a row of this trial.
        """
        row = self._rows[trial_id]
        self._pending.setdefault(trial_id, {}).update((int(epoch["epoch"]), epoch) for epoch in rows)
        self._log_epochs(row, trial_id)

    @_guarded
    def _log_epochs(self, row: Row, trial_id: str) -> None:
        if time.monotonic() - self._written_at.get(trial_id, -math.inf) >= _SECONDS_BETWEEN_WRITES:
            self._write_epochs(self._trial(row), trial_id)

    @_guarded
    def finish(self, row: Row) -> None:
        """End a trial's run: log its results, files and status, and the epochs that were not logged before.

        Raises:
            ValueError: the row's status says that the trial has not ended.
        """
        status = str(row.get("status"))
        if status not in RUN_STATUS:
            raise ValueError(f"trial {row['trial_id']} is {status!r}: expected one of {', '.join(RUN_STATUS)}")
        directory = TrialDirectory(self._store, row["trial_id"])
        run = self._trial(row)
        written = {int(epoch["epoch"]): epoch for epoch in directory.read_epochs()}
        self._pending[row["trial_id"]] = self._pending.get(row["trial_id"], {}) | written
        self._write_epochs(run, row["trial_id"])
        run.log(metrics=final_metrics(row))
        names = [name for name in self._store.names(directory.prefix) if name.endswith((".parquet", ".json"))]
        run.log_files(self._store, directory.prefix, names)
        run.end(RUN_STATUS[status], row.get("wall_seconds"))

    @_guarded
    def summarise(self, rows: list[dict[str, Any]]) -> None:
        """Write a summary run for each variant and setting of the axes. Runs that the study no longer lists become superseded.

        Args:
            rows: all rows of the study, including failed ones.
        """
        groups = by_label(rows, self._axes)
        for name, group in groups.items():
            tags = summary_tags(name, group)
            run = self._find_or_create("summary", name, f"{name} · mean over seeds", tags)
            run.log(tags=tags, metrics=summary_metrics(group))
            run.end("FINISHED")
        listed = {("trial", row["trial_id"]) for row in rows} | {("summary", name) for name in groups}
        for key, run in self._opened().items():
            if key[0] in ("trial", "summary") and key not in listed:
                run.log(tags={"status": "superseded"})

    @_guarded
    def attach_best(self, rows: list[dict[str, Any]]) -> str | None:
        """Tag the study's best trial (by validation error) ``best = true``, and log its checkpoint as a model of its run.

        A study on several data sets has one on each. An existing model is not logged again. If the model cannot be made (because its data
        is gone, for example), the log and the parent's tag ``model`` say so, and everything else goes on.

        Args:
            rows: all rows of the study.

        Returns:
            The model's URI, ``models:/m-…``, that of the first data set of several; None if there is no best trial, or no model of it.
        """
        names = dict.fromkeys(str(row.get(DATASET)) for row in rows) if DATASET in self._axes else {"": None}
        bests = {name: best_trial(row for row in rows if not name or row.get(DATASET) == name) for name in names}
        chosen = {str(best["trial_id"]) for best in bests.values() if best is not None}
        for (kind, key), run in self._opened().items():
            if kind == "trial" and key not in chosen and run.tags.get("best") == "true":
                run.log(tags={"best": "false"})  # its model stays, since somebody may serve it
        uris = [self._attach_model(best, f".{name}" if name else "") for name, best in bests.items() if best is not None]
        return uris[0] if uris else None

    def _attach_model(self, best: Row, suffix: str) -> str | None:
        """Tag a best trial and log its model. The parent's tags end in ``suffix``."""
        chosen = str(best["trial_id"])
        run = self._trial(best)
        run.log(tags={"best": "true"})
        summary = {f"best_trial{suffix}": chosen, f"best_variant{suffix}": label(best, self._axes)}
        tags = {"study": self._name, "variant": str(best.get("variant")), "label": label(best, self._axes)}
        try:
            uri = keep_model(self._mlflow(), self._experiment_id, run.id, self._store, chosen, tags)
        except UserError as error:
            _log.warning("the best trial's model is not in MLflow: %s", error)
            self._parent().log(tags={**summary, f"model{suffix}": f"none: {error}"[:5000]})
            return None
        self._parent().log(tags={**summary, f"model{suffix}": uri})
        return uri

    @_guarded
    def attach_report(self, path: str | Path) -> None:
        """Log the report's files as artifacts ``report/…`` of the parent run.

        Args:
            path: the report's folder, on this machine or in the store.
        """
        parent = self._parent()
        if self._store.is_local and Path(path).is_absolute():
            self._mlflow().log_artifacts(parent.id, str(path), "report")
            return
        folder = str(path).removeprefix(self._store.path(""))
        for below, names in files_below(self._store, folder):
            parent.log_files(self._store, f"{folder}/{below}".rstrip("/"), names, f"report/{below}".rstrip("/"))

    @_guarded
    def close(self, status: str) -> None:
        """End the study's run as ``finished``, ``failed`` or ``interrupted``, and the runs of trials that have not ended.

        Raises:
            ValueError: the status is none of these.
        """
        if status not in RUN_STATUS:
            raise ValueError(f"status {status!r}: expected one of {sorted(RUN_STATUS)}")
        for (kind, key), run in self._opened().items():
            if kind == "trial":
                self._write_epochs(run, key)
            if kind == "trial" and run.status == "RUNNING":
                run.log(tags={"status": "interrupted"})
                run.end("KILLED")
        self._parent().log(tags={"status": status})
        self._parent().end(RUN_STATUS[status])

    @_guarded
    def _open(self) -> None:
        parent = self._parent()
        experiment = self._mlflow().get_experiment(self._experiment_id)
        for key, value in view_tags(self._axes).items():
            if experiment.tags.get(key) != value:
                self._mlflow().set_experiment_tag(self._experiment_id, key, value)
        parent.reopen()
        parent.log(tags={"status": "running", **({NOTE: self._description} if self._description else {})})
        self._mlflow().log_text(parent.id, self._study_text or "", "study.yaml")

    @_guarded
    def _log_trial(self, row: Row) -> None:
        run = self._trial(row)
        if str(row.get("status")) not in RUN_STATUS:
            run.reopen()

    def _write_epochs(self, run: Run, trial_id: str) -> None:
        """Write the pending epochs; if this fails, they stay pending."""
        if pending := self._pending.get(trial_id):
            run.log_epochs(list(pending.values()))
            del self._pending[trial_id]
            self._written_at[trial_id] = time.monotonic()

    def _mlflow(self) -> MlflowClient:
        if self._client is None:
            with self._timer.calling():
                client = connect(self.uri)
            self._client = self._timer.timed(client)
        return self._client

    def _opened(self) -> dict[tuple[str, str], Run]:
        """The experiment's runs by kind and key, requested once and again after a failure."""
        if self._study_text is None:
            raise RuntimeError("call open(study_text) first")
        if self._runs is None:
            client = self._mlflow()
            self._experiment_id = find_or_create_experiment(client, self.uri, self._store, self._name, self._description)
            self._runs = runs_by_key(client, self._experiment_id)
        return self._runs

    def _parent(self) -> Run:
        return self._find_or_create("study", self._name, self._name, {"study": self._name})

    def _trial(self, row: Row) -> Run:
        tags = trial_tags(row, self._axes)
        name = trial_name(row, self._axes)
        run = self._find_or_create("trial", tags["trial_id"], name, tags, milliseconds(row.get("started_at")))
        run.log(tags=tags, params=trial_params(row))
        return run

    def _find_or_create(
        self, kind: str, key: str, name: str, tags: dict[str, str], start_time: int | None = None
    ) -> Run:
        runs = self._opened()
        if (kind, key) not in runs:
            tags = tags | {"kind": kind}
            if kind != "study":
                tags[PARENT] = self._parent().id
            client = self._mlflow()
            created = client.create_run(self._experiment_id, start_time=start_time, tags=tags, run_name=name)
            runs[kind, key] = Run(client, created, is_new=True)
        return runs[kind, key]
