"""The owner of a lock: the process that runs a study or trains a trial."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class LockOwner:
    """The process that has a lock, and since when."""

    host: str
    pid: int
    since: str
    """UTC, ISO."""
    job: str | None = None
    """The Ray job that was submitted, if it is one."""

    @classmethod
    def this_process(cls) -> LockOwner:
        # Ray tells a job that was submitted to it who it is.
        submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), now, submitted.get("job_submission_id"))

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"
