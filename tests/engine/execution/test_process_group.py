"""How the workers of a trial find each other: over which network, and what becomes of a try that fails. Without a cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest

ray_exceptions = pytest.importorskip("ray.exceptions")

from ray.train import ControllerError, FailureConfig  # noqa: E402
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError  # noqa: E402
from ray.train.v2._internal.execution.failure_handling import FailureDecision  # noqa: E402
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy  # noqa: E402

from stlab.errors import PeerLost  # noqa: E402
from stlab.execution.ray import process_group  # noqa: E402
from stlab.execution.ray.process_group import ProcessGroupConfig, interface_of, use_rays_network  # noqa: E402

REFUSED = RuntimeError("Gloo connectFullMesh failed: Connection refused, remote=[127.0.1.1]:29602")


class Workers:
    """A worker group of which only this process is."""

    given_back = 0

    def execute(self, function: Callable[[], Any]) -> None:
        function()

    def __len__(self) -> int:
        return 1

    def execute_single(self, rank: int, function: Callable[[], Any]) -> Any:
        return function()

    def execute_single_async(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def get_worker_group_state(self) -> Workers:
        return self

    def shutdown(self) -> None:
        Workers.given_back += 1


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """Sets the process group up, by one backend; torch's own part of it ends as told."""
    config = ProcessGroupConfig("gloo", patience_seconds=60)
    backend = config.backend_cls()
    monkeypatch.setattr(process_group, "use_rays_network", lambda: None)
    monkeypatch.setattr(process_group, "get_address_and_port", lambda: ("127.0.0.1", 1))
    monkeypatch.setattr(process_group.ray, "get", lambda answers, **_: answers)

    def call(error: Exception | None) -> None:
        def join(*_: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(process_group, "join", join)
        backend.on_start(Workers(), config)

    return call


def _decision(error: Exception) -> FailureDecision:
    return DefaultFailurePolicy(FailureConfig(max_failures=-1)).make_decision(ControllerError(error))


def test_workers_that_do_not_find_each_other_are_started_anew_but_not_for_ever(start: Callable[[Exception | None], None]) -> None:
    assert _decision(REFUSED) is FailureDecision.RAISE, "as Ray has it, one refused connection ends the whole run"
    before = Workers.given_back
    for _ in range(4):
        with pytest.raises(WorkerGroupStartupFailedError, match="did not find each other: Gloo connectFullMesh") as failed:
            start(REFUSED)
        assert _decision(failed.value) is FailureDecision.RETRY
    with pytest.raises(RuntimeError, match=r"5 times over: .*Connection refused") as failed_for_good:
        start(REFUSED)
    assert _decision(failed_for_good.value) is FailureDecision.RAISE
    assert Workers.given_back == before + 5, "what the group held of the cluster"


def test_failures_count_in_a_row(start: Callable[[Exception | None], None]) -> None:
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(WorkerGroupStartupFailedError):
                start(REFUSED)
        start(None)


def test_a_worker_that_dies_meanwhile_is_replaced(start: Callable[[Exception | None], None]) -> None:
    before = Workers.given_back
    with pytest.raises(WorkerGroupStartupFailedError, match="The actor died"):
        start(ray_exceptions.RayActorError(error_msg="The actor died."))
    assert Workers.given_back == before + 1


def test_gloo_listens_where_ray_does_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {
        found.address: name for name, each in psutil.net_if_addrs().items() for found in each if found.family == socket.AF_INET
    }
    assert interface_of("203.0.113.7") is None
    for address, name in addresses.items():
        assert interface_of(address) == name
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda at=address: at)
        use_rays_network()
        assert process_group.os.environ["GLOO_SOCKET_IFNAME"] == name
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_rays_network()
    assert process_group.os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_worker_that_misses_another_lets_it_speak_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the other is gone is known a little earlier than why, and the first error that Ray sees decides."""
    from stlab.execution.ray import worker
    from stlab.study.spec import ResourcesSpec

    waited: list[float] = []

    class Missing:
        def __init__(self, group: object) -> None: ...

        def take(self) -> None:
            raise PeerLost("Connection closed by peer")

    monkeypatch.setattr(worker, "_Worker", Missing)
    monkeypatch.setattr(worker.time, "sleep", waited.append)
    with pytest.raises(PeerLost):
        worker.train_trials({"group": worker.WorkerGroup(0, ResourcesSpec(gpus=0), None, "runs", "group", "scratch")})
    assert waited == [10.0]
