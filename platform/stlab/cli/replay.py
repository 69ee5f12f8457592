"""``stlab replay``: train a trial again, and compare the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlab.cli.options import StorageOption, coloured, console_for_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.text import Text

    from stlab.inspection.replay import Replay


def replay(
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL_ID", help="Id of a trial, or the beginning of it.")],
    storage: StorageOption = "runs",
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="New path of the data, if it was moved.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Relative difference up to which numbers agree. Default: 1e-6.")
    ] = None,
) -> None:
    """Train a finished trial again on this machine and compare the numbers. Exit code 0: they agree; 1: they do not."""
    from stlab.inspection.replay import TOLERANCE, trial_to_replay
    from stlab.inspection.replay import replay as run_again
    from stlab.storage import Store

    console, store = console_for_output(), Store(storage)
    name = trial_to_replay(store, trial_id)
    with console.status(f"{name}: starting") as status:

        def show_epoch(event: Mapping[str, Any]) -> None:
            if event.get("rows"):
                last = event["rows"][-1]
                status.update(f"{name}: epoch {last['epoch']}, validation RMSE {last['val_rmse']:.4g}")

        found = run_again(store, name, data_path=data, report=show_epoch)
    _say(console, found, TOLERANCE if tolerance is None else tolerance)
    raise typer.Exit(0 if found.difference <= (TOLERANCE if tolerance is None else tolerance) else 1)


def _say(console: Console, found: Replay, tolerance: float) -> None:
    from rich import box
    from rich.table import Table

    seed = "" if found.spec.baseline else f", seed {found.spec.seed}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{found.trial_id}: {found.spec.variant}{seed}", title_justify="left")
    for column in ("", "then", "now", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for number in found.numbers:
        table.add_row(number.name, _text(number.then), _text(number.now), _difference(number.difference))
    if found.numbers:
        console.print(table)
    differing = [condition for condition in found.conditions if condition.differs]
    for condition in differing:
        console.print(coloured("differs:", "yellow", f" {condition.name}: {condition.then} then, {condition.now} now"))
    same = [condition.name for condition in found.conditions if not condition.differs]
    console.print(f"the same: data{''.join(f', {name}' for name in same)}", highlight=False, soft_wrap=True)
    console.print(_verdict(found, tolerance), soft_wrap=True)


def _verdict(found: Replay, tolerance: float) -> Text:
    if found.failure:
        return coloured("The replay has no result:", "red", f" {found.failure}")
    if found.difference == 0:
        return coloured("The numbers agree exactly.", "green")
    if found.difference <= tolerance:
        return coloured("The numbers agree", "green", f" to {found.difference:.2g} (relative; up to {tolerance:g} counts as agreeing).")
    size = "numbers are missing" if math.isinf(found.difference) else f"by up to {100 * found.difference:.2g} %"
    return coloured("The numbers do not agree:", "red", f" {size}.")


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.8g}"


def _difference(value: float) -> str:
    return "–" if math.isinf(value) else "0" if value == 0 else f"{value:.1e}"
