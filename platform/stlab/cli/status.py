"""Commands that show progress: the state of a study, and the log of a trial or a job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.cli.options import StorageOption, coloured, console_for_output, myself, study_name

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.inspection.status import StudyState, TrialState
    from stlab.storage import Store
    from stlab.submission.jobs import Job

_LOG_LINES = 30
_EPOCHS = 12

JobAddressOption = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="URL of the Ray dashboard, http://head:8265, to show jobs as well."),
]


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Name of a study, or its file. Default: one line for each study.")
    ] = None,
    storage: StorageOption = "runs",
    address: JobAddressOption = None,
    every: Annotated[bool, typer.Option("--all", help="List finished trials and trials to do as well.")] = False,
) -> None:
    """Show the progress of a study: its trials by state and, with an address, the job that runs it."""
    from stlab.errors import UserError
    from stlab.inspection.status import study_state
    from stlab.storage import Store

    console = console_for_output()
    if name is None:
        _say_all(console, Store(storage))
        return
    name = study_name(name)
    try:
        _say_state(console, study_state(Store(storage), name), every)
    except UserError as error:  # its job may not have started it yet, or may write to another storage
        if address is None:
            raise
        console.print(f"study    {error}", highlight=False, soft_wrap=True)
    if address is not None:
        from stlab.submission.jobs import Jobs

        jobs = Jobs(address)
        found = jobs.of_study(name)
        shown = [job for job in found if not job.is_over] or found[:1]
        if not shown:
            console.print(f"job      none of {name} at {jobs.address}", highlight=False, soft_wrap=True)
        for job in shown:
            console.print(f"job      {_job_line(job)}", highlight=False, soft_wrap=True)


def logs(
    target: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Id of a trial, or the beginning of it. With --address also a study or a job.")
    ],
    storage: StorageOption = "runs",
    address: JobAddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the log of a job until it ends, and exit with its exit code.")] = False,
) -> None:
    """Show the epochs and failures of a trial or, with an address, the log of a job."""
    from stlab.errors import UserError
    from stlab.inspection.status import find_trial
    from stlab.storage import Store

    console = console_for_output()
    if address is not None:
        from stlab.submission.jobs import Jobs

        jobs = Jobs(address)
        if found := jobs.of_study(target):
            if follow and not found[0].is_over:
                from stlab.cli.cluster import follow_to_end

                raise typer.Exit(follow_to_end(console, jobs, found[0].job_id, found[0].study or target))
            sys.stdout.write(jobs.log(found[0].job_id))
            console.print(f"job      {_job_line(found[0])}", highlight=False, soft_wrap=True)
            return
    store = Store(storage)
    trial_id = find_trial(store, target)
    if trial_id is None:
        where = f"no trial of {store.location} begins with '{target}'"
        also = f", nor does a job of {address}." if address else ". --address http://head:8265 shows the log of a study or a job."
        raise UserError(f"{where}{also} {myself()} status STUDY --all lists the ids.")
    study = _say_trial(console, store, trial_id)
    if address is not None and study and (running := jobs.of_study(study)):
        console.print(f"job      {_job_line(running[0])}; the end of its log:", highlight=False, soft_wrap=True)
        for line in jobs.log(running[0].job_id).splitlines()[-_LOG_LINES:]:
            console.print(f"    {line}", style="dim", highlight=False, soft_wrap=True)


def _say_all(console: Console, store: Store) -> None:
    """Print one line for each study in the storage."""
    from stlab.errors import UserError
    from stlab.inspection.status import study_state

    names = store.names("studies")
    if not names:
        raise UserError(f"there are no studies in {store.location}. Check --storage.")
    for name in names:
        console.print(_counts(study_state(store, name)), highlight=False, soft_wrap=True)


def _counts(state: StudyState) -> str:
    from stlab.inspection.status import STATES

    counts = [f"{state.count(name)} {name}" for name in STATES if state.count(name)]
    return f"{state.name}: {len(state.trials) + state.to_come} trials: {', '.join(counts) or 'none yet'}"


def _say_state(console: Console, state: StudyState, every: bool) -> None:
    console.print(_counts(state), highlight=False, soft_wrap=True)
    if state.run_by is not None:
        console.print(f"run by   {state.run_by}", highlight=False, soft_wrap=True)
    shown = state.trials if every else state.in_state("running", "stopped", "failed")
    if shown:
        console.print(_table(shown))
    if state.in_state("failed"):
        failed = state.in_state("failed")[0].trial_id
        console.print(f"why      {myself()} logs {failed}", highlight=False, soft_wrap=True)


def _table(trials: Sequence[TrialState]) -> object:
    from rich import box
    from rich.table import Table

    from stlab.inspection.status import STATES

    table = Table("id", "trial", "state", "epoch", "last sign", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for trial in sorted(trials, key=lambda trial: STATES.index(trial.state)):
        epoch = "" if trial.epoch is None else f"{trial.epoch}/{trial.max_epochs}" if trial.max_epochs else str(trial.epoch)
        quiet = "" if trial.quiet_seconds is None else f"{_ago(trial.quiet_seconds)} ago"
        colour = {"failed": "red", "stopped": "yellow"}.get(trial.state, "")
        table.add_row(trial.trial_id, trial.label, coloured(trial.state, colour), epoch, quiet, trial.reason or "")
    return table


def _say_trial(console: Console, store: Store, trial_id: str) -> str | None:
    """Print the state, the epochs and the failures of a trial, and return the name of the study that started it."""
    from stlab.inspection.status import trial_state
    from stlab.storage import TrialDirectory

    directory = TrialDirectory(store, trial_id)
    trial = directory.read("trial.json") or {}
    train = trial.get("train") or {}
    label = f"{trial.get('study')}: {trial.get('variant')}, seed {trial.get('seed')}"
    state = trial_state(store, {"trial_id": trial_id, "label": label, "max_epochs": train.get("max_epochs")})
    quiet = f", last sign {_ago(state.quiet_seconds)} ago" if state.quiet_seconds is not None else ""
    console.print(f"{trial_id}  {label}: {state.state}{quiet}", highlight=False, soft_wrap=True)
    _say_epochs(console, directory.read_epochs())
    earlier = [name for name in store.names(directory.prefix) if name.startswith("failed-")]
    for name in [*sorted(earlier), "failed.json", "pruned.json"]:
        end = directory.read(name)
        if end is None:
            continue
        before = "earlier: " if name in earlier else ""
        epoch = f" (epoch {end['epoch']})" if end.get("epoch") is not None else ""
        console.print(f"{before}{end.get('reason')}{epoch}", style="red", highlight=False, soft_wrap=True)
        for line in end.get("log_tail") or []:
            console.print(f"    {line}", style="dim", highlight=False, soft_wrap=True)
    return trial.get("study")


def _say_epochs(console: Console, rows: Sequence[dict[str, object]]) -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        console.print("no epoch has been written yet.")
        return
    columns = [name for name in ("epoch", "loss", "val_rmse", "val_mae", "lr", "seconds") if name in rows[-1]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows[-_EPOCHS:]:
        table.add_row(*(f"{row[name]:.5g}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    console.print(table)
    if len(rows) > _EPOCHS:
        console.print(f"the last {_EPOCHS} of {len(rows)} epochs.", style="dim")


def _job_line(job: Job) -> str:
    from datetime import UTC, datetime

    since = ""
    if job.started_at is not None:
        end = job.ended_at or datetime.now(UTC)
        since = f", {'for' if job.is_over else 'since'} {_ago((end - job.started_at).total_seconds())}"
    return f"{job.job_id} {job.status.lower()}{since}{'' if job.exit_code is None else f', exit code {job.exit_code}'}"


def _ago(seconds: float) -> str:
    from stlab.execution.progress import duration

    return duration(seconds)
