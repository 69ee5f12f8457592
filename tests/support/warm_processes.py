"""Python processes that start warm: forked from one that has torch and the other libraries imported already.

Importing takes a fresh process more than ten seconds of CPU, and the tests start more than a hundred. What a test sees is the same: a
process of its own with its own environment, folder, output and signals, which can be killed. A test of the start itself uses
``subprocess``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

# Without Ray, which reads its variables (the cluster's token among them) once, when it is imported.
PRELOADED = (
    "torch", "torchvision", "timm", "pandas", "pyarrow.parquet", "pyarrow.dataset", "scipy.stats", "optuna", "aiohttp", "requests", "grpc",
    "matplotlib.pyplot", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_pdf", "fontTools.subset",
    "mlflow", "mlflow.store.tracking.sqlalchemy_store",
    "stlab.cli", "stlab.api", "stlab.execution.run_study", "stlab.report.page.report", "stmodels.backbones",
)  # fmt: skip
_REQUEST_BYTES = 1 << 20


class WarmProcess:
    """A process that was forked; what ``subprocess.Popen`` offers of it."""

    def __init__(self, connection: socket.socket, args: Sequence[str], out: IO[str] | None, err: IO[str] | None) -> None:
        self._connection, self.args, self._out, self._err = connection, list(args), out, err
        self.pid = int.from_bytes(connection.recv(8), "big")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            said = self._connection.recv(8)
            assert said, "the process that others are forked from is gone"
            self.returncode = int.from_bytes(said, "big", signed=True)
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What was written to standard output and error, where they are not a log."""
        self.wait(timeout)
        return tuple(self._said(file) for file in (self._out, self._err))  # type: ignore[return-value]

    def output(self) -> str:
        """What was written to standard output so far."""
        return self._said(self._out)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait_until_stopped(self) -> None:
        """Wait until it stands still by SIGSTOP, or has ended."""
        while self.poll() is None and Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.02)

    @staticmethod
    def _said(file: IO[str] | None) -> str:
        if file is None:
            return ""
        file.seek(0)
        return file.read()


class _Server:
    """The process that others are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._address = f"{self._folder.name}/s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._address)
        listener.listen(64)
        root = str(Path(__file__).parents[2])
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        environment = kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_processes", str(listener.fileno())], env=environment, pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        listener.close()
        atexit.register(self._process.kill)

    def ask(self, request: Mapping[str, Any], outputs: Sequence[int]) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        socket.send_fds(connection, [json.dumps(request).encode()], list(outputs))
        return connection


_server: _Server | None = None


def start_python(
    words: Sequence[str], cwd: str | Path, env: Mapping[str, str] | None = None, log: IO[Any] | None = None
) -> WarmProcess:
    """What ``python words…`` starts, in a session of its own: ``-m module …``, ``-c code …`` or ``script.py …``.

    Args:
        log: where standard output and error go; None keeps them for :meth:`WarmProcess.communicate`.
    """
    global _server
    if _server is None:
        _server = _Server()
    out, err = (None, None) if log else (tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+"))  # noqa: SIM115
    outputs = [log.fileno()] * 2 if log else [file.fileno() for file in (out, err) if file]
    request = {"words": list(words), "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
    return WarmProcess(_server.ask(request, outputs), ["python", *words], out, err)


def run_python(words: Sequence[str], cwd: str | Path, env: Mapping[str, str] | None = None, timeout: float = 600) -> WarmProcess:
    """Start such a process and wait for its end, which it does not outlive."""
    process = start_python(words, cwd, env)
    try:
        process.wait(timeout)
    except BaseException:
        process.kill()
        raise
    return process


def _serve(listener: socket.socket) -> NoReturn:
    before = set(os.environ)
    for module in PRELOADED:
        importlib.import_module(module)
    by_imports = {name: value for name, value in os.environ.items() if name not in before}
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, wake, sys.stdin], [], [])
        if sys.stdin in ready:  # whoever started this has ended
            os._exit(0)
        if wake in ready:
            os.read(wake, 4096)
            _tell_ended(children)
        if listener in ready:
            connection, _ = listener.accept()
            request, outputs, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 2)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                listener.close()
                connection.close()
                for other in children.values():
                    other.close()
                _become(json.loads(request), outputs, by_imports)
            for output in outputs:
                os.close(output)
            children[pid] = connection
            connection.send(pid.to_bytes(8, "big"))


def _tell_ended(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError), children.pop(pid) as connection:
            connection.send(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))


def _become(request: Mapping[str, Any], outputs: Sequence[int], by_imports: Mapping[str, str]) -> NoReturn:
    """Be what was asked for, as a fresh interpreter would, and end as one.

    Args:
        by_imports: variables that modules set when they are imported, where they are not set.
    """
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nowhere, 0), (outputs[0], 1), (outputs[1], 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(by_imports | request["env"])
    os.chdir(request["cwd"])
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1 if number == 2 else -1) for number in (1, 2))
    code = _code_of(request["words"])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _code_of(words: Sequence[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = ["-m", *words[2:]]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = list(words)
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except (Exception, KeyboardInterrupt):  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
