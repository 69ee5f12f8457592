"""Commands for MLflow: open it, and bring it up to date."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from stlab.cli.options import StorageOption, TrackingOption, console_for_output
from stlab.errors import UserError
from stlab.files import shown


def ui(
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Serve the MLflow UI with the runs of a storage, at http://127.0.0.1:5000."""
    from stlab.storage import Store
    from stlab.tracking import TrackingUnavailable, default_uri, study_url, ui_command

    store = Store(storage)
    uri = tracking_uri or default_uri(store)
    if uri is None:
        raise UserError(f"{storage} is remote. Name the MLflow server with --tracking-uri.")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no MLflow database at {uri}. Run a study with --storage {storage} first, or stlab sync.")
    console = console_for_output()
    for study in store.names("studies"):
        with contextlib.suppress(UserError, TrackingUnavailable):  # MLflow has no page for a study that it does not know yet
            address = study_url(uri, study, f"http://127.0.0.1:{port}")
            console.print(f"{study}: variants side by side at {address}", highlight=False, soft_wrap=True)
            trials = address.replace("=variants", "=trials")
            console.print(f"{' ' * len(study)}  trials side by side at {trials}", highlight=False, soft_wrap=True)
    command = ui_command(uri, port)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # the environment, unlike the command line, hides a password in the URI
    os.execvp(command[0], command)


def sync(
    name: Annotated[str, typer.Argument(metavar="STUDY")],
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
) -> None:
    """Bring MLflow up to date from the directories of a study. Repeating it makes no duplicates."""
    from stlab import tracking
    from stlab.storage import Store

    store = Store(storage)
    uri = tracking_uri or tracking.default_uri(store)
    if uri is None:
        raise UserError(f"{storage} is remote. Name the MLflow server with --tracking-uri.")
    try:
        count = tracking.sync(store, name, uri)
    except tracking.TrackingUnavailable as error:
        raise UserError(f"MLflow does not answer: {error}") from error
    typer.echo(f"{count} trials in {shown(uri)}")
