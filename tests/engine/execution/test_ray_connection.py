"""The messages for a cluster that cannot be joined, from Ray's own errors; without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from stlab.errors import ResourceError
from stlab.execution.ray import cluster


def test_another_ray_or_python_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import check_version_info

    theirs = {"ray_version": "2.55.1", "python_version": "3.12.4"}
    monkeypatch.setattr(cluster.ray, "init", lambda **options: check_version_info(theirs, "node 10.0.0.1:6379"))
    with pytest.raises(ResourceError) as refused, cluster.connection("head:6379"):
        pass
    assert "the cluster at head:6379 has Ray 2.55.1 and Python 3.12.4; here are Ray" in str(refused.value)
    assert "pip install ray==2.55.1" in str(refused.value)
    assert refused.value.exit_code == 2


def test_other_errors_of_ray_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(RuntimeError, match="something else"), cluster.connection("head:6379"):
        pass
