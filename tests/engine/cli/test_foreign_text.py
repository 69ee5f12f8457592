"""Texts that are not ours, such as errors, names and paths: the terminal shows them as they are, whatever brackets stand in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

# Of gloo and of torch's allocator; the first is a closing tag to rich, the second one that is opened and says nothing.
GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4410"
ALLOC = "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. posix_memalign failed"
TEXTS = [GLOO, ALLOC, "a :car: [b]old[/b] \\[/] end\\"]
VARIANT = "no flow [/red] [bold] :car:"


@pytest.fixture
def study(tmp_path: Path, study_text: str) -> Path:
    path = tmp_path / "tiny.yaml"
    text = study_text.replace("no flow:", f"{VARIANT!r}:").replace("seeds: [0, 1]", "seeds: [0]\nbaselines: []")
    path.write_text(text)
    return path


def _plan(study: Path) -> Any:
    from stlab.cli.options import load_study
    from stlab.execution.run_study import plan_study

    return plan_study(*load_study(str(study), None))


@pytest.mark.parametrize("text", TEXTS)
def test_the_end_of_a_run_shows_errors_as_they_are(text: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stlab.cli.options import console_for_output
    from stlab.cli.study import _say_outcome
    from stlab.execution.collect import trial_row
    from stlab.execution.run_study import Outcome
    from stlab.storage import Store, TrialDirectory

    plan, store = _plan(study), Store(tmp_path / "[/runs]")
    for trial in plan.trials:
        directory = TrialDirectory(store, trial.trial_id)
        directory.write_trial({**trial.spec.model_dump(mode="json"), **trial.identity})
        directory.write_failure({"reason": text, "log_tail": [text]})
    rows = [trial_row(trial, store) for trial in plan.trials]
    outcome = Outcome(plan, rows, f"{store.location}/report", kept="[/kept]", troubles=[f"worker group 0: {text}"])
    _say_outcome(console_for_output(), outcome, store.location, "sqlite:///x", text)
    told = capsys.readouterr().out
    troubles = (f"worker group 0: {text}", f"MLflow is behind: {text} Later")
    for line in (f"): {text}", f"    {text}", *troubles, f"report   {store.location}/report"):
        assert line in told, line
    assert f"failed: {VARIANT}, seed 0" in told


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_the_progress_shows_notes_as_they_are(text: str, terminal: bool, study: Path) -> None:
    from stlab.execution.events import Ended, Epochs, Note
    from stlab.execution.progress import TerminalProgress

    plan = replace(_plan(study), notes=(text,))
    told = io.StringIO()
    progress = TerminalProgress(Console(file=told, width=400, force_terminal=terminal, color_system=None))
    odd = next(trial for trial in plan.trials if trial.spec.variant == VARIANT)
    progress.begin(plan, plan.trials, 1)
    try:
        progress.event(Note(odd.trial_id, text))
        progress.event(Epochs(odd.trial_id, [{"epoch": 1, "val_rmse": 1.0, "seconds": 1.0}]))
        progress.event(Ended(odd.trial_id, "failed"))
    finally:
        progress.stop()
    assert f"note: {text}" in told.getvalue()
    assert f"! {VARIANT}, seed 0: {text}" in told.getvalue()
    assert f"  {VARIANT}, seed 0 " in told.getvalue()


@pytest.mark.parametrize("text", TEXTS)
def test_the_end_of_a_job_shows_its_message_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stlab.cli.cluster import _say_end
    from stlab.cli.options import console_for_output
    from stlab.submission.jobs import Job

    job = Job("job", "study", "FAILED", None, None, None, text, "python")
    assert _say_end(console_for_output(), job) == 1
    assert f"job failed: {text}" in capsys.readouterr().out


def test_plan_and_data_show_names_as_they_are(say: Callable[..., Any], study: Path, tmp_path: Path, grid: Any) -> None:
    import numpy as np

    planned = say("plan", study.name, "--storage", "[/runs]", "--set", "seeds=[0]")
    assert planned.code == 0, planned
    assert VARIANT in planned.out
    folder = tmp_path / "[/bold]"
    folder.mkdir(parents=True)  # a slash parts folders: `[` and `bold]`
    np.savez(folder / "[a].npz", **grid)
    looked = say("data", "inspect", "[/bold]/[a].npz", "--picture", "[/bold]/[a].png")
    assert looked.code == 0, looked
    assert "[/bold]/[a].png" in looked.out


@pytest.mark.parametrize("text", TEXTS)
def test_tables_of_states_and_replays_show_reasons_as_they_are(text: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stlab.cli.options import console_for_output
    from stlab.cli.replay import _say
    from stlab.cli.status import _table
    from stlab.inspection.replay import Condition, Replay
    from stlab.inspection.status import TrialState

    console = console_for_output()
    console.print(_table([TrialState("aa", "[/x] [bold]", "failed", reason="[/y] :car:")]))
    spec = next(trial.spec for trial in _plan(study).trials)
    _say(console, Replay("aa", spec, (), (Condition("torch", "[/then]", "[/now]"),), failure=text), 1e-6)
    told = capsys.readouterr().out
    for words in ("[/x] [bold]", "[/y] :car:", "[/then] then, [/now] now", f"no result: {text}"):
        assert words in told, words
