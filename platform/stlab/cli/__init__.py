"""The command line: it parses, calls and prints, and is the only place that exits.

Exit codes: 0 done, 1 a trial failed, 2 an error in the user's input, 3 the followed job cannot be seen any more and may still run,
130 interrupted. Each command imports heavy libraries itself, so that ``--help`` stays fast.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from stlab.cli.cluster import stop, submit
from stlab.cli.data import image, inspect
from stlab.cli.doctor import doctor
from stlab.cli.models import models
from stlab.cli.replay import replay
from stlab.cli.sources import convert, formats, grid, network, sensors, sources, zones
from stlab.cli.status import logs, status
from stlab.cli.study import plan, report, run, schema
from stlab.cli.tracking import sync, ui
from stlab.errors import UserError
from stlab.version import __version__

app = typer.Typer(
    help="Run reliable ablation studies and searches for spatio-temporal forecasting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make data sets of raw records, and look at data before anything trains.", no_args_is_help=True)
app.add_typer(data_app, name="data")
for command in (run, plan, report, replay, models, submit, status, logs, stop, doctor, ui, sync, image, schema):
    app.command()(command)
for data_command in (grid, zones, sensors, convert, network, formats, sources, inspect):
    data_app.command()(data_command)


def main() -> NoReturn:
    """Run the command line. Errors of the user become one message and exit code 2, without a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0  # typer returns the exit code of a command instead of raising it
    except UserError as error:
        if debug:
            raise
        say_error(str(error))
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        # The usage errors of click carry their exit code. Any other exception is a defect of stlab.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            code = error.exit_code
        elif debug:
            raise
        else:
            say_error(f"{type(error).__name__}: {error}\nThis is a defect of stlab. --debug shows the traceback.")
            code = 1
    sys.exit(code)


def say_error(message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, emoji=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
) -> None:
    if version:
        typer.echo(f"stlab {__version__}")
        raise typer.Exit
