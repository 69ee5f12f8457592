"""What a Train worker does: take a trial from the board, train it, take the next."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train

from stlab.execution.board import MAX_ATTEMPTS, Assignment, Wait
from stlab.results import Store, TrialDirectory
from stlab.spec import ResourcesSpec, TrialSpec

_WAIT_SECONDS = 0.5  # between two questions of a worker group that has nothing to do


def work_off(job: Mapping[str, Any]) -> None:
    """Work off a pack, and help with others. Called on every worker of the group."""
    import torch

    from stlab.training import run_trial

    resources = ResourcesSpec(**job["resources"])
    # One thread more than cores is costly: the pools of several workers would fight over them.
    torch.set_num_threads(max(1, int(resources.cpus)))
    board, store = job["board"], Store(job["storage"])
    lead = ray.train.get_context().get_world_rank() == 0
    while (assignment := _take(board, job["pack"], lead)) is not None:
        if isinstance(assignment, Wait):
            time.sleep(_WAIT_SECONDS)
            continue
        if assignment.spec is None:
            spec, identity = job["work"][assignment.trial_id]
        else:
            spec, identity = assignment.spec, assignment.identity or {}
        directory = TrialDirectory(store, assignment.trial_id)

        def report(event: Mapping[str, Any], taken: Assignment = assignment) -> str | None:
            board.say.remote({**event, "trial_id": taken.trial_id})
            if not taken.prunable or event["kind"] != "epochs":
                return None
            stop: str | None = ray.get(board.report.remote(job["pack"], event["rows"]))
            return stop

        if assignment.attempt > MAX_ATTEMPTS:
            status = "failed"
            if lead:
                directory.write_failure(
                    {
                        "reason": f"its workers died {MAX_ATTEMPTS} times, out of memory perhaps; see the logs of Ray",
                        "log_tail": [],
                    }
                )
        else:
            test = job["test"] if assignment.spec is None else assignment.test
            trial = TrialSpec(**spec)
            status = run_trial(trial, identity, directory, test=test, report=report, prunable=assignment.prunable).value
        if lead:
            ray.get(board.end.remote(job["pack"], status))
    ray.train.report({"pack": job["pack"]})


def _take(board: Any, pack: int, lead: bool) -> Assignment | Wait | None:
    """The next trial, the same on every worker of the group."""
    import torch.distributed as dist

    box: list[Assignment | Wait | None] = [ray.get(board.take.remote(pack)) if lead else None]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
