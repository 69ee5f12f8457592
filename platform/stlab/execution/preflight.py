"""What can be said of resources and addresses at once, before Ray, which takes seconds to start, is asked."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from stlab.errors import ResourceError
from stlab.execution.autoscaling import workers_on
from stlab.execution.quota import limits, needs
from stlab.study.spec import ResourcesSpec

_CONNECT_SECONDS = 5.0


@contextlib.contextmanager
def threads_of(resources: ResourcesSpec) -> Iterator[None]:
    """As many threads as a worker of a trial has; more would fight over the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(resources.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_machine(wanted: Iterable[ResourcesSpec]) -> None:
    """Refuse what this machine alone could never run.

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


def groups_here(resources: ResourcesSpec) -> int:
    """How many trials with these resources this machine runs at once, within the study's quota; at least one."""
    import torch

    gpus = torch.cuda.device_count()
    if resources.gpus is None:
        resources = resources.model_copy(update={"gpus": 1.0 if gpus else 0.0})
    have = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpus)}
    allowed = {name: min(have[name], most) for name, most in limits([resources]).items()}
    return max(1, workers_on(have | allowed, {name: amount for name, amount in needs(resources).items() if amount}))


def check_address(address: str | None) -> None:
    """Refuse an address nobody listens at; Ray itself would try for minutes.

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
