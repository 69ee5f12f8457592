"""How the workers of a trial find each other: torch's process group, on Ray's network, in workers that handle SIGTERM.

Ray's own TorchConfig does the same. But it imports torch in the process that controls the workers, too, where nothing else needs it; that
would cost each group seconds.
"""

from __future__ import annotations

import datetime
import logging
import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from stlab.execution.ray.preemption import handle_sigterm

logger = logging.getLogger(__name__)

_INTERFACE = "GLOO_SOCKET_IFNAME"
_MOST_FAILURES = 5  # in a row: a port that was taken meanwhile, a node that was lost
_LEAVE_SECONDS = 30  # for workers to leave their group at the end of a run


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address; None where none has."""
    for name, found in psutil.net_if_addrs().items():
        if any(a.address == address for a in found):
            return name
    return None


def use_rays_network() -> None:
    """Have gloo listen where Ray does, unless the environment says where.

    Otherwise gloo takes the address that this machine's own name has in ``/etc/hosts``. On many machines that is a loopback address,
    which no other node reaches.
    """
    if _INTERFACE not in os.environ and (name := interface_of(ray.util.get_node_ip_address())) is not None:
        os.environ[_INTERFACE] = name


def join(backend: str, address: str, port: int, rank: int, size: int, patience_seconds: float) -> None:
    """Join the process group whose first worker has an address. Called on every worker of a group.

    Raises:
        RuntimeError, torch.distributed.DistError: the others were not found.
    """
    import torch.distributed as dist

    host = f"[{address}]" if ":" in address else address  # IPv6
    patience = datetime.timedelta(seconds=patience_seconds)
    dist.init_process_group(backend, init_method=f"tcp://{host}:{port}", rank=rank, world_size=size, timeout=patience)


def leave() -> None:
    """Leave the process group. Called on every worker of a group."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


class _ProcessGroup(Backend):  # type: ignore[misc]
    """Runs in the controller of a Train run."""

    share_cuda_visible_devices = True
    """Workers on one node see each other's GPUs, as NCCL wants it."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Raises WorkerGroupStartupFailedError, after which Ray starts the group anew: any other error would end the Train run."""
        try:
            self._connect(worker_group, backend_config)
        except Exception as error:  # the network failed, or a worker died
            backend_config.failures += 1
            # Ray takes this group for one that has started, and would never free its resources.
            worker_group.get_worker_group_state().shutdown()
            if backend_config.failures >= _MOST_FAILURES:
                raise RuntimeError(f"the workers did not find each other, {_MOST_FAILURES} times over: {error}") from error
            logger.warning("the workers did not find each other; once more: %s", error)
            raise WorkerGroupStartupFailedError(f"the workers did not find each other: {error}") from error
        backend_config.failures = 0

    def _connect(self, worker_group: Any, config: ProcessGroupConfig) -> None:
        worker_group.execute(use_rays_network)
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get([
            worker_group.execute_single_async(rank, join, config.backend, address, port, rank, size, config.patience_seconds)
            for rank in range(size)
        ])  # fmt: skip

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(handle_sigterm)  # by the actor, in its main thread

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(leave), timeout=_LEAVE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            logger.warning("the workers did not leave their group within %d s", _LEAVE_SECONDS)


@dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]
    """A process group of torch's over Ray's network, in workers that handle SIGTERM."""

    backend: str
    """``nccl`` or ``gloo``."""
    patience_seconds: float
    """A worker waits so long for the others."""
    failures: int = 0
    """Failures to set up the process group since the last success. Kept here, as Ray makes one backend for all configurations."""

    @property
    def backend_cls(self) -> type[Any]:
        return _ProcessGroup
