"""Jobs on a Ray cluster, through its dashboard: submit, follow, query and stop them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from stlab.errors import ResourceError, first_line
from stlab.execution.ray import token

# Ray's client logs every package that it sends to the terminal.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_T = TypeVar("_T")

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0  # time limit of a request; while following a job it is then repeated
_SILENCE_SECONDS = 60.0  # a log that is silent for this time is opened again, since a dead connection may give no sign
_PATIENCE_SECONDS = 300.0  # how long requests are repeated while the connection to the cluster is interrupted
_PAUSES = (1.0, 30.0)  # seconds between two of these requests: the first pause and the longest
_LOOK_SECONDS = 0.5  # between two requests for the status of a job that is stopping
_RETRY_SECONDS = 2.0  # before a log that broke off is opened again
_STOP_SECONDS = 60  # a driver has this time to stop before it is killed
_TEMPORARY = re.compile(r"status code (429|5\d\d)")  # temporary errors of a proxy or of the dashboard
_STUDY = "stlab.study"  # keys of the metadata of a job
_STORAGE = "stlab.storage"
_AGAIN = "stlab.again"


@dataclass(frozen=True)
class Job:
    """A job on the cluster."""

    job_id: str
    study: str | None
    """The study that it runs. None for a job of another kind."""
    status: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    message: str
    entrypoint: str
    again: str | None = None
    """The words after ``stlab submit`` that continue it, without the address. None for a job that stlab did not submit."""

    @property
    def is_over(self) -> bool:
        return JobStatus(self.status).is_terminal()


class OutOfSight(ResourceError):
    """The job that was followed cannot be seen any more. This is not an error of the user, so it has an exit code of its own."""

    exit_code = 3

    def __init__(self, message: str, *, goes_on: bool) -> None:
        super().__init__(message)
        self.goes_on = goes_on
        """Whether the job may still run. False if the cluster does not know it any more."""


class Away(ResourceError):
    """The dashboard does not answer, or a proxy reports that it does not."""


class _Client(JobSubmissionClient):
    """Ray's client with a time limit for answers, without which a dead connection would block it forever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        if method == "GET":
            options.setdefault("timeout", (_CONNECT_SECONDS, _ANSWER_SECONDS))
        return super()._do_request(method, endpoint, **options)


