"""One small study on real Ray, MLflow on sqlite and real files, run as a user runs it: what it leaves, says and does again.

The first tests share one run, which is the only study on Ray that ``make test`` has; what commands make of it afterwards is slow.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

BASELINES = {"slot_of_week_mean", "same_slot_last_week", "same_slot_yesterday", "last_value", "last_window", "ridge"}
RUN = ("run", "tiny.yaml", "--storage", "runs", "--set", "resources.max_cpus=1")  # one worker group starts in half the time of two

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def ran(stlab: Any, study_text: str) -> Any:
    """The command line in a folder where the study was run once, and what it said."""
    (stlab.folder / "tiny.yaml").write_text(study_text.replace("seeds: [0, 1]", "seeds: [0]"))
    answer = stlab(*RUN, timeout=600)
    assert answer.code == 0, answer
    return stlab, answer


def _trials(folder: Path, study: str = "tiny") -> pd.DataFrame:
    return pd.read_parquet(folder / "runs" / "studies" / study / "results" / "trials.parquet")


def _results(folder: Path) -> dict[str, int]:
    """Every trial's results and when they were written, to the nanosecond."""
    return {
        f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns
        for path in (folder / "runs" / "trials").glob("*/*.json")
    }


def test_every_trial_is_a_row(ran: Any) -> None:
    rows = _trials(ran[0].folder)
    assert set(rows.status) == {"finished"}
    trained = rows[~rows.baseline]
    assert sorted(zip(trained.variant, trained.seed, strict=True)) == [("full", 0), ("no flow", 0)]
    assert set(rows[rows.baseline].variant) == BASELINES
    assert rows.trial_id.is_unique
    for column in ("val_mae", "val_rmse", "test_mae", "test_rmse", "wall_seconds"):
        assert (rows[column] >= 0).all(), column
    assert (rows.test_rmse >= rows.test_mae).all()
    assert (trained.epochs == 2).all()
    assert set(trained["param.model.flow"]) == {False, True}
    assert (trained["param.train.lr"] == 2e-3).all()
    assert rows.protocol.nunique() == 1


def test_every_trial_leaves_a_whole_directory(ran: Any) -> None:
    folder = ran[0].folder
    for row in _trials(folder).itertuples():
        directory = folder / "runs" / "trials" / row.trial_id
        expected = {"trial.json", "result.json", "test.json", "horizon.parquet", "predictions.parquet", "checkpoint"}
        expected |= set() if row.baseline else {"epochs.parquet"}
        assert {entry.name for entry in directory.iterdir()} == expected
        predictions = pd.read_parquet(directory / "predictions.parquet")
        errors = [abs(f - t) for f, t in zip(predictions.forecast, predictions.truth, strict=True)]
        mae = sum(e.astype(float).sum() for e in errors) / sum(e.size for e in errors)
        assert mae == pytest.approx(row.test_mae, rel=1e-5)


def test_the_report_needs_nothing_beside_it(ran: Any) -> None:
    report = ran[0].folder / "runs" / "studies" / "tiny" / "report" / "index.html"
    page = report.read_text()
    assert "no flow" in page
    for link in re.findall(r"""(?:src|href)=["']([^"']+)""", page):
        local = report.parent / link
        assert link.startswith(("data:", "#")) or local.exists() or link.startswith("http"), link
    assert not re.search(r"""<(?:script|img|link)[^>]+(?:src|href)=["']https?:""", page)


def test_mlflow_has_a_run_a_trial_below_one_parent(ran: Any) -> None:
    runs = _mlflow_runs(ran[0].folder)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("trial_id")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    rows = _trials(ran[0].folder).set_index("trial_id")
    assert sorted(run.data.tags["trial_id"] for run in children) == sorted(rows.index)
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_rmse"] == pytest.approx(rows.test_rmse[run.data.tags["trial_id"]])
    assert len(runs) > 1 + len(children), "there is a summary run a variant"


