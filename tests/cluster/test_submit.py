"""Studies as jobs on a real two-node cluster with token authentication, whose Python has no stlab of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.ray_nodes import new_cluster, running

ROOT = Path(__file__).resolve().parents[2]
WAIT = 600  # for a job, on a busy machine

# The name of a variant that a shell would run, wherever it is quoted by hand: unquoted, in '…' and in "…".
EVIL = """variants={full: {}, "a$(touch pwned_a)'; touch pwned_b; '": {model.flow: false, model.cross_prompt_layers: 0}}"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The two nodes, run by a Python that has stlab's dependencies and not stlab; the client's token is set."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Path files in there, such as an editable install's, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"):
            patch.delenv(name, raising=False)
        # An editable install leaves the shipped studies there, in a folder `stlab` without any code.
        assert subprocess.run([python, "-c", "import stlab.cli"], capture_output=True, cwd=folder).returncode == 1
        patch.setattr(sys, "executable", str(python))
        cluster = new_cluster(dashboard=True)
        with running(cluster) as nodes:
            patch.undo()
            patch.setenv("RAY_AUTH_TOKEN", nodes.token)
            yield nodes


@pytest.fixture
def here(stlab: Any, cluster: Any, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line called in this process, in the folder of all: for commands that only ask the cluster."""
    monkeypatch.chdir(stlab.folder)
    return say


@pytest.fixture(scope="module")
def submit(stlab: Any, cluster: Any, study_text: str) -> Any:
    """The words after ``stlab submit`` for a file of this name, with two trials; further options follow."""

    def call(name: str, *options: str) -> list[str]:
        text = study_text.replace("name: tiny", f"name: {name}").replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
        (stlab.folder / f"{name}.yaml").write_text(text)
        return [f"{name}.yaml", "--address", cluster.dashboard, "--storage", str(stlab.folder / "runs"), *options]

    return call


def test_what_looks_for_traces_finds_them(tmp_path: Path) -> None:
    words = sorted(secrets.token_hex(16) for _ in range(1000))
    table = pa.table({"text": [None, *words[1:]], "lists": [[word] for word in words]})
    for column in table.column_names:
        pq.write_table(table.select([column]), tmp_path / "a.parquet", compression="zstd")
        assert words[500].encode() not in (tmp_path / "a.parquet").read_bytes()
        assert _mentions(tmp_path, words[500]) == [tmp_path / "a.parquet"]
    pq.write_table(table.slice(0, 1).replace_schema_metadata({"note": words[500]}), tmp_path / "a.parquet", compression="zstd")
    assert _mentions(tmp_path, words[500]) == [tmp_path / "a.parquet"]
    (tmp_path / "b.json").write_text("{'a': 'no such thing'}")
    assert _mentions(tmp_path, "no such thing") == [tmp_path / "b.json"]
    for number, quoted in enumerate([f"--set {EVIL}", f"--set '{EVIL}'", f'--set "{EVIL}"']):
        (folder := tmp_path / str(number)).mkdir()
        subprocess.run(["sh", "-c", f": {quoted}"], cwd=folder, capture_output=True, check=False)
        assert _pwned(folder), quoted
    subprocess.run(["sh", "-c", f": --set {shlex.quote(EVIL)}"], cwd=tmp_path, check=True)
    assert not list(tmp_path.glob("*pwned*"))


def test_a_submitted_study_runs_to_its_end(stlab: Any, here: Any, cluster: Any, submit: Any, tmp_path: Path) -> None:
    """One of its models is a file of the user's, which the nodes get with the job and keep in the storage.

    Slow: a job's driver starts, and two worker groups.
    """
    from stlab.cli.cluster import _kilobytes
    from stlab.submission.package import package_folders, size

    example = re.search(r"^```python\n(.*?)^```", (ROOT / "models" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert example is not None
    (stlab.folder / "mine.py").write_text(example[1])
    own = ("--set", "variants.own.model.name=./mine.py:MyConfig")
    answer = stlab("submit", *submit("sent", "--set", "train.lr=1e-3", "--set", EVIL, *own), timeout=WAIT)
    (stlab.folder / "mine.py").unlink()
    assert answer.code == 0, answer
    package = _kilobytes(size(package_folders(tmp_path)))
    study = _kilobytes((stlab.folder / "sent.yaml").stat().st_size + len(example[1].encode()))
    assert f"sending  stlab {package}, the study {study}, to {cluster.dashboard}\n" in answer.out
    job_id = next(line.split()[1] for line in answer.out.splitlines() if line.startswith("job "))
    assert job_id.startswith("sent-")
    assert "✓   3/3" in answer.out
    rows = pd.read_parquet(stlab.folder / "runs/studies/sent/results/trials.parquet")
    assert rows.set_index("variant")["param.model.name"]["own"] == "mine.py:MyConfig"
    assert [path.name for path in stlab.folder.glob("runs/code/*/*")] == ["mine.py"]
    assert set(rows.status) == {"finished"}
    assert set(rows["param.train.lr"]) == {1e-3}
    there = here("status", "sent", "--storage", "runs", "--address", cluster.dashboard)
    assert "sent: 3 trials: 3 finished" in there.out
    assert f"{job_id} succeeded" in there.out
    assert "✓   3/3" in here("logs", "sent", "--address", cluster.dashboard).out
    assert "no job runs 'sent'" in here("stop", "sent", "--address", cluster.dashboard).err
    _holds_no_token(cluster, stlab.folder, job_id)


def _holds_no_token(cluster: Any, folder: Path, job_id: str) -> None:
    """Neither the job, nor its log, nor what it left behind."""
    code = "import sys; from ray.job_submission import JobSubmissionClient as C; c = C(sys.argv[1]); job = sys.argv[2]; "
    code += "print(c.get_job_info(job), c.get_job_logs(job))"
    told = subprocess.run(
        [sys.executable, "-c", code, cluster.dashboard, job_id], env=cluster.environment, capture_output=True, text=True, check=True
    ).stdout
    assert "stlab run sent.yaml" in told
    assert cluster.token not in told
    assert _mentions(folder / "runs", cluster.token) == []
    assert _mentions(folder / "runs", "touch pwned_a")  # the name did arrive
    assert _pwned(cluster.folder) == []


def _mentions(folder: Path, words: str) -> list[Path]:
    """The files in a folder that hold some words; tables are read for it, whose columns are compressed."""
    found = []
    for file in folder.rglob("*"):
        if file.suffix == ".parquet":
            table = pq.read_table(file, partitioning=None)
            is_there = words in f"{table.to_pydict()} {table.schema.metadata}"
        else:
            is_there = file.is_file() and words.encode() in file.read_bytes()
        found += [file] if is_there else []
    return found


def _pwned(folder: Path) -> list[Path]:
    """What a shell made that took a variant's name for a command."""
    return list(folder.rglob("*pwned*"))


def test_a_study_that_fails_ends_with_1_and_says_why(stlab: Any, here: Any, submit: Any) -> None:
    """Slow: a job's driver starts, and a worker group."""
    answer = stlab("submit", *submit("failing", "--set", "train.lr=1e30", "--set", "variants={full: {}}"), timeout=WAIT)
    assert answer.code == 1, answer
    assert "ended with exit code 1" in answer.out
    state = here("status", "failing", "--storage", "runs")
    assert "1 failed" in state.out
    trial = next(line.split()[0] for line in state.out.splitlines() if " failed " in line and "full" in line)
    reason = json.loads((stlab.folder / "runs/trials" / trial / "failed.json").read_text())["reason"]
    assert re.search(r"(loss|RMSE) .*(nan|inf)\b.*step \d+.*learning rate", reason), reason
    assert f"failed: full, seed 0 ({trial}): {reason}\n" in answer.out
    told = here("logs", trial[:6], "--storage", "runs")
    assert f"\n{reason} (epoch 0)\n" in told.out


def test_ctrl_c_leaves_the_job_and_stop_ends_it(stlab: Any, here: Any, cluster: Any, submit: Any) -> None:
    """Slow: a job is sent twice, and each starts a driver and a worker group."""
    log = stlab.folder / "long.log"
    forever = ["--set", "train.max_epochs=5000", "--set", "train.patience=5000"]
    following = stlab.start("submit", *submit("long", *forever), log=log)
    until = time.monotonic() + WAIT
    while "long" not in _begun(stlab.folder):
        assert following.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.5)
    os.kill(following.pid, signal.SIGINT)
    assert following.wait(timeout=60) == 130
    assert f"stop long --address {cluster.dashboard}" in log.read_text()
    state = here("status", "long", "--storage", "runs", "--address", cluster.dashboard)
    assert "running" in state.out
    assert " running, since" in state.out, state
    stopped = here("stop", "long", "--address", cluster.dashboard)
    assert stopped.code == 0, stopped
    assert "What is trained stays" in stopped.out
    assert "Interrupted. What is trained stays" in here("logs", "long", "--address", cluster.dashboard).out
    before = set((stlab.folder / "runs/trials").iterdir())
    _copied_it_goes_on(stlab, here, cluster, next(line for line in stopped.out.splitlines() if line.startswith("go on ")))
    assert set((stlab.folder / "runs/trials").iterdir()) <= before | _planned(stlab.folder, "long")
    assert not (stlab.folder / "runs/studies/long/earlier").exists()


