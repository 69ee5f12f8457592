"""How long MLflow has been silent."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class Watch:
    """Knows since when a call is under way. One thread calls; others ask."""

    def __init__(self) -> None:
        self._since: float | None = None

    def seconds(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def watched(self, client: MlflowClient) -> MlflowClient:
        """The client, with every call of a method of it noted."""
        return cast("MlflowClient", _Watched(client, self))


class _Watched:
    def __init__(self, client: MlflowClient, watch: Watch) -> None:
        self._client, self._watch = client, watch

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._watch.calling():
                return method(*args, **kwargs)

        return call
