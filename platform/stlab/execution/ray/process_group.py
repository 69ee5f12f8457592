"""How the workers of a trial find each other: torch's process group, on Ray's network, in workers that handle SIGTERM."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from stlab.execution.ray.preemption import handle_sigterm

logger = logging.getLogger(__name__)

_INTERFACE = "GLOO_SOCKET_IFNAME"
_MOST_FAILURES = 5  # in a row: a port that was taken meanwhile, a node that was lost


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


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Runs in the controller of a Train run."""

    def on_start(self, worker_group: Any, backend_config: StudyTorchConfig) -> None:
        """Raises WorkerGroupStartupFailedError, after which Ray starts the group anew: any other error would end the Train run."""
        try:
            worker_group.execute(use_rays_network)
            super().on_start(worker_group, backend_config)
        except Exception as error:  # the network failed, or a worker died
            backend_config.failures += 1
            # Ray takes this group for one that has started, and would never free its resources.
            worker_group.get_worker_group_state().shutdown()
            if backend_config.failures >= _MOST_FAILURES:
                raise RuntimeError(f"the workers did not find each other, {_MOST_FAILURES} times over: {error}") from error
            logger.warning("the workers did not find each other; once more: %s", error)
            raise WorkerGroupStartupFailedError(f"the workers did not find each other: {error}") from error
        backend_config.failures = 0

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(handle_sigterm)  # by the actor, in its main thread


@dataclass
class StudyTorchConfig(TorchConfig):
    """A TorchConfig whose workers find each other over Ray's network, and handle SIGTERM."""

    failures: int = 0
    """Failures to set up the process group since the last success. Kept here, as Ray makes one backend for all configurations."""

    @property
    def backend_cls(self) -> type[Any]:
        return _Backend
