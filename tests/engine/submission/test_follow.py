"""Following a job whose cluster goes away for a while, or for good: with a client that fails as Ray's does, in seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

LINES = [f"line {number}\n" for number in range(20)]
GONE = "Max retries exceeded"


class Dashboard:
    """Ray's client to a job of twenty lines: its log breaks off after five, and the next questions are not answered."""

    def __init__(self, failures: list[Exception], hangs: bool = False) -> None:
        self.failures, self.hangs = failures, hangs
        self.asked = self.opened = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        import asyncio

        self.opened += 1
        if self.opened > 1:
            yield "".join(LINES[:3])  # what is told already comes again, cut otherwise
            yield "".join(LINES[3:])
            return
        yield "".join(LINES[:5])
        if self.hangs:
            await asyncio.sleep(60)
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job_id: str) -> JobDetails:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        status = JobStatus.SUCCEEDED if self.opened > 1 else JobStatus.RUNNING
        return JobDetails(type=JobType.SUBMISSION, submission_id=job_id, status=status, entrypoint="stlab run x", driver_exit_code=0)

    def get_job_logs(self, job_id: str) -> str:
        return "".join(LINES)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dashboard], int]:
    """``stlab submit``'s following, with pauses of nothing: its exit code."""
    from stlab.cli.cluster import follow_to_end
    from stlab.cli.options import console_for_output
    from stlab.submission import jobs

    for name, value in {"_PAUSES": (0.01, 0.05), "_PATIENCE_SECONDS": 0.4, "_RETRY_SECONDS": 0.0, "_SILENCE_SECONDS": 0.5}.items():
        monkeypatch.setattr(jobs, name, value)

    def call(dashboard: Dashboard) -> int:
        found = object.__new__(jobs.Jobs)
        found.address, found._client = "http://head:8265", dashboard  # type: ignore[assignment]
        return follow_to_end(console_for_output(), found, "x-1", "x")

    return call


def _away() -> Exception:
    import requests

    return requests.exceptions.ConnectionError(GONE)


@pytest.mark.parametrize("failure", [_away(), RuntimeError("Request failed with status code 502: Bad Gateway.")], ids=["refused", "502"])
def test_a_dropped_connection_is_tried_again_and_no_line_comes_twice(
    failure: Exception, follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(Dashboard([failure] * 4)) == 0
    told = capsys.readouterr()
    assert told.out == "".join(LINES) + "x-1 is done.\n"
    assert told.err.count("answer: ") == 1
    assert told.err.count("trying again") == 1
    assert "http://head:8265 answers again" in told.err


def test_a_connection_that_is_dead_without_a_sign_is_opened_anew(follow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(Dashboard([], hangs=True)) == 0
    told = capsys.readouterr()
    assert told.out == "".join(LINES) + "x-1 is done.\n"
    assert told.err == ""


def test_a_cluster_that_stays_away_leaves_the_job_running_and_ends_with_3(follow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard = Dashboard([_away() for _ in range(1000)])
    assert follow(dashboard) == 3
    assert 4 < dashboard.asked < 100  # the pauses grow
    told = capsys.readouterr()
    assert told.out.startswith("".join(LINES[:5]))
    assert "The job x-1 goes on.\n" in told.out
    assert "logs x-1 --follow --address http://head:8265" in told.out
    assert "stop x --address http://head:8265" in told.out
    assert GONE in told.err


def test_a_job_that_the_cluster_does_not_know_any_more_is_not_said_to_go_on(follow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(Dashboard([_away(), RuntimeError("Request failed with status code 404: Job x-1 does not exist.")])) == 3
    told = capsys.readouterr()
    assert "goes on" not in told.out
    assert "has lost job x-1" in told.err


def test_an_output_that_is_closed_is_no_broken_connection(follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stlab.cli import cluster

    def closed(text: str) -> None:
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr(cluster, "_write", closed)
    dashboard = Dashboard([])
    with pytest.raises(BrokenPipeError):
        follow(dashboard)
    assert dashboard.opened == 1
