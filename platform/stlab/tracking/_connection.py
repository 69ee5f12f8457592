"""Where MLflow is, how it is reached quickly and quietly, and what it means when it is not."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stlab.errors import UserError
from stlab.files import secrets_of, shown
from stlab.storage import Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")

# Set before mlflow is imported; what the user has set stands. MLflow's own defaults retry a dead server for minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its records go to the driver's own handlers, not to a handler of MLflow's
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PGCONNECT_TIMEOUT": "5",  # seconds; libpq's own is none at all
}


class TrackingUnavailable(Exception):
    """MLflow cannot be reached, or refuses. Training goes on; :func:`sync` makes up for it later."""


def default_uri(store: Store) -> str | None:
    """``sqlite:///<storage>/mlflow.db`` for a local storage; None for a remote one, where a URI must be told.

    Raises:
        UserError: the path of the storage cannot be written as a database URI.
    """
    if not store.is_local:
        return None
    path = store.path("mlflow.db")
    if "?" in path:
        raise UserError(
            f"--storage {store.location}: a database URI cannot hold the '?'. Give a tracking URI of your own."
        )
    return f"sqlite:///{path}"


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command (argv) that opens MLflow's pages.

    A database gets a server on 127.0.0.1; a tracking server has pages of its own, which the browser opens. A URI with a password is
    not in the command, which every user of the machine can list: pass it on as MLFLOW_BACKEND_STORE_URI.

    Raises:
        UserError: the URI is of a kind that MLflow does not track to.
    """
    scheme = check_uri(uri)
    if scheme in _SERVERS:
        return [sys.executable, "-m", "webbrowser", shown(uri)]
    # Without job execution it is one process, not ten of 240 MB each: nothing here runs jobs.
    environment = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"]
    server = [sys.executable, "-m", "mlflow", "server"]
    if not secrets_of(uri):
        server += ["--backend-store-uri", uri]
    return [*environment, *server, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def check_uri(uri: str | None) -> str:
    """The URI's scheme, without the driver's name. Raises UserError for one that cannot be tracked to."""
    if not uri:
        raise UserError("no tracking URI: with a remote storage give one, e.g. http://127.0.0.1:5000 or sqlite:////path/mlflow.db.")
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else ""
    if scheme not in (*_DATABASES, *_SERVERS):
        allowed = ", ".join(f"{name}://" for name in (*_DATABASES, *_SERVERS))
        raise UserError(
            f"tracking URI {shown(uri)}: it must begin with one of {allowed}. "
            "MLflow has given up folders of files; sqlite:////path/mlflow.db takes their place."
        )
    return scheme


def is_database(uri: str) -> bool:
    return check_uri(uri) in _DATABASES


def _told(error: Exception, uri: str) -> str:
    """What an error says, in one line and without the URI's password."""
    text = str(error).replace(uri, shown(uri)).replace(uri.rstrip("/"), shown(uri).rstrip("/"))
    for secret in secrets_of(uri):
        text = text.replace(secret, "***")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Whatever MLflow, its database or the network raises inside becomes TrackingUnavailable."""
    prepare()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise TrackingUnavailable(f"MLflow at {shown(uri)}: {type(error).__name__}: {_told(error, uri)}{_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError) and "boto" in str(error):
        return ". MLflow keeps files on S3 through boto3: pip install 'stlab[s3]'"
    return ""


def prepare() -> None:
    """Before mlflow is imported: short timeouts, no telemetry, no lines of its own on the terminal."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)  # an ERROR or WARNING still shows
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs, with traceback, what it raises too
    # A signature is given; an example would be run once more at every upload.
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
    logging.getLogger("urllib3.connectionpool").addFilter(_is_not_a_retry)


def _is_not_a_retry(record: logging.LogRecord) -> bool:
    return "/mlflow" not in record.getMessage()  # TrackingUnavailable says it, once


def connect(uri: str) -> MlflowClient:
    """A client whose store is there; a database that is absent is created (1-2 s for SQLite).

    Raises:
        UserError: the database's URI is malformed, or its driver is not installed.
        TrackingUnavailable: it cannot be reached.
    """
    with reaching(uri):
        from mlflow.tracking import MlflowClient

        if is_database(uri):
            _check_database(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_database(uri: str) -> None:
    # MLflow tries a database that is away ten times, over minutes. Ask once, ourselves, first.
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
        engine = create_engine(url)
    except (ModuleNotFoundError, ArgumentError) as error:  # ArgumentError: malformed, or an unknown driver
        remedy = "Correct it, or install the driver (pip install)."
        if getattr(error, "name", None) == "psycopg":
            remedy = "Install it (pip install 'psycopg[binary]') or, for psycopg2, write postgresql+psycopg2://."
        raise UserError(f"tracking URI {shown(uri)}: {_told(error, uri)}. {remedy}") from error
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()
