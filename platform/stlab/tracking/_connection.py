"""The connection to MLflow: its URI, short timeouts and little output, and the error when it cannot be reached."""

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

# Set before mlflow is imported, except for variables that the user has set. MLflow's defaults retry a dead server for minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # log records go to the driver's handlers, not to one of MLflow's
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "PGCONNECT_TIMEOUT": "5",  # seconds; libpq's default is to wait forever
}


class TrackingUnavailable(Exception):
    """MLflow cannot be reached, or refuses a call. Training goes on, and :func:`sync` brings MLflow up to date later."""


def default_uri(store: Store) -> str | None:
    """``sqlite:///<storage>/mlflow.db`` for a local storage; None for a remote one, for which the user must give a URI.

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

    A database gets a server on 127.0.0.1; a tracking server has pages of its own, which the browser opens. Every user of the machine can
    list the command, so a URI with a password is not in it; pass it as MLFLOW_BACKEND_STORE_URI.

    Raises:
        UserError: the URI is of a kind that MLflow does not track to.
    """
    scheme = check_uri(uri)
    if scheme in _SERVERS:
        return [sys.executable, "-m", "webbrowser", shown(uri)]
    # Nothing here runs jobs. Without job execution the server is one process instead of ten of 240 MB each.
    environment = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"]
    server = [sys.executable, "-m", "mlflow", "server"]
    if not secrets_of(uri):
        server += ["--backend-store-uri", uri]
    return [*environment, *server, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def check_uri(uri: str | None) -> str:
    """The URI's scheme, without the driver's name.

    Raises:
        UserError: MLflow does not track to such a URI.
    """
    if not uri:
        raise UserError("no tracking URI: a remote storage needs one, e.g. http://127.0.0.1:5000 or sqlite:////path/mlflow.db.")
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


def _message(error: Exception, uri: str) -> str:
    """The first line of an error's message, without the URI's password."""
    text = str(error).replace(uri, shown(uri)).replace(uri.rstrip("/"), shown(uri).rstrip("/"))
    for secret in secrets_of(uri):
        text = text.replace(secret, "***")
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn every error of MLflow, its database or the network into TrackingUnavailable."""
    prepare()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise TrackingUnavailable(f"MLflow at {shown(uri)}: {type(error).__name__}: {_message(error, uri)}{_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError) and "boto" in str(error):
        return ". MLflow keeps files on S3 through boto3: pip install 'stlab[s3]'"
    return ""


def prepare() -> None:
    """Set short timeouts, no telemetry and no output on the terminal; must run before mlflow is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)  # errors and warnings are still shown
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs errors with traceback that it raises as well
    # The signature is given, and an example would be run again at every upload.
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
    logging.getLogger("urllib3.connectionpool").addFilter(_is_not_a_retry)


def _is_not_a_retry(record: logging.LogRecord) -> bool:
    return "/mlflow" not in record.getMessage()  # TrackingUnavailable reports it once


def connect(uri: str) -> MlflowClient:
    """A client whose store exists; a missing database is created (1-2 s for SQLite).

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
    # MLflow tries an unreachable database ten times, over minutes; a single query here fails sooner.
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
        raise UserError(f"tracking URI {shown(uri)}: {_message(error, uri)}. {remedy}") from error
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()
