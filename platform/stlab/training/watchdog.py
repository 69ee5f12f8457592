"""A watchdog that notices when a step never ends."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator


class HungStep(Exception):
    """A step took longer than ``train.step_timeout`` and did end after all. The trial has been recorded as failed."""


class Watchdog:
    """A thread that watches the one that made it, from ``with`` to its end.

    It notices a thread that waits without Python's global lock, as it does in PyTorch, file systems and sockets. On a GPU, steps are
    queued, so a hung one shows only where its results are waited for.

    Args:
        seconds: longest time between two calls of :meth:`tick`. With None nothing is watched, and no thread is made.
        on_hang: called once, from the watchdog's thread, with the lines of the stack of the thread that hangs.
    """

    def __init__(self, seconds: float | None, on_hang: Callable[[list[str]], None]) -> None:
        self.seconds, self.on_hang = seconds, on_hang
        self._watched = threading.get_ident()
        self._last: float | None = None  # time of the last tick; None while nothing is watched
        self._has_fired = threading.Event()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self.seconds is not None:
            self._thread = threading.Thread(target=self._watch, name="stlab-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Steps are taken within this block, so it is watched."""
        before, self._last = self._last, time.monotonic()
        try:
            yield
        finally:
            self._last = before

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """This block is not watched, because it takes no step. It may write to a slow store, say."""
        before, self._last = self._last, None
        try:
            yield
        finally:
            self._last = None if before is None else time.monotonic()

    def tick(self) -> None:
        """A step has ended.

        Raises:
            HungStep: it took too long.
        """
        if self._has_fired.is_set():
            raise HungStep(f"no step ended for {self.seconds:g} s (train.step_timeout)")
        if self._last is not None:
            self._last = time.monotonic()

    def _watch(self) -> None:
        seconds = float(self.seconds or 0.0)
        while not self._end.wait(min(1.0, seconds / 10)):
            last = self._last
            if last is not None and time.monotonic() - last > seconds:
                self._has_fired.set()
                frame = sys._current_frames().get(self._watched)
                stack = "".join(traceback.format_stack(frame)).splitlines() if frame is not None else []
                self.on_hang(stack)
                return
