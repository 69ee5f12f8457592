"""What `stlab submit`, `status`, `logs` and `doctor` say and refuse where no cluster is needed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAD = "http://127.0.0.1:9"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def study(tmp_path: Path, study_text: str) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(study_text)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--storage", "runs"], "--storage runs: a cluster cannot use a folder of this machine"),
        (["--storage", "s3://key:word@bucket/runs"], "--storage s3://key:***@bucket/runs: keys do not belong in a URI"),
        (["--storage", "s3://b/r", "--tracking-uri", "sqlite:///mlflow.db"], "a cluster cannot reach a database"),
        (["--storage", "s3://b/r", "--set", "search.storage=mysql://me:word@db/x"], "--set search.storage: the value holds a password"),
        (
            ["--storage", "s3://b/r", "--set", "data.path=grid.npz"],
            "--set data.path=grid.npz: base.data.path: 'grid.npz' is relative to this folder",
        ),
        (["--storage", "s3://b/r", "--set", "data.pth=grid.npz"], "did you mean 'path'"),
        (["--storage", "s3://b/r"], "nothing answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_run_there_is_refused_here(say: Callable[..., Any], study: Path, options: list[str], words: str) -> None:
    answer = say("submit", str(study), "--address", HEAD, *options)
    assert answer.code == 2
    assert words.lower() in answer.err.lower()
    assert "word@" not in answer.err.replace("password", "")


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001", "auto"])
def test_an_address_that_is_no_dashboard_is_told_what_is_meant(say: Callable[..., Any], study: Path, address: str) -> None:
    answer = say("submit", str(study), "--address", address, "--storage", "s3://b/r")
    assert answer.code == 2
    assert ":8265" in answer.err


def test_a_dashboard_is_no_address_to_join(say: Callable[..., Any], study: Path) -> None:
    answer = say("run", str(study), "--address", "http://127.0.0.1:8265")
    assert answer.code == 2
    assert "stlab submit" in answer.err


def test_the_command_holds_no_password(study: Path) -> None:
    from stlab.submission.order import Order, check_order

    order = Order(str(study), ["seeds=[0]", "data.path=/only/there.npz"], "s3://b/r", "http://me:word@mlflow:5000", retry_failed=True)
    words = order.arguments("tiny.yaml")
    told = ["--storage", "s3://b/r", "--set", "seeds=[0]", "--set", "data.path=/only/there.npz", "--retry-failed"]
    assert words == ["run", "tiny.yaml", *told]
    assert order.environment() == {"MLFLOW_TRACKING_URI": "http://me:word@mlflow:5000"}
    checked = check_order(order)
    assert checked.name == "tiny"
    assert checked.notes == ["data.path=/only/there.npz is not on this machine: the data are checked on the cluster."]


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "http://me:word@mlflow:5000"])
def test_what_goes_on_with_a_job_is_its_own_command(study: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stlab.submission.order import Order

    monkeypatch.chdir(study.parent)
    order = Order("tiny.yaml", ["seeds=[0, 1]", "train.lr=1e-3"], "s3://b/r", uri, trials=5, retry_failed=True)
    shown = uri.replace("word", "***")
    settings = ["--storage", "s3://b/r", "--set", "seeds=[0, 1]", "--set", "train.lr=1e-3", "--trials", "5", "--tracking-uri", shown]
    assert order.again("tiny")[0] == str(study.resolve())
    assert sorted(order.again("tiny")[1:]) == sorted(settings)
    shipped = Order("st_vfm_lambda", [], "s3://b/r")
    assert shipped.again("st_vfm_lambda") == ["st_vfm_lambda", "--storage", "s3://b/r"]
    seeds = Order("tiny", ["data.path=/a.npz"], "s3://b/r", add_seeds=2)
    assert seeds.again("tiny") == ["s3://b/r/studies/tiny/study.yaml", "--storage", "s3://b/r"]


def test_what_goes_on_with_rays_own_job_is_rays_own_command() -> None:
    from stlab.cli.cluster import _how_to_take_up
    from stlab.submission.jobs import Job

    job = Job("raysubmit_1", "x", "STOPPED", None, None, None, "", "python -m stlab run x --set train.lr=1e-3")
    assert _how_to_take_up(job, "http://head:8265") == "The same command continues it: python -m stlab run x --set train.lr=1e-3"


def test_how_much_is_sent_is_said_before_it_is_sent(say: Callable[..., Any], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stlab.submission import jobs

    class Recorder:
        def __init__(self, address: str) -> None:
            self.address = address

        def submit(self, job_id: str, arguments: list[str], **rest: Any) -> None:
            os.write(1, b"UPLOAD\n")  # past all buffers: what is said before is on the terminal before

    monkeypatch.setattr(jobs, "Jobs", Recorder)
    answer = say("submit", str(study), "--address", HEAD, "--storage", "s3://b/r", "--no-wait")
    assert answer.code == 0, answer
    assert [line.split()[0] for line in answer.out.splitlines()] == ["sending", "UPLOAD", "job", "follow", "stop"]


def _files(folders: list[Path]) -> dict[str, bytes]:
    root = folders[0].parent
    return {str(p.relative_to(root)): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def test_a_checkout_and_an_installed_wheel_send_the_same(tmp_path: Path) -> None:
    from stlab.submission.package import _built_wheel, package_folders

    built = _files(package_folders(tmp_path / "from_checkout"))
    assert {"stlab/execution/ray/worker.py", "stlab/search_spaces/demo.yaml", "stmodels/backbones.py"} <= set(built)
    assert not [name for name in built if "__pycache__" in name or name.startswith("tests")]
    with zipfile.ZipFile(_built_wheel(ROOT, tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    code = "import sys, pathlib; from stlab.submission.package import package_folders; package_folders(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "from_wheel")], check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    installed = _files(sorted((tmp_path / "from_wheel" / "package").iterdir()))
    assert installed == {name: content for name, content in built.items() if not name.endswith("RECORD")}


def test_a_checkout_sends_its_sources_alone(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    for name in ("platform", "models", "search_spaces"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("*cache*"))
    for name in ("tests/test_a.py", "runs/trials/a.json", ".docs/a.png", "big.npz", "platform/stlab/__pycache__/a.pyc", "README.md"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    shutil.copy(ROOT / ".rayignore", tmp_path / "checkout")
    create_package(str(tmp_path / "checkout"), tmp_path / "sent.zip", include_gitignore=True)
    sent = {name for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist() if not name.endswith("/")}
    assert {name.partition("/")[0] for name in sent} == {"platform", "models", "search_spaces"}
    assert "platform/stlab/cli/study.py" in sent
    assert not [name for name in sent if name.endswith(".pyc")]
    assert (tmp_path / "sent.zip").stat().st_size < 3e6


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A study of five trials, one in each state."""
    from stlab.storage import Store, StudyDirectory, TrialDirectory

    store = Store(tmp_path / "runs")
    directory = StudyDirectory(store, "five")
    directory.write_study("name: five\n")
    names = {"aa01": "done", "aa02": "running", "ab03": "stopped", "ab04": "failed", "ab05": "to do"}
    directory.write_plan([{"trial_id": key, "label": f"{label}, seed 0", "max_epochs": 9} for key, label in names.items()])
    for key in ("aa01", "aa02", "ab03", "ab04"):
        TrialDirectory(store, key).write_trial({"study": "five", "variant": names[key], "seed": 0, "train": {"max_epochs": 9}})
    TrialDirectory(store, "aa01").write_result({"val_rmse": 1.0})
    TrialDirectory(store, "aa02").write_epochs([{"epoch": 4, "val_rmse": 2.5}])
    TrialDirectory(store, "ab04").write_failure({"reason": "loss is nan", "epoch": 3, "log_tail": ["one [line]", "another"]})
    os.utime(tmp_path / "runs/trials/ab03/trial.json", (1.7e9, 1.7e9))
    return tmp_path / "runs"


