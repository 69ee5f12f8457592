"""MLflow as an observer: a thread of its own writes the events; training never waits for it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from stlab.execution.collect import trial_row
from stlab.execution.events import Ended, Epochs, Event, Planned, SearchEvent, Started
from stlab.execution.run_study import Outcome
from stlab.storage import Store, StudyDirectory
from stlab.study.file import dump_study
from stlab.study.plan import Plan, PlannedTrial
from stlab.tracking import Tracker, TrackingUnavailable

logger = logging.getLogger(__name__)

_EPOCHS_AT_ONCE_SECONDS = 2.0  # epochs of fast trials are written together

# At its end a study waits for MLflow as long as MLflow gets on: at most so long for one answer, and at most so long in all.
_ANSWER_SECONDS = 60.0
_END_SECONDS = 1800.0

_Task = Callable[[], None]

_STUDY, _EMITTED, _EPOCHS, _END = "study", "emitted", "epochs", "end"  # the subjects of tasks that are not about one trial


class TrackingObserver:
    """Passes a study on to MLflow, in order, from a thread of its own."""

    def __init__(self, uri: str, store: Store, study_name: str) -> None:
        self.uri = uri
        self.store = store
        self.study_name = study_name
        self.failure: str | None = None
        """Why MLflow is behind, where it is; ``stlab sync`` makes up for it."""
        self._tracker = Tracker(uri, store, study_name)
        self._trials: dict[str, PlannedTrial] = {}
        self._epochs: dict[str, list[dict[str, Any]]] = {}
        self._written: dict[str, dict[str, Any]] = {}  # trial id → its final row, as MLflow has it
        self._work: queue.Queue[tuple[str, _Task] | None] = queue.Queue()
        self._missed: dict[str, _Task] = {}  # by subject (a trial's id, or the study): the last task that could not be written
        self._thread = threading.Thread(target=self._write, name="stlab-tracking", daemon=True)

    def begin(self, plan: Plan, todo: Sequence[PlannedTrial], concurrency: int) -> None:
        self._trials = {trial.trial_id: trial for trial in plan.unique()}
        self._thread.start()
        self._work.put((_STUDY, lambda: self._tracker.open(dump_study(plan.study))))

    def event(self, event: Event) -> None:
        if isinstance(event, Planned):  # a search's trials are known as they begin
            self._trials[event.trial.trial_id] = event.trial
        if isinstance(event, SearchEvent):
            return
        trial = self._trials.get(event.trial_id)
        if trial is None:
            return
        if isinstance(event, Started):
            self._put(trial, lambda: self._tracker.trial({**trial_row(trial, self.store), "status": "running"}))
        elif isinstance(event, Epochs):
            self._work.put((_EMITTED, lambda: self._epochs.setdefault(trial.trial_id, []).extend(map(dict, event.rows))))
        elif isinstance(event, Ended):
            self._put(trial, lambda: self._finish(trial_row(trial, self.store)))

    def _put(self, trial: PlannedTrial, task: _Task) -> None:
        self._work.put((trial.trial_id, task))

    def end(self, outcome: Outcome) -> None:
        """Bring everything up to date, trials of earlier runs too, and wait for it."""

        def finish() -> None:
            self._tracker.try_again()
            if _STUDY in self._missed:
                self._missed[_STUDY]()
            rows = {row["trial_id"]: row for row in outcome.rows}
            for row in rows.values():
                if row["status"] != "missing" and self._written.get(row["trial_id"]) != row:
                    self._finish(row)
            self._tracker.summarise(outcome.rows)
            self._tracker.attach_report(StudyDirectory(self.store, self.study_name).report_path("").rstrip("/"))
            self._tracker.attach_best(outcome.rows)
            self._tracker.close("failed" if outcome.ended_as("failed", "missing") else "finished")
            self._missed.clear()
            self.failure = None  # all of it is there now, whatever was missed on the way

        self._stop_after(finish)

    def interrupt(self) -> None:
        """The study was stopped: mark it as interrupted, and wait until that is written."""
        if self._thread.is_alive():
            self._stop_after(lambda: self._tracker.close("interrupted"))

    def _stop_after(self, last: _Task) -> None:
        """Write the epochs that wait, then ``last``, then nothing more. Give up where MLflow hangs."""
        self._work.put((_EPOCHS, self._flush_epochs))
        self._work.put((_END, last))
        self._work.put(None)
        until = time.monotonic() + _END_SECONDS
        while self._thread.is_alive():
            self._thread.join(timeout=0.1)
            if self._tracker.waits_for > _ANSWER_SECONDS or time.monotonic() > until:
                self.failure = (
                    f"MLflow at {self._tracker.shown_uri} has not answered for {self._tracker.waits_for:.0f} s, "
                    f"and was not waited for any longer."
                )
                return

    def _finish(self, row: dict[str, Any]) -> None:
        self._tracker.trial(row)  # its tags say how it stands, and were written while it was running
        self._tracker.finish(row)
        self._written[row["trial_id"]] = row

    def _write(self) -> None:
        flushed = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._work.get(timeout=_EPOCHS_AT_ONCE_SECONDS)
                if item is None:
                    return
                self._try(*item)
            if time.monotonic() - flushed >= _EPOCHS_AT_ONCE_SECONDS:
                self._make_up()
                self._try(_EPOCHS, self._flush_epochs)
                flushed = time.monotonic()

    def _make_up(self) -> None:
        """Write what was missed, as soon as MLflow is back."""
        missed = list(self._missed.items())
        for about, task in missed:
            if self._tracker.is_paused or not self._try(about, task):
                return
        if missed:
            logger.info("MLflow is back, and has what it missed")
            self.failure = None

    def _flush_epochs(self) -> None:
        """Pass on the epochs that ended since the last time; the tracker keeps those that it cannot write."""
        waiting, self._epochs = self._epochs, {}
        failure = None
        for trial_id, rows in waiting.items():
            try:
                self._tracker.epochs(trial_id, rows)
            except TrackingUnavailable as error:
                self._epochs[trial_id] = []  # tried again, though no further epoch may come
                failure = error
        if failure is not None:
            raise failure

    def _try(self, about: str, task: _Task) -> bool:
        """Whether a task was written. A task that MLflow did not answer is kept for later."""
        try:
            task()
        except TrackingUnavailable as error:
            if self.failure is None:
                logger.warning("MLflow does not answer, training goes on: %s", error)
            self.failure = str(error)
            if about != _END:
                self._missed[about] = self._flush_epochs if about == _EPOCHS else task
            return False
        except Exception as error:  # whatever is wrong with MLflow, the study goes on; the error is logged here and shown at the end
            logger.exception("MLflow could not be written, training goes on")
            self.failure = f"{type(error).__name__}: {error}"
        self._missed.pop(about, None)
        return True
