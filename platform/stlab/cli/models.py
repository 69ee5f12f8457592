"""``stlab models``: the models there are, the fields of one, and whether one keeps the contract."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlab.cli.options import SetOption, coloured, console_for_output
from stlab.errors import ModelError, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from stlab.data import Dataset
    from stlab.inspection.contract import Finding

_USAGE = "stlab models, stlab models MODEL, or stlab models check MODEL --set data.path=PATH"


def models(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[[check] MODEL]", help="A model, to list its fields or to check it.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """List the models, list the fields of one, or check that one keeps the contract; --set data.path=PATH names the data."""
    console = console_for_output()
    match words or []:
        case []:
            _list(console, _dataset("last_value", overrides or []))
        case ["check"]:
            raise UserError(f"check: name the model. {_USAGE}.")
        case [name]:
            _fields(console, name)
        case ["check", name]:
            raise typer.Exit(_check(console, name, overrides or []))
        case _:
            raise UserError(f"{' '.join(words or [])}: too many words. {_USAGE}.")


def _dataset(name: str, overrides: list[str]) -> Dataset | None:
    """The data that the overrides name; None if they name none."""
    from stlab.data import load_dataset

    if not any(override.partition("=")[0].strip() == "data.path" for override in overrides):
        return None
    return load_dataset(_sections({"name": name}, overrides)["data"])


def _sections(model: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The sections of a trial of this model, with overrides as a study has them."""
    from stlab.study.errors import study_error
    from stlab.study.file import parse
    from stlab.study.resolve import resolve
    from stlab.study.source import StudySource

    text = json.dumps({"name": "check", "base": {"data": {"path": ""}, "model": model}})
    source = StudySource.from_text(text, "--set", overrides)
    sections, problems = resolve(parse(source), {}, "base", source)
    if problems:
        raise study_error(problems)
    return sections


def _list(console: Console, dataset: Dataset | None) -> None:
    from rich.table import Table

    from stlab.catalog import MODELS, config_class, registered

    table = Table("model", "family", "needs", "parameters", "paper", title="Models", title_justify="left")
    for name in (*MODELS, *registered()):
        config = config_class(name)
        table.add_row(name, ", ".join(config.FAMILIES), ", ".join(_needs(name)), _parameters(name, dataset), config.PAPER)
    console.print(table)
    if dataset is None:
        console.print("--set data.path=PATH counts the parameters of each on your data.", style="dim")


def _needs(name: str) -> tuple[str, ...]:
    from stlab.catalog import config_class, create_config

    try:
        return create_config({"name": name}).needs()
    except TypeError:  # a field without a default
        return config_class(name).NEEDS


def _parameters(name: str, dataset: Dataset | None) -> str:
    """The trainable and all parameters on a data set, with random weights; the reason if the model cannot run on it."""
    from stlab.catalog import config_class
    from stlab.inspection.contract import default_model
    from stmodels.errors import ConfigError

    if dataset is None:
        return ""
    if dataset.info.family not in config_class(name).FAMILIES:
        return "–"
    try:
        model = default_model(name, dataset.info)
    except ConfigError as error:
        return str(error)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"{trained:,} of {total:,} trained" if trained != total else f"{total:,}"


def _fields(console: Console, name: str) -> None:
    from pydantic import TypeAdapter
    from rich.table import Table

    from stlab.catalog import config_class

    config = config_class(name)
    console.print(coloured(name, "bold", f"  {_plain(config.__doc__ or '')}"), soft_wrap=True)
    needs = _needs(name)
    facts = {"family": ", ".join(config.FAMILIES), "needs": ", ".join(needs) or "nothing", "paper": config.PAPER or "none"}
    for label, text in facts.items():
        console.print(coloured(f"{label:<8}", "dim", text), soft_wrap=True)
    table = Table("field", "default", "meaning", show_lines=False)
    properties = TypeAdapter(config).json_schema().get("properties", {})
    for field, about in properties.items():
        if field != "name":
            table.add_row(f"model.{field}", json.dumps(about.get("default")), _plain(about.get("description", "")))
    if table.row_count:
        console.print(table)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _row(found: Finding) -> tuple[Text, str]:
    if found.problem:
        return coloured("✗", "red", ""), found.problem
    if found.skipped:
        return coloured("–", "dim", ""), found.skipped
    return coloured("✓", "green", ""), found.meaning.replace("``", "")


def _check(console: Console, name: str, overrides: list[str]) -> int:
    """Examine a model and print a row a clause. Returns the exit code."""
    from rich.table import Table

    from stlab.catalog import config_class
    from stlab.inspection.contract import Subject, examine
    from stmodels.errors import ConfigError

    dataset = _dataset(name, overrides)
    if dataset is None:
        raise UserError("check: name the data to check on: --set data.path=PATH, or synthetic:city for a generated grid.")
    small = dict(config_class(name).SMALL)
    values = _sections({"name": name, **small}, overrides)["model"]
    try:
        subject = Subject(values, dataset)
        subject.config.check(dataset.info)
    except (ConfigError, ModelError) as error:
        raise ModelError(str(error)) from error
    if small:
        fields = ", ".join(f"{field}={values[field]}" for field in small)
        console.print(f"small: {fields}; --set model.FIELD=VALUE changes them", style="dim", highlight=False, soft_wrap=True)
    table = Table("clause", "", "", title=f"{name} on {dataset.name}", title_justify="left")
    broken = 0
    for found in examine(subject):
        table.add_row(found.clause, *_row(found))
        broken += found.problem is not None
    console.print(table)
    summary = f"{broken} clauses are broken." if broken != 1 else "One clause is broken."
    console.print(summary if broken else "It keeps the contract.", style="red" if broken else "green")
    return 1 if broken else 0
