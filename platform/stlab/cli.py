"""The command line: parses, calls, prints. The only place that exits.

Exit codes: 0 done, 1 a trial failed, 2 the user's input, 130 interrupted. Imports of weight wait until a command needs them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from stlab import __version__
from stlab.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from stlab.execution.study import Outcome
    from stlab.plan import Plan
    from stlab.spec import StudySpec
    from stlab.study_source import StudySource

app = typer.Typer(
    help="Ablation studies and searches for spatio-temporal forecasting that hold.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data before anything trains.", no_args_is_help=True)
app.add_typer(data_app, name="data")

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the bare name of a shipped one.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override any field, e.g. data.path=grid.npz; may be repeated."),
]
StorageOption = Annotated[
    str, typer.Option("--storage", help="Where everything goes: a folder or a URI such as s3://bucket/runs.")
]
TrackingOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; by default sqlite in the storage."),
]


def main() -> NoReturn:
    """Run the command line; the user's own errors become one message and exit code 2, without a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0  # a command's own exit code is returned, not raised
    except UserError as error:
        if debug:
            raise
        _say_error(str(error))
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        # click's own usage errors carry their exit code; anything else is a defect of ours
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            code = error.exit_code
        elif debug:
            raise
        else:
            _say_error(f"{type(error).__name__}: {error}\nThis is a defect of stlab's. --debug shows where.")
            code = 1
    sys.exit(code)


def _say_error(message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False)


def _myself() -> str:
    """This command line, as it can be typed here: the bare name only where it is on the path."""
    if shutil.which("stlab"):
        return "stlab"
    return sys.argv[0] if Path(sys.argv[0]).name == "stlab" else f"{sys.executable} -m stlab"


def _console() -> Console:
    """Standard output as it is now; where it is no terminal (a log, a pipe), wide enough for the tables."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)


def _load(study: str, overrides: list[str] | None) -> tuple[StudySpec, StudySource]:
    from stlab.study_file import load_study_source, parse

    source = load_study_source(study, overrides or ())
    return parse(source), source


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
) -> None:
    if version:
        typer.echo(f"stlab {__version__}")
        raise typer.Exit


@app.command()
def run(
    study: StudyArgument,
    overrides: SetOption = None,
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; by default this machine."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed before.")] = False,
) -> None:
    """Run a study: what is left of it, and nothing twice."""
    spec, source = _load(study, overrides)
    from stlab.execution.progress import TerminalProgress
    from stlab.execution.study import run_study
    from stlab.execution.track import TrackingObserver
    from stlab.results import Store
    from stlab.tracking import default_uri

    console = _console()
    store = Store(storage)
    uri = tracking_uri or default_uri(store)
    progress = TerminalProgress(console)
    tracking = TrackingObserver(uri, store, spec.name) if uri else None
    try:
        outcome = run_study(
            spec,
            storage,
            source=source,
            address=address,
            retry_failed=retry_failed,
            observers=[progress, *([tracking] if tracking else [])],
        )
    except KeyboardInterrupt:
        progress.stop()
        if tracking:
            tracking.interrupt()
        console.print("Interrupted. What is trained stays: the same command goes on from there.")
        raise typer.Exit(130) from None
    finally:
        progress.stop()
    _say_outcome(console, outcome, store.location, uri, tracking.failure if tracking else None)
    raise typer.Exit(1 if outcome.ended_as("failed", "missing") else 0)


def _say_outcome(
    console: Console, outcome: Outcome, storage: str, uri: str | None, tracking_failure: str | None
) -> None:
    from stlab.report import terminal_table
    from stlab.results import Store, TrialDirectory

    console.print()
    console.print(terminal_table(outcome.rows, list(outcome.plan.study.axes), console.width))
    for row in outcome.ended_as("failed"):
        failure = TrialDirectory(Store(storage), row["trial_id"]).read("failed.json") or {}
        console.print(
            f"[red]failed:[/] {row['variant']}, seed {row['seed']} ({row['trial_id']}): {row['error']}",
            highlight=False,
            soft_wrap=True,
        )
        for line in failure.get("log_tail", []):
            console.print(f"    {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
    if outcome.ended_as("failed"):
        console.print("Failed trials are run again only when asked: --retry-failed.", highlight=False)
    missing = outcome.ended_as("missing")
    if missing:
        console.print(f"[red]{len(missing)} trials did not end.[/] The same command goes on with them.")
    for trouble in outcome.troubles:
        console.print(f"[red]{trouble}[/]", highlight=False, soft_wrap=True)
    if outcome.kept:
        console.print(
            f"The study was changed: its earlier results and report are kept in {storage}/{outcome.kept}.",
            highlight=False,
            soft_wrap=True,
        )
    if tracking_failure:
        console.print(
            f"[yellow]MLflow is behind:[/] {tracking_failure} Later: {_myself()} sync {outcome.plan.study.name} --storage {storage}",
            soft_wrap=True,
        )
    console.print(f"report   {outcome.report}", highlight=False, soft_wrap=True)
    if uri is None:
        console.print("MLflow   not told where: --tracking-uri, or later stlab sync", highlight=False)
    else:
        default = uri.startswith("sqlite:///") and not tracking_failure
        console.print(
            f"MLflow   {_myself()} ui --storage {storage}" if default else f"MLflow   {_myself()} ui --tracking-uri {uri}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    storage: StorageOption = "runs",
    concurrency: Annotated[
        int | None, typer.Option(help="Worker groups at once, for the packs; by default what this machine runs.")
    ] = None,
) -> None:
    """List a study's trials (variant, axis values, seed, id, done or not) and packs, without running anything."""
    spec, source = _load(study, overrides)
    from stlab.execution.study import plan_study

    _say_plan(plan_study(spec, source), storage, concurrency)


