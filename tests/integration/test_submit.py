"""Studies as jobs on a real two-node cluster with token authentication, whose Python has no stlab of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT = 600  # for a job, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The two nodes, run by a Python that has stlab's dependencies and not stlab; the client's token is set."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Path files in there, such as an editable install's, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    assert subprocess.run([python, "-c", "import stlab"], capture_output=True, cwd=folder).returncode == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "executable", str(python))
        nodes = request.getfixturevalue("two_nodes")
        patch.undo()
    os.environ["RAY_AUTH_TOKEN"] = nodes.token
    yield nodes
    del os.environ["RAY_AUTH_TOKEN"]


@pytest.fixture(scope="module")
def submit(stlab: Any, cluster: Any, study_text: str) -> Any:
    """The words after ``stlab submit`` for a file of this name, with two trials; further options follow."""

    def call(name: str, *options: str) -> list[str]:
        text = study_text.replace("name: tiny", f"name: {name}").replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
        (stlab.folder / f"{name}.yaml").write_text(text)
        return [f"{name}.yaml", "--address", cluster.dashboard, "--storage", str(stlab.folder / "runs"), *options]

    return call


def test_a_submitted_study_runs_to_its_end(stlab: Any, cluster: Any, submit: Any) -> None:
    evil = "variants={full: {}, 'a; touch pwned': {model.flow: false, model.cross_prompt_layers: 0}}"
    answer = stlab("submit", *submit("sent", "--set", "train.lr=1e-3", "--set", evil), timeout=WAIT)
    assert answer.code == 0, answer
    assert "sending  stlab 1." in answer.out
    job_id = next(line.split()[1] for line in answer.out.splitlines() if line.startswith("job "))
    assert job_id.startswith("sent-")
    assert "✓   2/2" in answer.out
    rows = pd.read_parquet(stlab.folder / "runs/studies/sent/results/trials.parquet")
    assert set(rows.status) == {"finished"}
    assert set(rows["param.train.lr"]) == {1e-3}
    there = stlab("status", "sent", "--storage", "runs", "--address", cluster.dashboard)
    assert "sent: 2 trials: 2 finished" in there.out
    assert f"{job_id} succeeded" in there.out
    assert "✓   2/2" in stlab("logs", "sent", "--address", cluster.dashboard).out
    assert "no job runs 'sent'" in stlab("stop", "sent", "--address", cluster.dashboard).err
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
    for file in (folder / "runs").rglob("*"):
        assert not file.is_file() or cluster.token.encode() not in file.read_bytes(), file
    assert not list(cluster.folder.rglob("pwned"))


def test_a_study_that_fails_ends_with_1_and_says_why(stlab: Any, submit: Any) -> None:
    answer = stlab("submit", *submit("failing", "--set", "train.lr=1e30", "--set", "variants={full: {}}"), timeout=WAIT)
    assert answer.code == 1, answer
    assert "ended with exit code 1" in answer.out
    state = stlab("status", "failing", "--storage", "runs")
    assert "1 failed" in state.out
    trial = next(line.split()[0] for line in state.out.splitlines() if " failed " in line and "full" in line)
    told = stlab("logs", trial[:6], "--storage", "runs")
    assert "loss" in told.out


def test_ctrl_c_leaves_the_job_and_stop_ends_it(stlab: Any, cluster: Any, submit: Any) -> None:
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
    state = stlab("status", "long", "--storage", "runs", "--address", cluster.dashboard)
    assert "running" in state.out
    assert " running, since" in state.out, state
    stopped = stlab("stop", "long", "--address", cluster.dashboard, timeout=120)
    assert stopped.code == 0, stopped
    assert "What is trained stays" in stopped.out
    assert f"submit long --address {cluster.dashboard} --storage {stlab.folder}/runs" in stopped.out
    assert "Interrupted. What is trained stays" in stlab("logs", "long", "--address", cluster.dashboard).out


def _begun(folder: Path) -> set[str]:
    trials = [file for file in (folder / "runs/trials").glob("*/trial.json") if (file.parent / "checkpoint").exists()]
    return {json.loads(file.read_text())["study"] for file in trials}


@pytest.mark.parametrize("token", [None, "0a" * 16], ids=["none", "wrong"])
def test_a_token_that_does_not_fit_is_answered_with_what_mends_it(
    stlab: Any, cluster: Any, submit: Any, token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_rays_own_command_runs_a_checkout(stlab: Any, cluster: Any) -> None:
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
    assert "plain: 1 trials: 1 finished" in stlab("status", "plain", "--storage", "runs").out
