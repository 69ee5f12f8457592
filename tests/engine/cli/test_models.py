"""`stlab models`: the list, the fields of a model, and the contract as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stlab import catalog
from tests.models import broken

Say = Callable[..., Any]
NET = ("--set", "data.path=net.npz", "--set", "data.family=sensors")


def test_every_model_is_listed_with_its_parameters(say: Say) -> None:
    answer = say("models", "--set", "data.path=synthetic:city")
    assert answer.code == 0, answer
    lines = {line.split("│")[1].strip(): line for line in answer.out.splitlines() if line.startswith("│")}
    assert lines.keys() >= set(catalog.MODELS)
    assert "arXiv 2507.11558" in lines["st_vfm"]
    assert "of" in lines["st_vfm"].split("│")[4]
    assert lines["lstm"].split("│")[4].strip() == "–", "it is not for grids"
    assert [lines[name].split("│")[3].strip() for name in ("slot_of_week_mean", "last_value")] == ["calendar", ""]


def test_the_fields_of_a_model_are_listed(say: Say) -> None:
    answer = say("models", "lstm")
    assert answer.code == 0, answer
    assert "model.hidden" in answer.out
    assert "64" in answer.out
    assert "Hidden units of encoder and decoder." in answer.out


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(catalog.MODELS, "linear", f"{broken.__name__}:LinearConfig")
    rng = np.random.default_rng(0)
    np.savez("net.npz", data=rng.normal(50, 5, (400, 4, 1)).astype(np.float32))
    return tmp_path / "net.npz"


def test_a_model_is_checked_on_the_users_data(say: Say, net: Path) -> None:
    on_it = ("--set", f"data.path={net}", "--set", "data.family=sensors")
    sound = say("models", "check", "linear", *on_it)
    assert sound.code == 0, sound
    assert "It keeps the contract." in sound.out
    wrong = say("models", "check", "linear", *on_it, "--set", "model.breaks=components")
    assert wrong.code == 1, wrong
    assert "One clause is broken." in wrong.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check",), "name the model"),
        (("./none.py:X",), "model.name=none.py:X: there is no file"),
        (("check", "lstm"), "--set data.path=PATH"),
        (("lsmt",), "Did you mean 'lstm'?"),
        (("lstm", "check", "now"), "too many words"),
        (("check", "lstm", *NET, "--set", "model.hiden=3"), "Did you mean 'hidden'?"),
        (("check", "st_vfm", *NET), "st_vfm forecasts grids"),
        (("check", "lstm", *NET, "--set", "data.path=no.npz"), "no.npz"),
    ],
)
@pytest.mark.usefixtures("net")
def test_wrong_words_are_told(say: Say, words: tuple[str, ...], said: str) -> None:
    answer = say("models", *words)
    assert (answer.code, said in answer.err) == (2, True), answer
