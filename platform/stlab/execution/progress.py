"""The progress of a study on the terminal: trials done of all, the epochs of those that run, the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stlab.execution.events import Ended, Epochs, Event, Note, Planned, Resumed, SearchEvent
from stlab.execution.run_study import Outcome
from stlab.execution.time_left import TimeLeft
from stlab.study.plan import Plan, PlannedTrial
from stlab.study.spec import SearchSpec

# rich would take a string for markup: names and errors have brackets of their own, and a `[/…` in them would end the run. Everything
# that is printed here with other people's words in it is therefore a Text.
_FINISHED = ("✓", "green")
_TIME_TOLD_SECONDS = 1.0  # a study of thousands of short trials has a line for each, and the estimate looks at all of them


@dataclass
class _Running:
    trial: PlannedTrial
    epoch: int = 0
    val_rmse: float | None = None
    best_rmse: float | None = None


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3:05 min``, ``2:10 h``."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return (
        f"{seconds // 60}:{seconds % 60:02d} min"
        if seconds < 3600
        else f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
    )


class TerminalProgress:
    """A live display on a terminal; elsewhere (in a job's log, say) a line for each trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._todo: dict[str, PlannedTrial] = {}
        self._running: dict[str, _Running] = {}
        self._done = 0.0
        self._total = 0
        self._time_left = TimeLeft([], 1)
        self._time_told_at = float("-inf")

    def begin(self, plan: Plan, todo: Sequence[PlannedTrial], concurrency: int) -> None:
        for note in plan.notes:
            self.console.print(Text.assemble(("note:", "dim"), f" {note}"))
        self._total = len(plan.unique())
        self._todo = {trial.trial_id: trial for trial in todo}
        self._done = self._total - len(todo)
        if plan.study.search is not None:
            self._begin_search(plan, plan.study.search, concurrency)
        self._time_left = TimeLeft(todo, concurrency, unplanned=self._unplanned(plan))
        there = f", {self._total - len(todo)} there already" if len(todo) < self._total else ""
        pace = f"; {concurrency} at a time" if todo else ""
        if plan.study.search is None:
            self.console.print(Text.assemble((plan.study.name, "bold"), f"  {self._total} trials{there}{pace}."))
        if concurrency and self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()

    def _begin_search(self, plan: Plan, search: SearchSpec, concurrency: int) -> None:
        """The trials of a search are not known yet; their greatest number is, where ``max_trials`` gives it."""
        self._total += self._unplanned(plan) or len(plan.branches) * len(plan.study.seeds)
        branches = "" if len(plan.branches) == 1 else f"{len(plan.branches)} searches of "
        limits = [f"at most {search.max_trials} trials" if search.max_trials else "trials"]
        limits += [f"{search.max_gpu_hours:g} device-hours"] if search.max_gpu_hours else []
        limits += [f"{search.max_wall:g} hours"] if search.max_wall else []
        pace = f"; {concurrency} at a time" if concurrency else "; nothing left to do"
        line = f"  {branches}{', '.join(limits)} by {search.sampler}{pace}."
        self.console.print(Text.assemble((plan.study.name, "bold"), line))

    @staticmethod
    def _unplanned(plan: Plan) -> int | None:
        """The number of trials that a search may still plan; None where it has no limit."""
        search = plan.study.search
        if search is None:
            return 0
        # The selected configuration is measured, or trained with further seeds: each seed is one step.
        branches = sum(1 + len(branch.beside) for branch in plan.branches)
        return branches * (search.max_trials + len(plan.study.seeds)) if search.max_trials else None

    def _search_event(self, event: SearchEvent) -> None:
        if isinstance(event, Resumed):
            self._done += event.recorded
            if event.recorded:
                self.console.print(f"{event.recorded} trials of the search there already.", highlight=False)
        elif isinstance(event, Planned):
            self._todo[event.trial.trial_id] = event.trial
            self._total = max(self._total, len(self._todo))
        elif event.is_old:
            self._done += 1
            label = self._todo[event.trial_id].label
            self.console.print(Text.assemble(_FINISHED, f" {self._done:>3.0f}/{self._total}  {label:<32} there already"))

    def event(self, event: Event) -> None:
        self._time_left.event(event)
        if isinstance(event, SearchEvent):
            self._search_event(event)
            return
        trial = self._todo.get(event.trial_id)
        if trial is None:
            return
        running = self._running.setdefault(trial.trial_id, _Running(trial))
        if isinstance(event, Epochs) and event.rows:
            running.epoch, running.val_rmse = event.rows[-1]["epoch"], event.rows[-1]["val_rmse"]
            running.best_rmse = min(running.best_rmse or float("inf"), *(row["val_rmse"] for row in event.rows))
        elif isinstance(event, Note):
            self.console.print(Text.assemble(("!", "yellow"), f" {trial.label}: {event.text}"), soft_wrap=True)
        elif isinstance(event, Ended):
            self._running.pop(trial.trial_id)
            self._done += 1
            self._print_ended(running, event.status)

    def end(self, outcome: Outcome) -> None:
        self.stop()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_ended(self, running: _Running, status: str) -> None:
        mark = {"finished": _FINISHED, "pruned": ("–", "yellow")}.get(status, ("✗", "red"))
        detail = (
            f"{running.epoch} epochs, best validation RMSE {running.best_rmse:.4g}"
            if running.best_rmse is not None
            else ""
        )
        words = "" if status == "finished" else f"{status}  "
        line = f" {self._done:>3.0f}/{self._total}  {running.trial.label:<32} {words}{detail}{self._time_told()}"
        self.console.print(Text.assemble(mark, line))

    def _time_told(self) -> str:
        """The time left for a line of a log, at most once a second. A terminal shows it below the lines."""
        now = time.monotonic()
        if self.console.is_terminal or now - self._time_told_at < _TIME_TOLD_SECONDS:
            return ""
        self._time_told_at = now
        left = self._time_left.seconds()
        return f"; about {duration(left)} left" if left else ""

    def _render(self) -> Group:
        left = self._time_left.seconds()
        waiting = "first epoch" if self._running else "starting workers"
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(f"{self._done:.0f}/{self._total} trials"),
            ProgressBar(total=max(1, self._total), completed=self._done, width=40),
            Text(waiting if left is None else f"about {duration(left)} left", style="dim"),
        )
        rows = Table.grid(padding=(0, 2))
        for running in list(self._running.values()):
            epochs = f"epoch {running.epoch}/{running.trial.spec.train.most_epochs}"
            error = "" if running.val_rmse is None else f"validation RMSE {running.val_rmse:.4g}"
            rows.add_row(Text("  " + running.trial.label), Text(epochs, style="cyan"), Text(error, style="dim"))
        return Group(head, rows)
