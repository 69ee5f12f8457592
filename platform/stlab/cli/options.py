"""What several commands share: options, the console, how a study is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from stlab.study.source import StudySource
    from stlab.study.spec import DataSpec, StudySpec


StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the bare name of a shipped one.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override any field, e.g. data.path=grid.npz; may be repeated."),
]
StorageOption = Annotated[
    str,
    typer.Option("--storage", envvar="STLAB_STORAGE", help="Where everything goes: a folder or a URI such as s3://bucket/runs."),
]
TrackingOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; by default sqlite in the storage."),
]

TrialsOption = Annotated[int | None, typer.Option("--trials", help="Trials of each search: search.max_trials.")]


def myself() -> str:
    """This command line, as it can be typed here: the bare name only where it is on the path."""
    if shutil.which("stlab"):
        return "stlab"
    return sys.argv[0] if Path(sys.argv[0]).name == "stlab" else f"{sys.executable} -m stlab"


def console_for_output() -> Console:
    """Standard output as it is now; where it is no terminal (a log, a pipe), wide enough for the tables.

    Strings are printed as they are: what an error, a path or a name has in brackets is no style. Colour is given by `coloured`.
    """
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)


def coloured(word: str, style: str, rest: str = "") -> Text:
    """A word in a style, and what follows it, as it is."""
    from rich.text import Text

    return Text.assemble((word, style), rest)


def study_name(name: str) -> str:
    """A study's name, given that or its file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    from stlab.study.file import load_study_source

    return str(load_study_source(name).data["name"])


def load_study(study: str, overrides: list[str] | None) -> tuple[StudySpec, StudySource]:
    from stlab.study.file import load_study_source, parse

    source = load_study_source(study, overrides or ())
    return parse(source), source


def data_spec(path: str, overrides: list[str], **defaults: str) -> DataSpec:
    """A data specification from a path and ``--set`` options, by way of a study that holds nothing else."""
    from stlab.study.file import StudySource, parse

    text = json.dumps({"name": "inspect", "base": {"data": {"path": path, **defaults}, "model": {"name": "last_value"}}})
    return parse(StudySource.from_text(text, "--set", overrides)).base.data
