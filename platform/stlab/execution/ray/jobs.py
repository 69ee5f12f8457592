"""Jobs on a Ray cluster, through its dashboard: submit one, follow it, ask after it, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from stlab.errors import ResourceError, first_line
from stlab.execution.ray import token

# Ray's client tells of every package it sends, on the terminal.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # between two questions after a job that is about to end
_RETRY_SECONDS = 2.0  # before a log that broke off is asked for again
_STOP_SECONDS = 60  # a driver that was asked to stop gets so long before it is killed
_STUDY = "stlab.study"  # names of metadata
_STORAGE = "stlab.storage"


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    job_id: str
    study: str | None
    """The study that it runs; None for a job of another kind."""
    storage: str | None
    status: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    message: str
    entrypoint: str

    @property
    def is_over(self) -> bool:
        return JobStatus(self.status).is_terminal()


class Jobs:
    """The jobs of one cluster.

    Raises:
        ResourceError: nobody answers at the address, it is no dashboard, or it refuses the token; says what to do.
    """

    def __init__(self, address: str) -> None:
        check_dashboard(address)
        self.address = address.rstrip("/")
        with self._answers(), _without_ray_address():
            self._client = JobSubmissionClient(self.address, headers=_token_header())

    @property
    def ray_version(self) -> str:
        """The cluster's."""
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
    ) -> None:
        """Send the packages and the working folder, and start ``python`` with ``arguments`` there.

        Args:
            environment: variables of the driver and of all workers; whoever may ask the cluster can read them.
        """
        # Ctrl-C is what a study knows how to end by; Ray's own default is a SIGTERM, and a SIGKILL 3 s later.
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
                metadata={_STUDY: study, _STORAGE: storage},
            )

    def get(self, job_id: str) -> Job:
        with self._answers():
            return _job(self._client.get_job_info(job_id))

    def of_study(self, study: str) -> list[Job]:
        """The jobs that run or ran a study, the newest first."""
        with self._answers():
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        found = [job for job in jobs if job.study == study or job.job_id == study]
        return sorted(found, key=lambda job: (not job.is_over, job.started_at or datetime.max.replace(tzinfo=UTC)), reverse=True)

    def log(self, job_id: str) -> str:
        """What the job has written so far."""
        with self._answers():
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Hand on what a job writes, from its start to its end. A log that breaks off is taken up where it was."""
        told = 0
        while True:
            try:
                told = asyncio.run(self._tail(job_id, told, write))
            except _BrokenOff as broken:
                told = broken.told
            job = self.get(job_id)
            if job.is_over:
                with contextlib.suppress(ResourceError):  # a job that never began has no log
                    write(self.log(job_id)[told:])
                return job
            time.sleep(_RETRY_SECONDS)

    async def _tail(self, job_id: str, told: int, write: Callable[[str], None]) -> int:
        seen = 0
        try:
            async for lines in self._client.tail_job_logs(job_id):
                fresh = lines[max(0, told - seen) :]
                seen += len(lines)
                if fresh:
                    write(fresh)
                    told = seen
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise _BrokenOff(told) from error
        return told

    def stop(self, job_id: str) -> Job:
        """Ask a job to stop, and wait until it has."""
        with self._answers():
            self._client.stop_job(job_id)
        while not (job := self.get(job_id)).is_over:
            time.sleep(_LOOK_SECONDS)
        return job

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """What the cluster or the way to it refuses becomes a ResourceError that says what to do."""
        try:
            yield
        except AuthenticationError as error:
            raise ResourceError(token.refused(self.address)) from error
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise ResourceError(f"the Ray dashboard at {self.address} does not answer: {first_line(error)}") from error
        except RuntimeError as error:
            raise ResourceError(f"the cluster at {self.address} refuses: {first_line(error)}") from error


class _BrokenOff(Exception):
    """The way to the log ended before the log did, after so many characters."""

    def __init__(self, told: int) -> None:
        super().__init__(told)
        self.told = told


def check_dashboard(address: str) -> None:
    """Refuse what is no address of a dashboard, and one that nobody listens at.

    Raises:
        ResourceError: says which address is meant.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or "head"
        raise ResourceError(f"--address {address}: jobs go through the Ray dashboard, by its URL: --address http://{host}:8265")
    if parts.username or parts.password:
        raise ResourceError("--address: no name or password belongs into it. The cluster's token is read from RAY_AUTH_TOKEN_PATH.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"nobody answers at {address} ({error}). Is the cluster up, and its dashboard reachable from here (its port is 8265; from "
            "outside: kubectl port-forward, ssh -L 8265:localhost:8265, ray dashboard)?"
        ) from error


def _token_header() -> dict[str, Any]:
    """The token as a header, if there is one here; Ray itself sends it only where RAY_AUTH_MODE says so."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    try:
        loader = AuthenticationTokenLoader.instance()
        return dict(loader.get_token_for_http_header(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise ResourceError(f"the cluster's token cannot be read from {token.found_in()}: {error.message}") from error


@contextlib.contextmanager
def _without_ray_address() -> Iterator[None]:
    """Ray's client prefers these variables to the address that it is given."""
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
        storage=metadata.get(_STORAGE),
        status=JobStatus(details.status).value,
        started_at=_time(details.start_time),
        ended_at=_time(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        entrypoint=details.entrypoint,
    )


def _study_of(entrypoint: str) -> str | None:
    """The study of a job that was submitted by Ray's own command: ``python -m stlab run STUDY …``."""
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
