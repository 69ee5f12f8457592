"""The scripts in `cluster/`, run for real with stand-ins for Slurm, and the command lines of manifests and READMEs."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
DRAIN, NOTICE, SBATCH = CLUSTER / "drain.sh", CLUSTER / "spot-notice.sh", CLUSTER / "slurm" / "study.sbatch"
SCRIPTS = [DRAIN, NOTICE, SBATCH]
RAY_SOURCES = Path(next(iter(importlib.util.find_spec("ray").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
TEXTS = sorted(path for path in CLUSTER.rglob("*") if path.suffix in (".md", ".yaml", ".sbatch", ".sh"))

Worker = Callable[[str], "subprocess.Popen[bytes]"]

WAIT_SECONDS = 60  # for what takes a moment, on a busy machine


def wait_until(what: Callable[[], object]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < until, f"not within {WAIT_SECONDS} s"
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A process named like a training worker, though no other test's; what it does on SIGTERM is the argument."""
    started = []

    def start(on_term: str) -> subprocess.Popen[bytes]:
        ready = tmp_path / f"ready{len(started)}"
        script = f"trap '{on_term}' TERM; touch {ready}; while true; do sleep 0.05; done"
        started.append(subprocess.Popen(["bash", "-c", f'exec -a "{title(tmp_path)}" bash -c "$1" x', "x", script]))
        wait_until(ready.exists)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def title(tmp_path: Path) -> str:
    return f"ray::RayTrainWorker.{tmp_path.name}"


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[str]:
    """A process with a raylet's options, though not its name, lest a cluster on this machine takes it for one; gives its pattern."""
    name = str(tmp_path / "node")
    words = ["--node_id=0a1b", "--python_worker_command=python --gcs-address=10.0.0.9:1 --node_id=9", "--gcs-address=10.0.0.7:6379"]
    process = subprocess.Popen([name, "-c", "while true; do sleep 0.05; done", *words], executable="/bin/bash")
    yield f"^{name} "
    process.kill()
    process.wait()


def drain(seconds: int, tmp_path: Path, raylets: str = "^no raylet", ray: str = "exit 0") -> subprocess.CompletedProcess[str]:
    """Run the script with a stand-in for `ray`, which writes down what it was called with and then does what it is told."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text(f"""#!/bin/bash\necho "$@" >> '{tmp_path}/events'\n{ray}\n""")
    (tmp_path / "bin" / "ray").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [DRAIN, str(seconds), f"^{title(tmp_path)}", raylets]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS, env=environment)