def test_status_counts_from_the_directories_alone(say: Callable[..., Any], storage: Path) -> None:
    from stlab.execution.locks.file_lock import study_lock
    from stlab.execution.locks.owner import LockOwner
    from stlab.storage import Store

    with study_lock(Store(storage), "five", LockOwner.this_process()):
        answer = say("status", "five", "--storage", str(storage))
    assert answer.code == 0
    assert "five: 5 trials: 1 finished, 1 running, 1 stopped, 1 failed, 1 to do" in answer.out
    assert f"run by   process {os.getpid()} on " in answer.out
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip().startswith("a")}
    assert set(lines) == {"aa02", "ab03", "ab04"}  # what is finished or to do is only counted
    assert "4/9" in lines["aa02"]
    assert "loss is nan" in lines["ab04"]
    every = say("status", "five", "--storage", str(storage), "--all").out
    assert all(name in every for name in ("aa01", "ab05"))
    assert "1 finished, 2 stopped, 1 failed, 1 to do" in every, "nobody runs it any more"
    assert "run by" not in every


def test_a_trial_that_failed_at_its_test_has_failed(say: Callable[..., Any], storage: Path) -> None:
    from stlab.storage import Store, TrialDirectory

    TrialDirectory(Store(storage), "aa01").write_failure({"reason": "a bug in its test", "epoch": 9})
    answer = say("status", "five", "--storage", str(storage))
    assert "2 failed" in answer.out
    assert "a bug in its test" in answer.out


