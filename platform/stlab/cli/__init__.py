"""The command line: parses, calls, prints. The only place that exits.

Exit codes: 0 done, 1 a trial failed, 2 the user's input, 3 a job that was followed is out of sight and may run on, 130 interrupted.
Imports of weight wait until a command needs them.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from stlab.cli.cluster import stop, submit
from stlab.cli.data import inspect
from stlab.cli.doctor import doctor
from stlab.cli.image import image
from stlab.cli.replay import replay
from stlab.cli.status import logs, status
from stlab.cli.study import plan, report, run, schema
from stlab.cli.tracking import sync, ui
from stlab.errors import UserError
from stlab.version import __version__

app = typer.Typer(
    help="Ablation studies and searches for spatio-temporal forecasting that hold.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at data before anything trains.", no_args_is_help=True)
app.add_typer(data_app, name="data")
for command in (run, plan, report, replay, submit, status, logs, stop, doctor, ui, sync, image, schema):
    app.command()(command)
data_app.command()(inspect)


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
        say_error(str(error))
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
            say_error(f"{type(error).__name__}: {error}\nThis is a defect of stlab's. --debug shows where.")
            code = 1
    sys.exit(code)


def say_error(message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
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