def _say_plan(plan: Plan, storage: str, concurrency: int | None) -> None:
    from rich.table import Table

    from stlab.execution.study import is_done
    from stlab.plan import make_packs
    from stlab.results import Store, TrialDirectory

    console, store = _console(), Store(storage)
    todo = [trial for trial in plan.unique() if not is_done(trial, store)]
    slots = {
        t.spec.resources: concurrency
        or max(1, int((os.cpu_count() or 1) / (t.spec.resources.cpus * t.spec.resources.workers)))
        for t in todo
    }
    packs = make_packs(todo, slots)
    pack_of = {trial.trial_id: str(number) for number, pack in enumerate(packs) for trial in pack.trials}
    table = Table(
        "variant",
        *plan.study.axes,
        "seed",
        "id",
        "state",
        "pack",
        title=f"{plan.study.name}: {len(plan.trials)} trials",
        title_justify="left",
    )
    for trial in plan.trials:
        axes = [str(trial.spec.axis_values.get(path, "")) for path in plan.study.axes]
        state = "done" if trial.trial_id not in pack_of else "to do"
        if TrialDirectory(store, trial.trial_id).status().value == "failed":
            state = "failed"
        table.add_row(
            trial.spec.variant,
            *axes,
            "" if trial.spec.baseline else str(trial.spec.seed),
            trial.trial_id,
            state,
            pack_of.get(trial.trial_id, ""),
        )
    console.print(table)
    for note in plan.notes:
        console.print(f"[dim]note:[/] {note}", highlight=False)
    console.print(
        f"{len(todo)} to do, in {len(packs)} packs; {len(plan.unique()) - len(todo)} there already.", highlight=False
    )


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="A study that was run.")], storage: StorageOption = "runs"
) -> None:
    """Write a study's report again from its directories."""
    from stlab.report import terminal_table, write_report
    from stlab.results import Store, StudyDirectory
    from stlab.study_file import load_study_source

    if name.endswith((".yaml", ".yml")):
        name = load_study_source(name).data["name"]
    store = Store(storage)
    rows = StudyDirectory(store, name).read_trials().to_pylist()
    path = write_report(store, name)
    console = _console()
    console.print(terminal_table(rows, width=console.width))
    console.print(f"report   {path}", highlight=False, soft_wrap=True)


