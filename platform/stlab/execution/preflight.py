"""The checks that are made before anything trains: protocol, address, this machine's resources, models, variants.

None of them asks Ray, which takes seconds to start; what only Ray knows is checked where it is asked.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

from stlab.errors import ResourceError
from stlab.execution.models import build_model
from stlab.execution.noop_variants import refuse_noop_variants
from stlab.search.space import Space
from stlab.storage import single_protocol
from stlab.study.plan import Plan, PlannedTrial, plan_point
from stlab.study.spec import ResourcesSpec

_CONNECT_SECONDS = 5.0


def check_before_training(plan: Plan, trials: Sequence[PlannedTrial], is_searching: bool, address: str | None) -> None:
    """Refuse a study that could not be run to its end, or whose table would mislead.

    Args:
        trials: those that are left to train.
        is_searching: whether searches are left, too.
        address: the cluster, where it is not this machine.

    Raises:
        UserError: says what is wrong.
    """
    possible = [*trials, *(_corner_trials(plan) if is_searching else ())]
    if address is None:
        check_machine({trial.spec.resources for trial in possible})
    check_models(possible)
    if any(not trial.spec.baseline for trial in trials):
        refuse_noop_variants(plan)


def _corner_trials(plan: Plan) -> Iterator[PlannedTrial]:
    """Trials that have every choice of a search between them, so that building their models builds every kind there may be."""
    assert plan.study.search is not None
    for branch in (one for lead in plan.branches for one in lead.everywhere):
        yield branch.template
        space = Space(plan.study.search, branch)
        for path, _, point in space.corners():
            if path.startswith("model.") and space.fields[path].categorical is not None:
                yield plan_point(plan.study, branch, point)


def check_protocol(plan: Plan) -> None:
    """Refuse a study whose table of a data set would mix protocols.

    Raises:
        ProtocolMismatch: names the field that differs.
    """
    trials = [*plan.trials, *(branch.template for lead in plan.branches for branch in lead.everywhere)]
    for dataset in dict.fromkeys(trial.spec.dataset_entry for trial in trials):
        own = [trial for trial in trials if trial.spec.dataset_entry == dataset]
        single_protocol({**t.identity, "variant": t.spec.variant, "trial_id": t.trial_id} for t in own)


def check_address(address: str | None) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes.

    Raises:
        ResourceError: no answer at ``host:port`` or ``ray://host:port``.
    """
    if address is None or ":" not in address:
        return  # this machine's own, or `auto`
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme in ("http", "https"):
        raise ResourceError(
            f"{address} is a Ray dashboard, which takes jobs: stlab submit STUDY --address {address} …. stlab run joins a cluster "
            "from within: --address auto on one of its nodes, or host:6379."
        )
    try:
        target = (parts.hostname or "", parts.port or 10001)
        socket.create_connection(target, timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({error}). Start one (ray start --head), or leave --address out."
        ) from error


def check_machine(wanted: Iterable[ResourcesSpec]) -> None:
    """Refuse resources that this machine alone could never provide.

    Raises:
        ResourceError: more CPUs or GPUs than there are; names the field.
    """
    import torch

    have = {"cpus": os.cpu_count() or 1, "gpus": torch.cuda.device_count()}
    for resources in wanted:
        for field, there in have.items():
            amount = getattr(resources, field) or 0
            if amount * resources.workers > there:
                raise ResourceError(
                    f"a trial asks for {amount * resources.workers:g} {field.upper()[:-1]} (resources.{field}={amount:g} × "
                    f"resources.workers={resources.workers}); this machine has {there}. Lower resources.{field} or "
                    "resources.workers, or give the --address of a larger Ray cluster."
                )


def check_models(trials: Iterable[PlannedTrial]) -> None:
    """Build each distinct model once, so that missing weights are reported before anything trains.

    Raises:
        StudyError: as :func:`build_model`.
    """
    seen = set()
    for trial in trials:
        key = (json.dumps(trial.spec.model, sort_keys=True), trial.spec.data)
        if key not in seen:
            seen.add(key)
            build_model(trial.spec)
