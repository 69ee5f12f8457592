"""Every model keeps the contract, and each clause of it finds a model that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stlab import catalog
from stlab.data import Dataset, load_dataset
from stlab.inspection.contract import CHECKS, NotApplicable, Subject, examine
from stlab.study.spec import DataSpec
from stmodels.config import PARTS
from stmodels.errors import ConfigError
from tests.models import broken

FAMILIES = ("grid", "sensors")
SubjectOf = Callable[..., Subject]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Four weeks of hours: 8×8 cells, and six sensors."""
    steps = np.arange(700)
    wave = 50 + 10 * np.sin(2 * np.pi * steps / 24)[:, None] + np.random.default_rng(0).normal(0, 1, (len(steps), 6))
    hours = np.datetime64("2024-01-01", "s") + steps * np.timedelta64(3600, "s")
    path = tmp_path_factory.mktemp("contract") / "net.npz"
    np.savez(path, data=wave[..., None].astype(np.float32), timestamps=hours)
    return {
        "grid": load_dataset(DataSpec(path="synthetic:city")),
        "sensors": load_dataset(DataSpec(path=str(path), family="sensors", graph="correlation", graph_neighbours=2)),
    }


@pytest.fixture(scope="module")
def subject_of(datasets: dict[str, Dataset]) -> SubjectOf:
    """A model as small as it declares; the test is skipped if it does not forecast the family."""
    made: dict[tuple[str, str], Subject | str] = {}

    def get(name: str, family: str) -> Subject:
        if (name, family) not in made:
            values = {"name": name, **catalog.config_class(name).SMALL}
            try:
                catalog.create_config(values).check(datasets[family].info)
                made[name, family] = Subject(values, datasets[family])
            except ConfigError as error:
                made[name, family] = str(error)
        found = made[name, family]
        return found if isinstance(found, Subject) else pytest.skip(found)

    return get


@pytest.mark.parametrize("clause", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", catalog.MODELS)
def test_every_model_keeps_the_contract(subject_of: SubjectOf, name: str, family: str, clause: str) -> None:
    subject = subject_of(name, family)
    try:
        assert CHECKS[clause](subject) is None
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", catalog.MODELS)
def test_every_model_forecasts_some_family(datasets: dict[str, Dataset], name: str) -> None:
    config = catalog.create_config({"name": name, **catalog.config_class(name).SMALL})
    refused = 0
    for dataset in datasets.values():
        try:
            config.check(dataset.info)
        except ConfigError:
            refused += 1
    assert refused < len(FAMILIES)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch, datasets: dict[str, Dataset]) -> Callable[..., Subject]:
    monkeypatch.setitem(catalog.MODELS, "linear", f"{broken.__name__}:LinearConfig")
    monkeypatch.setitem(catalog.MODELS, "miscounted", f"{broken.__name__}:MiscountedConfig")

    def make(breaks: str = "", name: str = "linear") -> Subject:
        return Subject({"name": name, "breaks": breaks}, datasets["sensors"])

    return make


def test_a_sound_model_passes_every_clause(linear: Callable[..., Subject]) -> None:
    found = list(examine(linear()))
    assert [finding.clause for finding in found] == list(CHECKS)
    assert [finding for finding in found if finding.problem] == []
    assert [finding.clause for finding in found if finding.skipped] == ["pretraining", "parameters"]


@pytest.mark.parametrize(
    ("clause", "breaks", "words"),
    [
        ("shapes", "shapes", r"the forecast is \(6, 1, 6, 1\); \(B, Q, \*S\) is \(6, 12, 6, 1\)"),
        ("gradients", "gradients", "no gradient reaches unused"),
        ("no future", "no future", "changes with the target"),
        ("no future", "no future: mask", "changes with the target's mask"),
        ("no future", "no future: series", "readings that come after the history"),
        ("windows apart", "windows apart", "other windows of its batch"),
        ("masks", "masks", "a target that the mask leaves out"),
        ("criterion", "criterion", "its loss does not use self.criterion"),
        ("pretraining", "pretraining", r"the stage first fails on sensors \(9, 1\): RuntimeError"),
        ("bfloat16", "bfloat16", "the gradient of weight is not finite"),
        ("micro-batches", "micro-batches", "the gradient of weight is another in three parts"),
        ("resumption", "resumption", "weight is another after it was saved and loaded"),
        ("seeds", "seeds", "the same seed gives other weights"),
        ("learning", "learning", "its loss is still 1.00 of the first"),
        ("components", "components", "without breaks nothing changes"),
        ("season", "season", "it reads target_season"),
        ("information", "information: calendar", r"it reads the calendar, and its information\(\) says window"),
        ("information", "information: season", "it reads earlier days"),
        ("network", "network: unsaid", "it reads the network and does not say so"),
        ("network", "network: unread", "it says that it reads the network, and others make the same forecast"),
        ("inputs", "inputs: unsaid", "it reads further channels and does not say so"),
        ("inputs", "inputs: unread", "it says that it reads further channels, and others make the same forecast"),
        ("odd sizes", "odd sizes", "ValueError instead of a ConfigError: odd"),
        ("traced", "traced", "it is not traced"),
    ],
)
def test_each_clause_finds_a_model_that_breaks_it(linear: Callable[..., Subject], clause: str, breaks: str, words: str) -> None:
    found = {finding.clause: finding.problem for finding in examine(linear(breaks)) if finding.problem}
    assert clause in found
    assert re.search(words, found[clause]), found[clause]


@pytest.mark.parametrize("part", PARTS)
def test_a_model_that_says_what_it_reads_of_the_data_may(linear: Callable[..., Subject], part: str) -> None:
    assert [finding for finding in examine(linear(f"nothing, and reads the {part}")) if finding.problem] == []


def test_a_number_of_parameters_that_is_wrong_is_found(linear: Callable[..., Subject]) -> None:
    found = {finding.clause: finding.problem for finding in examine(linear(name="miscounted"))}
    assert found["parameters"] == "it has 156 trainable parameters and declares 157"


def test_a_variant_that_starts_from_other_weights_is_found(linear: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = linear()
    drawn = Subject.model

    def shifted(self: Subject, seed: int = 0, *rest: Any, **changes: Any) -> Any:
        return drawn(self, seed + (2 if changes.get("level") is False else 0), *rest, **changes)

    monkeypatch.setattr(Subject, "model", shifted)
    assert CHECKS["seeds"](subject) == "the module  starts from other weights without level"


def test_an_error_inside_a_check_is_a_finding(linear: Callable[..., Subject]) -> None:
    subject = linear()
    subject.windows = None  # type: ignore[assignment]
    found = {finding.clause: finding.problem for finding in examine(subject)}
    assert found["shapes"] == "AttributeError: 'NoneType' object has no attribute 'gather'"
