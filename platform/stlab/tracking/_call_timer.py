"""The duration of the call to MLflow that is under way."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class CallTimer:
    """Knows when the current call began. One thread makes calls; other threads read the time."""

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

    def timed(self, client: MlflowClient) -> MlflowClient:
        """A client whose method calls are timed."""
        return cast("MlflowClient", _TimedClient(client, self))


class _TimedClient:
    def __init__(self, client: MlflowClient, timer: CallTimer) -> None:
        self._client, self._timer = client, timer

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._timer.calling():
                return method(*args, **kwargs)

        return call