def test_status_of_a_whole_storage(say: Callable[..., Any], storage: Path, tmp_path: Path) -> None:
    from stlab.storage import Store, StudyDirectory

    StudyDirectory(Store(storage), "another").write_study("name: another\n")
    lines = say("status", "--storage", str(storage)).out.splitlines()
    assert lines[0] == "another: 0 trials: none yet"
    assert lines[1].startswith("five: 5 trials: ")
    nothing = say("status", "--storage", str(tmp_path / "empty"))
    assert nothing.code == 2
    assert "there are no studies in" in nothing.err


def test_status_of_what_was_never_begun(say: Callable[..., Any], storage: Path) -> None:
    """A job may be about to begin it, or write elsewhere: the cluster is asked all the same."""
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        asked = say("status", "six", "--storage", str(storage), "--address", nowhere)
    assert "there is no study 'six'" in asked.out
    assert nowhere in asked.err
    answer = say("status", "six", "--storage", str(storage))
    assert answer.code == 2
    assert "known: five" in answer.err


def test_logs_by_the_beginning_of_an_id(say: Callable[..., Any], storage: Path) -> None:
    answer = say("logs", "ab04", "--storage", str(storage))
    assert answer.code == 0
    assert "loss is nan (epoch 3)\n    one [line]\n    another" in answer.out
    assert "2.5" in say("logs", "aa02", "--storage", str(storage)).out
    assert "2 trials begin with 'aa': aa01, aa02" in say("logs", "aa", "--storage", str(storage)).err
    assert say("logs", "zz", "--storage", str(storage)).code == 2


def test_the_doctor_finds_what_is_missing(say: Callable[..., Any], tmp_path: Path) -> None:
    well = say("doctor", "--storage", str(tmp_path / "runs"), "--set", "data.path=synthetic:city")
    assert well.code == 0, well
    assert "✗" not in well.out
    assert not list((tmp_path / "runs").iterdir())  # what it wrote is gone
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (tmp_path / "file").write_text("")
        options = ["--address", nowhere, "--storage", str(tmp_path / "file"), "--tracking-uri", nowhere, "--set", "data.path=/no.npz"]
        ill = say("doctor", *options)
    assert ill.code == 1
    wrong = [line.split()[1] for line in ill.out.splitlines() if line.startswith("✗")]
    assert wrong == ["Ray", "storage", "MLflow", "data"]


def test_a_plain_job_is_known_by_its_command() -> None:
    from stlab.submission.jobs import _study_of

    assert _study_of("python -m stlab run st_vfm_lambda --storage s3://b/r") == "st_vfm_lambda"
    assert _study_of("stlab run 'my study.yaml'") == "my study"
    assert _study_of("python train.py run x") is None
    assert _study_of("echo 'unbalanced") is None
    assert _study_of("stlab plan x") is None