def test_drain_lets_every_worker_save_and_waits_for_it(worker: Worker, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    workers = [worker(f"sleep 0.4; echo saved >> {saved}; exit 0") for _ in range(2)]
    done = drain(20, tmp_path)
    assert done.returncode == 0, done.stderr
    assert saved.read_text().split() == ["saved", "saved"]
    assert [process.wait(5) for process in workers] == [0, 0]


def test_drain_has_ray_start_nothing_more_on_the_node_before_it_tells_the_workers(worker: Worker, raylet: str, tmp_path: Path) -> None:
    worker(f"echo saved >> {tmp_path}/events; exit 0")
    done = drain(20, tmp_path, raylet, "sleep 0.3; echo drained >> ${0%/*/*}/events")
    assert done.returncode == 0, done.stderr
    told, *after = (tmp_path / "events").read_text().splitlines()
    assert told.startswith("drain-node --address 10.0.0.7:6379 --node-id 0a1b --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    assert told.endswith(" --deadline-remaining-seconds 20")
    assert after == ["drained", "saved"]
    assert done.stderr == ""


@pytest.mark.parametrize("ray", ["exit 1", "sleep 600"], ids=["refused", "silent"])
def test_drain_lets_workers_save_though_ray_does_not_answer(worker: Worker, raylet: str, tmp_path: Path, ray: str) -> None:
    saved = tmp_path / "saved"
    worker(f"touch {saved}; exit 0")
    done = drain(6, tmp_path, raylet, ray)
    assert done.returncode == 0, done.stderr
    assert saved.exists()
    assert "Ray does not know that this node goes away" in done.stderr


def test_drain_tells_ray_of_a_node_that_trains_nothing_too(raylet: str, tmp_path: Path) -> None:
    assert drain(20, tmp_path, raylet).returncode == 0
    assert "--node-id 0a1b" in (tmp_path / "events").read_text()


def test_drain_says_who_did_not_stop_in_time(worker: Worker, tmp_path: Path) -> None:
    deaf = worker("")
    done = drain(1, tmp_path)
    assert done.returncode == 1
    assert str(deaf.pid) in done.stderr
    assert deaf.poll() is None  # it is asked, not killed


def test_drain_has_nothing_to_do_where_there_is_neither_ray_nor_training(tmp_path: Path) -> None:
    assert drain(20, tmp_path).returncode == 0
    assert not (tmp_path / "events").exists()


def test_drain_knows_rays_training_workers_by_their_titles() -> None:
    pattern = re.search(r"workers=\$\{2:-'(.*)'\}", DRAIN.read_text())
    assert pattern is not None
    source = RAY_SOURCES / "train" / "v2" / "_internal" / "execution" / "worker_group" / "worker.py"
    assert "class RayTrainWorker:" in source.read_text()
    assert re.match(pattern[1], "ray::RayTrainWorker.execute")
    assert not re.match(pattern[1], "ray::Board.hear")


def test_drain_knows_rays_raylets_by_their_command_lines_and_its_option_for_draining() -> None:
    pattern = re.search(r"raylets=\$\{3:-'(.*)'\}", DRAIN.read_text())
    assert pattern is not None
    source = (RAY_SOURCES / "_private" / "services.py").read_text()
    command = re.search(r"\n    command = \[\n        RAYLET_EXECUTABLE,\n(.*?)\n    \]\n", source, re.S)
    assert command is not None
    assert '"raylet", "raylet" + EXE_SUFFIX' in source.split("RAYLET_EXECUTABLE = ")[1].split(")")[0]
    options = re.findall(r'^        f"(--[\w-]+)=', command[1], re.M)
    assert re.search(pattern[1], f"/venv/ray/core/src/ray/raylet/raylet {options[0]}=1")
    assert not re.search(pattern[1], f"python agent.py /venv/ray/core/src/ray/raylet/raylet {options[0]}=1")
    assert {f"--{name}" for name in re.findall(r'given "\$raylet" ([\w-]+)', DRAIN.read_text())} <= set(options)
    scripts = (RAY_SOURCES / "scripts" / "scripts.py").read_text()
    known = scripts.split("def global_gc")[1].split("def drain_node")[0]
    given = re.findall(r" (--[a-z-]+) ", DRAIN.read_text().split("ray drain-node")[1].split("; then")[0])
    assert len(given) == 5
    assert [option for option in given if f'"{option}"' not in known] == []
    assert "RAIN_NODE_REASON_PREEMPTION" in (RAY_SOURCES / "core" / "generated" / "autoscaler_pb2.py").read_text()  # its D is escaped


def test_a_spot_notice_drains_the_node_and_stops_ray_on_it_whoever_is_left(tmp_path: Path) -> None:
    answers = [404, 404, 200]
    for name, end in {"stlab-drain": 1, "ray": 0}.items():
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@"\nexit {end}\n')
        (tmp_path / name).chmod(0o755)

    class Service(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200, b"a-token")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "a-token"
            self.answer(answers.pop(0), b'{"action": "terminate"}')

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [NOTICE, f"http://127.0.0.1:{server.server_port}", "0.1"]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS, env=environment)
        server.shutdown()
    assert done.stdout.splitlines()[-2:] == ["stlab-drain 100", "ray stop"]
    assert answers == []


# --- Slurm ---

# What a job sees of Slurm. Each writes down what it was called with, word by word; `srun` and `ray` then run their command, here.
SRUN = """#!/bin/bash
echo "srun$(printf ' %q' "$@")" >> "$CALLS"
while [[ $1 == --* ]]; do
    if [[ $1 == --nodelist=${LOST_NODE:-} ]]; then exit 1; fi
    shift
done
"$@"
exit "$(($? ? $? : ${STEP_EXIT:-0}))"
"""
RAY = """#!/bin/bash
echo "ray$(printf ' %q' "$@") mode=$RAY_AUTH_MODE token=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
if [[ -n ${PORT_IS_TAKEN:-} ]]; then exit 0; fi
while [[ $1 != -- ]]; do shift; done
shift
exec "$@"
"""
PYTHON = """#!/bin/bash
echo "python$(printf ' %q' "$@")" >> "$CALLS"
while [[ -n ${STUDY_ENDS:-} && ! -e ${STUDY_ENDS:-} ]]; do sleep 0.05; done
exit "${STUDY_EXIT:-0}"
"""
SCONTROL = """#!/bin/bash
if [[ $* == "show hostnames two[1-2]" ]]; then printf 'two1\\ntwo2\\n' && exit 0; fi
echo "scontrol$(printf ' %q' "$@")" >> "$CALLS"
exit "${REQUEUE_EXIT:-0}"
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "ray": RAY, "python": PYTHON, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    drain = tmp_path / "drain.sh"
    drain.write_text('echo "drain $*" >> "$CALLS"\n')
    return {
        "PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "two[1-2]", "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_SUBMIT_DIR": str(ROOT), "STLAB_DRAIN": str(drain), "STLAB_HEAD_IP": "10.0.0.7",
    }  # fmt: skip


def calls(job: dict[str, str]) -> list[list[str]]:
    """What was called, in words."""
    path = Path(job["CALLS"])
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def sbatch(job: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SBATCH, *arguments], env=job, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)


def test_slurm_starts_ray_on_all_nodes_and_the_study_on_the_first(job: dict[str, str]) -> None:
    study = ["st_vfm_lambda", "--set", "data.path=/shared/my grid.npz", "--storage", "/shared/runs"]
    done = sbatch(job, *study)
    assert done.returncode == 0, done.stderr
    srun, ray, python = calls(job)
    assert srun[:5] == ["srun", "--no-kill", "--kill-on-bad-exit=0", "--cpus-per-task=8", "ray"]
    assert ray[:6] == ["ray", "symmetric-run", "--address", "10.0.0.7:23456", "--min-nodes", "2"]
    assert ray[6:11] == ["--disable-usage-stats", "--num-cpus=8", "--num-gpus=4", "--", "bash"]
    assert ray[-2:] == ["mode=token", "token=600"]
    assert python == ["python", "-m", "stlab", "run", *study, "--address", "10.0.0.7:23456"]
    assert list((Path(job["HOME"]) / ".ray").iterdir()) == []  # the token is gone with the job, and so is the exit code


@pytest.mark.parametrize("step", ["0", "9"], ids=["all nodes", "a node was lost"])
@pytest.mark.parametrize("code", [0, 3])
def test_slurm_hands_the_studys_exit_code_on(job: dict[str, str], code: int, step: str) -> None:
    assert sbatch(job | {"STUDY_EXIT": str(code), "STEP_EXIT": step}, "demo").returncode == code


def test_slurm_fails_if_ray_did_not_start(job: dict[str, str]) -> None:
    """`ray symmetric-run` ends with 0 then."""
    (Path(job["HOME"]) / ".ray").mkdir()
    (Path(job["HOME"]) / ".ray" / "stlab-123456.exit").write_text("0\n")  # of the same job, before it was put back into the queue
    done = sbatch(job | {"PORT_IS_TAKEN": "yes"}, "demo")
    assert done.returncode == 1
    assert "the study did not run" in done.stderr
    assert not [call for call in calls(job) if call[0] == "python"]


def test_ray_still_ends_well_where_it_did_not_start() -> None:
    """Why the exit code goes through a file: the code of a failed `ray start` is printed, and that of the command alone is handed on."""
    source = (RAY_SOURCES / "scripts" / "symmetric_run.py").read_text()
    assert "except subprocess.CalledProcessError" in source
    assert re.findall(r"sys\.exit\((.*)\)", source) == ["result.returncode"]


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [({}, [], "which study?"), ({"STLAB_DRAIN": "/nowhere/drain.sh"}, ["demo"], "sbatch is called in the root")],
)
def test_slurm_says_what_is_wrong(job: dict[str, str], change: dict[str, str], arguments: list[str], says: str) -> None:
    done = sbatch(job | change, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert calls(job) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "the job is back in the queue"),
        ({"LOST_NODE": "two1"}, "two1 was not drained"),
        ({"REQUEUE_EXIT": "1"}, "could not be put back"),
    ],
    ids=["all nodes", "a node was lost", "not requeued"],
)
def test_slurm_goes_back_into_the_queue_when_its_time_is_up(job: dict[str, str], change: dict[str, str], says: str) -> None:
    ends = Path(job["HOME"]) / "ends"
    process = subprocess.Popen(
        ["bash", SBATCH, "demo"], env=job | change | {"STUDY_ENDS": str(ends), "STUDY_EXIT": "3"}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_until(lambda: any(call[0] == "python" for call in calls(job)))
        os.kill(process.pid, signal.SIGUSR1)
        wait_until(lambda: any(call[0] == "scontrol" for call in calls(job)))
        ends.touch()
        said, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 3  # of the study that was then stopped, not of the signal
    assert says in said
    *told, requeue = calls(job)[3:]
    assert requeue == ["scontrol", "requeue", "123456"]
    steps = [call for call in told if call[0] == "srun"]
    assert sorted(step[-3] for step in steps) == ["bash", "bash"]
    assert sorted(step[4] for step in steps) == ["--nodelist=two1", "--nodelist=two2"]
    assert {tuple(step[:4]) for step in steps} == {("srun", "--overlap", "--nodes=1", "--ntasks=1")}
    assert [call for call in told if call[0] == "drain"] == [["drain", "120"]] * (1 if "LOST_NODE" in change else 2)


def test_slurm_options_exist_in_ray() -> None:
    """`ray symmetric-run` and the options of `ray start` that it hands on; Ray is not imported, which takes seconds."""
    handed = SBATCH.read_text().split("resources=(")[1].split("# A signal")[0]
    given = set(re.findall(r"(--[a-z-]+)[ =]", handed.split("srun --no-kill")[0] + handed.split("ray symmetric-run")[1].split(" -- ")[0]))
    given -= {"--overlap", "--nodes", "--ntasks", "--nodelist", "--kill-after"}
    assert {"--address", "--min-nodes", "--num-cpus", "--num-gpus", "--disable-usage-stats"} == given
    known = (RAY_SOURCES / "scripts" / "symmetric_run.py").read_text() + (RAY_SOURCES / "scripts" / "scripts.py").read_text()
    assert [option for option in given if f'"{option}"' not in known] == []
    assert "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" in known


# --- command lines ---


def command_lines() -> list[tuple[str, list[str]]]:
    """Every call of stlab in manifests, scripts and READMEs: where, and its arguments."""
    found = []
    for path in TEXTS:
        text = path.read_text().replace("\\\n", " ")
        if path.suffix == ".yaml":
            text = "\n".join(leaf for one in yaml.safe_load_all(text) for leaf in strings(one))
        for line in text.splitlines():
            # Of prose only what is typed as code: in a block of its own, or between backticks.
            codes = [line] if path.suffix != ".md" or line.startswith("    ") else re.findall("`([^`]*)`", line)
            for code in codes:
                call = re.search(r"(?<![\w/.-])(?:python -m )?stlab ((?:run|submit|status|logs|stop|sync|doctor|report|plan|ui) .*)", code)
                if call and not code.lstrip().startswith("#"):
                    arguments = [word for word in shlex.split(call[1], comments=True) if word not in ("&", "$@", "…")]
                    found.append((path.relative_to(ROOT).as_posix(), arguments))
    return found


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value


def test_command_lines_are_found() -> None:
    assert len(command_lines()) >= 12
    assert {"cluster/kuberay/rayjob.yaml", "cluster/slurm/study.sbatch"} <= {where for where, _ in command_lines()}


@pytest.mark.parametrize(("where", "arguments"), command_lines(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:40])
def test_command_lines_are_those_of_the_parser(where: str, arguments: list[str]) -> None:
    """The CLI's own parser takes them: the command and its options exist, and have their values; nothing is run."""
    from stlab.cli import app

    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    given = arguments[1:] if any(not word.startswith("-") for word in arguments[1:2]) else ["demo", *arguments[1:]]
    command.make_context(arguments[0], list(given), resilient_parsing=False)
    if where.endswith(("rayjob.yaml", "README.md")) and "--set" in given:
        from stlab.study.file import load_study_source, parse

        overrides = [given[index + 1] for index, word in enumerate(given) if word == "--set"]
        parse(load_study_source(given[0], overrides))


def test_the_jobs_of_kubernetes_name_a_study_that_is_shipped() -> None:
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "stlab", "run"]
    assert (ROOT / "search_spaces" / f"{words[4]}.yaml").is_file()