class Jobs:
    """The jobs of one cluster.

    Raises:
        ResourceError: nothing answers at the address, it is not a dashboard, or it refuses the token. The message gives the remedy.
    """

    def __init__(self, address: str) -> None:
        check_dashboard(address)
        self.address = address.rstrip("/")
        with self._answers(), _without_ray_address():
            self._client = _Client(self.address, headers=_token_header())

    @property
    def ray_version(self) -> str:
        """The version of Ray on the cluster."""
        return str(self._client._server_ray_version)

    def submit(
        self,
        job_id: str,
        arguments: Sequence[str],
        *,
        packages: Sequence[Path],
        working_dir: Path,
        study: str,
        storage: str,
        environment: Mapping[str, str],
        again: Sequence[str],
    ) -> None:
        """Send the packages and the working folder, and start ``python`` with ``arguments`` there.

        Args:
            environment: variables of the driver and of all workers. Every user of the cluster can read them.
            again: the words that continue the job; see :class:`Job`.
        """
        # A study ends cleanly on SIGINT. By default Ray sends SIGTERM, and SIGKILL 3 s later.
        stop = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
        with self._answers():
            self._client.submit_job(
                entrypoint=shlex.join(["python", *arguments]),
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(working_dir),
                    "py_modules": [str(path) for path in packages],
                    "env_vars": {**stop, **environment},
                },
                metadata={_STUDY: study, _STORAGE: storage, _AGAIN: shlex.join(again)},
            )

    def get(self, job_id: str) -> Job:
        with self._answers():
            return _job(self._client.get_job_info(job_id))

    def of_study(self, study: str) -> list[Job]:
        """The jobs that run or ran a study, newest first."""
        with self._answers():
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        found = [job for job in jobs if job.study == study or job.job_id == study]
        return sorted(found, key=lambda job: (not job.is_over, job.started_at or datetime.max.replace(tzinfo=UTC)), reverse=True)

    def log(self, job_id: str) -> str:
        """The log of the job so far."""
        with self._answers():
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Pass on the log of a job from its start to its end. A log that breaks off is continued at the same place.

        Args:
            write: gets the text of the log.
            say: gets a line when the connection to the cluster is interrupted, and one when it is back.

        Raises:
            OutOfSight: the cluster does not answer for minutes, refuses the token, or does not know the job any more.
        """
        written = 0
        while True:
            written = asyncio.run(self._tail(job_id, written, write))
            job = self._patiently(lambda: self.get(job_id), job_id, say)
            if job.is_over:
                with contextlib.suppress(OutOfSight):  # a job that never began has no log
                    write(self._patiently(lambda: self.log(job_id), job_id, say)[written:])
                return job
            time.sleep(_RETRY_SECONDS)

    async def _tail(self, job_id: str, written: int, write: Callable[[str], None]) -> int:
        """Pass on a log, after its first ``written`` characters, until it ends, breaks off or is silent."""
        log, seen = self._client.tail_job_logs(job_id), 0  # Ray always sends a log from its start
        while True:
            try:
                lines = await asyncio.wait_for(anext(log), _SILENCE_SECONDS)
            except (StopAsyncIteration, aiohttp.ClientError, OSError, RuntimeError):
                return written
            fresh = lines[max(0, written - seen) :]
            seen += len(lines)
            if fresh:
                write(fresh)
                written = seen

    def _patiently(self, ask: Callable[[], _T], job_id: str, say: Callable[[str], None]) -> _T:
        """The answer to a request about a job. The request is repeated, with growing pauses, while the cluster does not answer."""
        pause, until = _PAUSES[0], None
        while True:
            try:
                answer = ask()
            except Away as error:
                now = time.monotonic()
                if until is None:
                    until = now + _PATIENCE_SECONDS
                    say(f"{error}. The job is not affected; trying again for {_PATIENCE_SECONDS / 60:.0f} minutes.")
                if now >= until:
                    raise OutOfSight(str(error), goes_on=True) from error
                time.sleep(min(pause, until - now))
                pause = min(2 * pause, _PAUSES[1])
            except ResourceError as error:
                if "does not exist" not in str(error):
                    raise OutOfSight(str(error), goes_on=True) from error
                message = f"the cluster at {self.address} has lost job {job_id}: its head was restarted. What is trained stays."
                raise OutOfSight(message, goes_on=False) from error
            else:
                if until is not None:
                    say(f"The Ray dashboard at {self.address} answers again.")
                return answer

    def stop(self, job_id: str) -> Job:
        """Ask a job to stop, and wait until it has."""
        with self._answers():
            self._client.stop_job(job_id)
        while not (job := self.get(job_id)).is_over:
            time.sleep(_LOOK_SECONDS)
        return job

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn errors of the cluster or of the connection into a ResourceError that gives the remedy."""
        try:
            yield
        except AuthenticationError as error:
            raise ResourceError(token.refused(self.address)) from error
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise Away(f"the Ray dashboard at {self.address} does not answer: {first_line(error)}") from error
        except RuntimeError as error:
            if _TEMPORARY.search(str(error)):
                raise Away(f"the Ray dashboard at {self.address} cannot answer: {first_line(error)}") from error
            raise ResourceError(f"the cluster at {self.address} refuses: {first_line(error)}") from error


def check_dashboard(address: str) -> None:
    """Check that the address is that of a dashboard, and that it answers.

    Raises:
        ResourceError: it is not; the message shows the form of the address.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or "head"
        raise ResourceError(f"--address {address}: give the URL of the Ray dashboard, which manages jobs: --address http://{host}:8265")
    if parts.username or parts.password:
        raise ResourceError("--address: leave out user name and password. The cluster's token is read from RAY_AUTH_TOKEN_PATH.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"nothing answers at {address} ({error}). Is the cluster up, and its dashboard reachable from here (its port is 8265; from "
            "outside: kubectl port-forward, ssh -L 8265:localhost:8265, ray dashboard)?"
        ) from error


def _token_header() -> dict[str, Any]:
    """The token as a header, if this machine has one. Ray itself sends it only if RAY_AUTH_MODE is set."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    try:
        loader = AuthenticationTokenLoader.instance()
        return dict(loader.get_token_for_http_header(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise ResourceError(f"the cluster's token cannot be read from {token.found_in()}: {error.message}") from error


@contextlib.contextmanager
def _without_ray_address() -> Iterator[None]:
    """Remove these variables for a while, since Ray's client prefers them to the address that it is given."""
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        job_id=details.submission_id or "",
        study=metadata.get(_STUDY) or _study_of(details.entrypoint),
        status=JobStatus(details.status).value,
        started_at=_time(details.start_time),
        ended_at=_time(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        entrypoint=details.entrypoint,
        again=metadata.get(_AGAIN),
    )


def _study_of(entrypoint: str) -> str | None:
    """The study of a job that was submitted with Ray's own command: ``python -m stlab run STUDY …``."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    for command, run, study in zip(words, words[1:], words[2:], strict=False):
        if Path(command).name == "stlab" and run == "run":
            return Path(study).stem if study.endswith((".yaml", ".yml")) else study
    return None


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
