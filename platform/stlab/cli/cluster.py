"""Commands for a cluster: submit a study, follow its job, and stop it."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.cli.options import (
    DatasetsOption,
    SetOption,
    SkipOption,
    StudyArgument,
    TrackingOption,
    TrialsOption,
    coloured,
    console_for_output,
    myself,
)

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.submission.jobs import Job, Jobs

AddressOption = Annotated[
    str, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="URL of the Ray dashboard: http://head:8265.")
]


def submit(
    study: StudyArgument,
    address: AddressOption,
    storage: Annotated[
        str,
        typer.Option("--storage", envvar="STLAB_STORAGE", help="Storage that all nodes reach: s3://bucket/runs or /shared/runs."),
    ],
    tracking_uri: TrackingOption = None,
    overrides: SetOption = None,
    trials: TrialsOption = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    add_seeds: Annotated[
        int | None, typer.Option("--add-seeds", min=1, metavar="N", help="Extend a finished study by N new seeds.")
    ] = None,
    datasets: DatasetsOption = None,
    skip_bad_datasets: SkipOption = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log of the job until it ends.")] = True,
) -> None:
    """Run a study on a cluster: send stlab and the study, follow the log, and exit with the exit code of the job."""
    from stlab.submission.order import Order, check_order
    from stlab.submission.package import package_folders, size

    console = console_for_output()
    words = tuple(datasets or ())
    order = Order(study, list(overrides or ()), storage, tracking_uri, trials, retry_failed, add_seeds, words, skip_bad_datasets)
    checked = check_order(order)
    name = checked.name
    from stlab.submission.jobs import Jobs

    jobs = Jobs(address)
    for note in checked.notes:
        console.print(coloured("note:", "dim", f" {note}"), soft_wrap=True)
    job_id = f"{name}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as scratch:
        packages = [*package_folders(Path(scratch)), *checked.models.packages]
        working_dir = Path(scratch, "study")
        working_dir.mkdir()
        if checked.text is not None:
            (working_dir / f"{name}.yaml").write_text(checked.text, encoding="utf-8")
        for place, file in checked.models.files.items():
            (working_dir / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, working_dir / place)
        sizes = f"stlab {_kilobytes(size(packages))}, the study {_kilobytes(size([working_dir]))}"
        console.print(f"sending  {sizes}, to {jobs.address}", highlight=False, soft_wrap=True)
        jobs.submit(
            job_id,
            ["-m", "stlab", *order.arguments(name if checked.text is None else f"{name}.yaml")],
            packages=packages, working_dir=working_dir, study=name, storage=storage, environment=order.environment(),
            again=order.again(name),
        )  # fmt: skip
    console.print(f"job      {job_id}", highlight=False, soft_wrap=True)
    if not wait:
        _say_how_to_go_on(console, job_id, name, jobs.address)
        return
    raise typer.Exit(follow_to_end(console, jobs, job_id, name))


def follow_to_end(console: Console, jobs: Jobs, job_id: str, study: str) -> int:
    """Print a job's log until the job ends, and return its exit code. Ctrl-C returns 130 and leaves the job running; 3 means that the
    cluster does not answer any more."""
    from stlab.submission.jobs import OutOfSight

    try:
        job = jobs.follow(job_id, _write, lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:
        _say_that_it_goes_on(console, job_id, study, jobs.address)
        return 130
    except OutOfSight as error:
        typer.echo(str(error), err=True)
        if error.goes_on:
            _say_that_it_goes_on(console, job_id, study, jobs.address)
        return error.exit_code
    return _say_end(console, job)


def stop(study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or id of its job.")], address: AddressOption) -> None:
    """Stop the job that runs a study. The storage keeps what has been trained."""
    from stlab.errors import UserError
    from stlab.submission.jobs import Jobs

    console = console_for_output()
    jobs = Jobs(address)
    found = jobs.of_study(study)
    running = [job for job in found if not job.is_over]
    if not running:
        last = f" The status of its last job, {found[0].job_id}, is {found[0].status}." if found else ""
        raise UserError(f"no job runs '{study}' at {jobs.address}.{last}")
    for job in running:
        ended = jobs.stop(job.job_id)
        console.print(f"{ended.job_id} {ended.status.lower()}. What is trained stays.", highlight=False, soft_wrap=True)
        console.print(_how_to_take_up(job, jobs.address), highlight=False, soft_wrap=True)


def _how_to_take_up(job: Job, address: str) -> str:
    """The command that continues a stopped job. It repeats all settings, since other settings would make another study of this name."""
    if job.again is None:
        return f"The same command continues it: {job.entrypoint}"
    return f"go on    {myself()} submit {job.again} --address {address}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say_that_it_goes_on(console: Console, job_id: str, study: str, address: str) -> None:
    console.print(f"\nThe job {job_id} goes on.", highlight=False)
    _say_how_to_go_on(console, job_id, study, address)


def _say_how_to_go_on(console: Console, job_id: str, study: str, address: str) -> None:
    console.print(f"follow   {myself()} logs {job_id} --follow --address {address}", highlight=False, soft_wrap=True)
    console.print(f"stop     {myself()} stop {study} --address {address}", highlight=False, soft_wrap=True)


def _say_end(console: Console, job: Job) -> int:
    """Print how the job ended, and return its exit code."""
    if job.status == "SUCCEEDED":
        console.print(f"{job.job_id} is done.", style="green", highlight=False)
        return 0
    if job.status == "STOPPED":
        console.print(f"{job.job_id} was stopped. What is trained stays.", highlight=False)
        return 130
    if job.exit_code is not None:
        console.print(f"{job.job_id} ended with exit code {job.exit_code}.", style="red", highlight=False)
        return job.exit_code
    console.print(coloured(f"{job.job_id} failed:", "red", f" {job.message}"), soft_wrap=True)
    return 1


def _kilobytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"