def _copied_it_goes_on(stlab: Any, here: Any, cluster: Any, line: str) -> None:
    """What `stop` says to go on with runs the same study, given the id of its job too."""
    words = shlex.split(line)
    assert [word for word in words if word.startswith("train.")] == ["train.max_epochs=5000", "train.patience=5000"]
    again = stlab(*words[words.index("submit") :], "--no-wait", timeout=120)
    assert again.code == 0, again
    job_id = next(line.split()[1] for line in again.out.splitlines() if line.startswith("job "))
    until = time.monotonic() + WAIT
    while "at a time" not in (log := here("logs", job_id, "--address", cluster.dashboard).out):
        assert time.monotonic() < until, log
        time.sleep(1)
    assert "long  2 trials; " in log
    stopped = here("stop", job_id, "--address", cluster.dashboard)
    assert line in stopped.out, stopped


def _planned(folder: Path, study: str) -> set[Path]:
    plan = json.loads((folder / f"runs/studies/{study}/plan.json").read_text())
    return {folder / "runs/trials" / trial["trial_id"] for trial in plan["trials"]}


class Way:
    """A TCP proxy: the way to a cluster's dashboard, which can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self._open: list[socket.socket] = []
        self.mend()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self) -> None:
        """Nobody listens any more, and what was open is closed."""
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.target))
                self._open += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=[one, other], daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(65536):
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)


def test_a_way_that_is_cut_and_mended_loses_no_line_and_tells_none_twice(stlab: Any, cluster: Any) -> None:
    """Slow: the job counts for sixteen seconds, so that there is something to miss."""
    job = "import time\nfor number in range(80): print('count', number, flush=True); time.sleep(0.2)"
    code = "import sys; from ray.job_submission import JobSubmissionClient as C; c = C(sys.argv[1]); "
    code += "c.submit_job(entrypoint=sys.argv[2], submission_id='counting')"
    ask = [sys.executable, "-c", code, cluster.dashboard, f"python -c {shlex.quote(job)}"]
    subprocess.run(ask, env=cluster.environment, check=True, capture_output=True)
    way, log = Way(cluster.dashboard_port), stlab.folder / "counting.log"
    following = stlab.start("logs", "counting", "--follow", "--address", way.address, log=log)
    until = time.monotonic() + WAIT
    while "count 5\n" not in log.read_text():
        assert following.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    way.cut()
    while "trying again" not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    time.sleep(1)  # the job counts on
    there = log.read_text().count("count ")
    assert following.poll() is None, log.read_text()
    way.mend()
    assert following.wait(timeout=WAIT) == 0, log.read_text()
    told = log.read_text()
    assert there < 60  # it was away
    assert [line for line in told.splitlines() if line.startswith("count ")] == [f"count {number}" for number in range(80)]
    assert told.count("trying again for 5 minutes") == 1
    assert told.count("answers again") == 1
    assert "counting is done." in told


def _begun(folder: Path) -> set[str]:
    trials = [file for file in (folder / "runs/trials").glob("*/trial.json") if (file.parent / "checkpoint").exists()]
    return {json.loads(file.read_text())["study"] for file in trials}


@pytest.mark.parametrize("token", [None, "0a" * 16], ids=["none", "wrong"])
def test_a_token_that_does_not_fit_is_answered_with_what_mends_it(
    stlab: Any, cluster: Any, submit: Any, token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: four commands, each of which Ray lets wait for seconds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if token is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    there = ["--address", cluster.dashboard]
    calls = [["submit", *submit("refused")], ["logs", "x", *there], ["stop", "x", *there]]
    calls.append(["run", "refused.yaml", "--storage", "runs", "--address", cluster.address])
    for call in calls:
        answer = stlab(*call)
        assert answer.code == 2, answer
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in answer.err
        assert "Traceback" not in answer.err
        assert token is None or token not in answer.err


def test_rays_own_command_runs_a_checkout(stlab: Any, here: Any, cluster: Any) -> None:
    """Slow: the checkout is sent, a job's driver starts, and a worker group."""
    changes = ["seeds=[0]", "train.max_epochs=1", "variants={full: {}}", "baselines=[]", "name=plain"]
    words = [word for change in changes for word in ("--set", change)]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard]
    answer = subprocess.run(
        [*ray, "--runtime-env", "cluster/runtime-env.yaml", "--working-dir", ".", "--", "python", "-m", "stlab", "run", "demo", *words,
         "--storage", str(stlab.folder / "runs")],
        cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip
    assert answer.returncode == 0, answer
    assert "✓   1/1" in answer.stdout
    assert "plain: 1 trials: 1 finished" in here("status", "plain", "--storage", "runs").out