@data_app.command("inspect")
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A data file, or synthetic:city.")],
    overrides: SetOption = None,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes; by default NAME.png here.")] = None,
) -> None:
    """Shape, span, step, missing values, range, what the split gives; the mean grid and the daily profile as a picture."""
    from stlab.data import load_dataset, summarise
    from stlab.report.data_picture import data_picture
    from stlab.report.style import render

    console = _console()
    spec = _data_spec(path, overrides or [])
    summary = summarise(spec)
    for label, text in summary.lines():
        console.print(f"[bold]{label:<14}[/] {text}", highlight=False, soft_wrap=True)
    if summary.problems:
        raise UserError("no picture: the data cannot be used as it is.\n" + "\n".join(summary.problems))
    dataset = load_dataset(spec)
    target = picture or Path(f"{dataset.name.replace(' ', '_')}.png")
    if target.exists() and picture is None:
        raise UserError(f"{target} is there already; say where the picture goes with --picture.")
    if not target.parent.is_dir():
        raise UserError(f"--picture {target}: there is no folder {target.parent}. Make it, or give another.")
    target.write_bytes(render(data_picture(dataset), "png"))
    console.print(f"[bold]{'picture':<14}[/] {target}", highlight=False, soft_wrap=True)


def _data_spec(path: str, overrides: list[str]) -> Any:
    """A data specification from a path and ``--set`` options, by way of a study that holds nothing else."""
    from stlab.study_file import StudySource, parse

    text = json.dumps({"name": "inspect", "base": {"data": {"path": path}, "model": {"name": "st_vfm"}}})
    return parse(StudySource.from_text(text, "stlab data inspect", overrides)).base.data


@app.command()
def ui(
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Serve the MLflow UI on a storage's runs, at http://127.0.0.1:5000."""
    from stlab.results import Store
    from stlab.tracking import TrackingUnavailable, default_uri, study_url, ui_command

    store = Store(storage)
    uri = tracking_uri or default_uri(store)
    if uri is None:
        raise UserError(f"{storage} is remote: say where MLflow is, with --tracking-uri.")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no MLflow database at {uri}. Run a study with --storage {storage} first, or stlab sync.")
    console = _console()
    for study in store.names("studies"):
        with contextlib.suppress(UserError, TrackingUnavailable):  # a study MLflow does not have yet has no page either
            address = study_url(uri, study, f"http://127.0.0.1:{port}")
            console.print(f"{study}: variants side by side at {address}", highlight=False, soft_wrap=True)
            trials = address.replace("=variants", "=trials")
            console.print(f"{' ' * len(study)}  trials side by side at {trials}", highlight=False, soft_wrap=True)
    command = ui_command(uri, port)
    os.execvp(command[0], command)


@app.command()
def sync(
    name: Annotated[str, typer.Argument(metavar="STUDY")],
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
) -> None:
    """Bring MLflow up to date from a study's directories; as often as asked, without doubles."""
    from stlab import tracking
    from stlab.results import Store

    store = Store(storage)
    uri = tracking_uri or tracking.default_uri(store)
    if uri is None:
        raise UserError(f"{storage} is remote: say where MLflow is, with --tracking-uri.")
    try:
        count = tracking.sync(store, name, uri)
    except tracking.TrackingUnavailable as error:
        raise UserError(f"MLflow does not answer: {error}") from error
    typer.echo(f"{count} trials in {uri}")


@app.command()
def schema() -> None:
    """Print the JSON schema of the study file, for editors."""
    from pydantic import TypeAdapter

    from stlab.catalog import trainable_models
    from stlab.schema import study_schema

    models = {name: TypeAdapter(config).json_schema() for name, config in trainable_models().items()}
    typer.echo(json.dumps(study_schema(models), indent=2, ensure_ascii=False))