def _mlflow_runs(folder: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiments = [e for e in client.search_experiments() if e.name == "tiny"]
    assert len(experiments) == 1
    return list(client.search_runs([experiments[0].experiment_id], max_results=1000))


def test_the_terminal_ends_with_table_report_and_ui(ran: Any) -> None:
    stlab, answer = ran
    assert answer.err == ""
    assert answer.out.startswith("tiny  8 trials; ")
    assert len(re.findall(r"^✓ +\d+/8  ", answer.out, re.MULTILINE)) == 8
    *_, report, ui = answer.out.rstrip().splitlines()
    assert report.split() == ["report", str(stlab.folder / "runs/studies/tiny/report/index.html")]
    assert ui.startswith("MLflow ")
    assert ui.split()[-4:] == ["stlab", "ui", "--storage", str(stlab.folder / "runs")]
    table = answer.out[answer.out.rindex("✓") :]
    assert all(name in table for name in ("no flow", "full", "last_value", "test RMSE"))
    # One short trial a variant: its errors stay alike for longer than a third of the test segment.
    assert "Nothing is told apart from full: there is one seed" in " ".join(table.split())


@pytest.mark.slow
def test_a_second_run_trains_nothing(ran: Any) -> None:
    stlab, first = ran
    before = _results(stlab.folder)
    answer = stlab(*RUN)
    assert answer.code == 0
    assert answer.out.startswith("tiny  8 trials, 8 there already.")
    assert "✓" not in answer.out
    assert _results(stlab.folder) == before
    assert answer.out.rstrip().splitlines()[-2:] == first.out.rstrip().splitlines()[-2:]


@pytest.mark.slow
def test_plan_report_and_sync_of_what_is_there(ran: Any) -> None:
    """Slow: three commands, a new process each."""
    stlab, _ = ran
    answer = stlab("plan", "tiny.yaml", "--storage", "runs", "--set", "seeds=[0,1,2]")
    assert answer.code == 0
    assert answer.out.count("done") == 8
    assert answer.out.rstrip().endswith("8 there already.")
    assert "4 to do" in answer.out
    report = stlab.folder / "runs" / "studies" / "tiny" / "report" / "index.html"
    report.unlink()
    answer = stlab("report", "tiny", "--storage", "runs")
    assert (answer.code, answer.err) == (0, "")
    assert report.is_file()
    before = {run.info.run_id: run.data.metrics for run in _mlflow_runs(stlab.folder)}
    for _ in range(2):
        assert stlab("sync", "tiny", "--storage", "runs").out.startswith("8 trials in sqlite:///")
    assert {run.info.run_id: run.data.metrics for run in _mlflow_runs(stlab.folder)} == before


@pytest.fixture
def server(ran: Any) -> Iterator[int]:
    """The port of a running `stlab ui`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stlab = ran[0]
    process = stlab.start("ui", "--storage", "runs", "--port", str(port), log=stlab.folder / "ui.log")
    yield port
    stlab.end_leftovers()
    process.wait(timeout=30)


@pytest.mark.slow
def test_ui_answers_on_this_machine(ran: Any, server: int) -> None:
    until = time.monotonic() + 200
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server}/health", timeout=5) as answer:
                assert answer.status == 200
                break
        except OSError:
            assert time.monotonic() < until, (ran[0].folder / "ui.log").read_text()
            time.sleep(0.5)
    query = urllib.request.Request(
        f"http://127.0.0.1:{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny"
    )
    with urllib.request.urlopen(query, timeout=60) as answer:
        assert json.load(answer)["experiment"]["name"] == "tiny"


@pytest.mark.slow
class TestChangedStudy:
    """One run that changes the study: a seed more and a variant that cannot be trained. What was there stays."""

    @pytest.fixture(scope="class")
    def changed(self, ran: Any, two_nodes: Any) -> Any:
        stlab, _ = ran
        stlab.variables |= two_nodes.client | {"RAY_ADDRESS": two_nodes.address}
        before = _results(stlab.folder)
        text = (stlab.folder / "tiny.yaml").read_text()
        broken = text.replace("  full: {}\n", "  full: {}\n  broken: {train: {lr: 1.0e+18}}\n")
        (stlab.folder / "tiny.yaml").write_text(broken)
        answer = stlab(*RUN, "--set", "seeds=[0,1]", timeout=600)
        return stlab, answer, before

    def test_only_what_is_new_is_trained(self, changed: Any) -> None:
        stlab, answer, before = changed
        assert answer.out.startswith("tiny  12 trials, 8 there already; "), answer
        after = _results(stlab.folder)
        assert {name: after[name] for name in before} == before
        rows = _trials(stlab.folder)
        assert len(rows) == 12
        assert list(rows[rows.status == "finished"].groupby("variant").size().loc[["full", "no flow"]]) == [2, 2]

    def test_the_failure_is_named_and_the_rest_finished(self, changed: Any) -> None:
        stlab, answer, _ = changed
        assert answer.code == 1
        failed = _trials(stlab.folder).query("status == 'failed'")
        assert list(failed.variant) == ["broken"] * 2
        for row in failed.itertuples():
            assert re.search(rf"failed: broken, seed {row.seed} \({row.trial_id}\): .*", answer.out)
            assert re.search(r"at step \d+, learning rate \d\S*e\+1[78]$", row.error), row.error  # warm-up: below 1e18 yet

    def test_the_earlier_results_are_kept(self, changed: Any) -> None:
        _, answer, _ = changed
        kept = re.search(r"earlier results and report are kept in (.*)\.", answer.out)
        assert kept, answer.out
        earlier = Path(kept[1])
        assert len(pd.read_parquet(earlier / "results" / "trials.parquet")) == 8
        assert (earlier / "report" / "index.html").is_file()

    def test_failed_trials_run_again_on_request_alone(self, changed: Any) -> None:
        """Slow: two commands, and Ray starts for the one that trains."""
        stlab, _, _ = changed
        before = _results(stlab.folder)
        again = (*RUN, "--set", "seeds=[0,1]")
        answer = stlab(*again)
        assert answer.code == 1
        assert answer.out.startswith("tiny  12 trials, 12 there already.")
        assert "--retry-failed" in answer.out
        assert _results(stlab.folder) == before
        answer = stlab(*again, "--retry-failed", timeout=600)
        assert answer.code == 1
        assert answer.out.startswith("tiny  12 trials, 10 there already; ")
        failed = set(_trials(stlab.folder).query("status == 'failed'").trial_id)
        after = _results(stlab.folder)
        touched = {name for name, when in after.items() if before.get(name) != when}
        assert {name.partition("/")[0] for name in touched} == failed
        assert {f"{trial}/failed-1.json" for trial in failed} <= set(after)
