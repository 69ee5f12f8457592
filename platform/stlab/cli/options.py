"""Parts that several commands share: options, the console, and loading a study."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlab.errors import UserError
from stlab.files import is_uri

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from stlab.storage import Store
    from stlab.study.plan import PlannedTrial
    from stlab.study.source import StudySource
    from stlab.study.spec import DataSpec, StudySpec


StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the bare name of a shipped one.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override any field, e.g. data.path=grid.npz. May be repeated."),
]
StorageOption = Annotated[
    str,
    typer.Option("--storage", envvar="STLAB_STORAGE", help="Folder or URI for all results, such as s3://bucket/runs."),
]
TrackingOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server or database. Default: SQLite in the storage."),
]

DatasetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--datasets",
        metavar="FILES",
        help="Run every variant on each of these data sets: a file, a pattern ('data/*.npz', s3://…), or one that the study names. "
        "May be repeated.",
    ),
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad-datasets", help="Leave out data sets that cannot be read; the report says so.")
]
TrialsOption = Annotated[int | None, typer.Option("--trials", help="Number of trials of each search: search.max_trials.")]


def myself() -> str:
    """The command that starts stlab here: its bare name if it is on the path, else the full command."""
    if shutil.which("stlab"):
        return "stlab"
    return sys.argv[0] if Path(sys.argv[0]).name == "stlab" else f"{sys.executable} -m stlab"


def console_for_output() -> Console:
    """A console on the current standard output. If that is not a terminal (a log, a pipe), it is wide enough for the tables.

    It prints strings literally, so that brackets in an error, a path or a name are not read as styles. `coloured` adds colour.
    """
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)


def coloured(word: str, style: str, rest: str = "") -> Text:
    """A word in a style, followed by unstyled text."""
    from rich.text import Text

    return Text.assemble((word, style), rest)


def study_name(name: str) -> str:
    """The name of a study, from its name or its file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    from stlab.study.file import load_study_source

    return str(load_study_source(name).data["name"])


def load_study(study: str, overrides: list[str] | None) -> tuple[StudySpec, StudySource]:
    """The validated study, and the text that it comes from."""
    from stlab.study.file import load_study_source, parse

    source = load_study_source(study, overrides or ())
    return parse(source), source


def extended(study: str, overrides: list[str] | None, store: Store, count: int) -> tuple[StudySpec, StudySource]:
    """The study as it was run in this storage, with ``count`` further seeds (``stlab run STUDY --add-seeds N``).

    Args:
        study: the name of a study that was run, or a study file, from which only the name is read.
        overrides: ``--set`` options on the study that was run, for example the new path of its data.

    Raises:
        UserError: the study was not run, or some of its trials are left to do.
    """
    from stlab.execution.run_study import plan_study
    from stlab.storage import StudyDirectory, TrialDirectory
    from stlab.study.file import parse
    from stlab.study.source import StudySource

    name = study if StudyDirectory(store, study).read_study() is not None else load_study(study, None)[0].name
    text = StudyDirectory(store, name).read_study()
    if text is None:
        raise UserError(f"--add-seeds: no study '{name}' was run in {store.location}. Run it first: stlab run {study}")
    label = store.address(f"studies/{name}/study.yaml")
    folder = None if is_uri(label) else Path(label).resolve().parent
    source = StudySource.from_text(text, label, overrides or (), folder)
    spec = parse(source)
    if spec.search is not None:
        raise UserError("--add-seeds: a search trains the selected trial with the seeds of the study. Set those: --set seeds=[0, 1, 2].")
    left = [trial for trial in plan_study(spec, source).unique() if not TrialDirectory(store, trial.trial_id).is_over()]
    if left:
        raise UserError(
            f"--add-seeds: {len(left)} trials of '{name}' are left to do, seeds {spec.seeds}.{_other_code(store, name, left)} First: "
            f"{myself()} run {label} --storage {store.location}"
        )
    first = max(spec.seeds) + 1
    seeds = [*spec.seeds, *range(first, first + count)]
    source = StudySource.from_text(text, label, [*(overrides or ()), f"seeds={seeds}"], folder)
    return parse(source), source


def _other_code(store: Store, name: str, left: list[PlannedTrial]) -> str:
    """A sentence that the trials were trained by another version of stlab, if that is why some are left to do."""
    from stlab.storage import StudyDirectory

    versions = {row["code_version"] for row in StudyDirectory(store, name).read_trials().to_pylist() if row["code_version"]}
    now = left[0].identity["code_version"]
    if not versions or now in versions:
        return ""
    return f" They were trained by {', '.join(sorted(versions))}; this is {now}, whose numbers may differ."


def data_spec(path: str, overrides: list[str], **defaults: str) -> DataSpec:
    """A data specification from a path and ``--set`` options, parsed as a study that holds nothing else."""
    from stlab.study.file import StudySource, parse

    text = json.dumps({"name": "inspect", "base": {"data": {"path": path, **defaults}, "model": {"name": "last_value"}}})
    return parse(StudySource.from_text(text, "--set", overrides)).base.data
