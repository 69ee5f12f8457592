"""A search whose driver is killed, at a random moment, ends as one that was left alone: every trial once.

Kills at all other moments are tried without Ray, in ``tests/engine``: ``search/test_search.py`` and ``execution/test_search_supply.py``.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.trials import assert_went_on, saved_seconds

TRIALS = 6
SEARCH = f"""\
name: searched
base:
  data: {{path: 'synthetic:city?weeks=4'}}
  model: {{name: st_vfm, backbone: vit_test, weights: random, temporal_width: 8, temporal_layers: 1, rank: 2}}
  train: {{max_epochs: 3, warmup_epochs: 1, checkpoint_seconds: 0}}
search:
  space:
    train.lr: {{float: [1.0e-4, 1.0e-2], log: true}}
    model.dropout: {{float: [0.0, 0.3]}}
  startup_trials: 3
  max_trials: {TRIALS}
baselines: []
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def _numbers(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("studies/searched/search/base/[0-9]*.json"))
    return [json.loads(path.read_text()) for path in files]


def _results(storage: Path) -> dict[str, int]:
    """Trial → when its result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in storage.glob("trials/*/result.json")}


def test_a_search_that_is_killed_is_whole(stlab: Any, two_nodes: Any) -> None:
    """Slow: Ray starts once, and two commands run on the cluster of all tests."""
    (stlab.folder / "searched.yaml").write_text(SEARCH)
    storage, seed = stlab.folder / "runs", random.randrange(2**32)
    print(f"the moment of the kill is drawn from seed {seed}")
    log = stlab.folder / "killed.log"
    run = stlab.start("run", "searched.yaml", "--storage", "runs", log=log)
    until = time.monotonic() + 400
    while not _results(storage) and run.poll() is None:
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    run.kill()
    assert run.wait(timeout=30) == -signal.SIGKILL, "it had ended before: more trials are needed"
    stlab.wait_until_gone(60)
    ended, saved = _results(storage), saved_seconds(storage)
    before = {entry["number"]: entry["trial_id"] for entry in _numbers(storage)}
    stlab.variables |= two_nodes.client | {"RAY_ADDRESS": two_nodes.address}
    answer = stlab("run", "searched.yaml", "--storage", "runs", timeout=900)
    assert answer.code == 0, answer
    entries = _numbers(storage)
    assert [entry["number"] for entry in entries] == list(range(TRIALS))
    assert len({entry["trial_id"] for entry in entries}) == TRIALS
    assert all(entry["told"] for entry in entries), "the sampler's history is whole"
    assert {n: t for n, t in before.items() if entries[n]["trial_id"] != t} == {}, "what was begun keeps its number"
    after = _results(storage)
    assert {trial for trial, when in ended.items() if after[trial] != when} == set(), "trained again"
    assert_went_on(storage, saved)
    trials = {path.name for path in (storage / "trials").iterdir()}
    assert trials == {entry["trial_id"] for entry in entries}
    for trial in trials:
        epochs = pd.read_parquet(storage / "trials" / trial / "epochs.parquet")
        assert epochs["epoch"].tolist() == [1, 2, 3], "every epoch counts once"
    tested = [path.parent.name for path in storage.glob("trials/*/test.json")]
    rows = pd.read_parquet(storage / "studies/searched/results/trials.parquet")
    assert tested == rows[~rows["searched"]]["trial_id"].tolist()
    assert rows[~rows["searched"]]["val_rmse"].iloc[0] == rows["val_rmse"].min()
    again = stlab("run", "searched.yaml", "--storage", "runs", timeout=300)
    assert again.code == 0, again
    assert _results(storage) == after, "nothing is left to do"
