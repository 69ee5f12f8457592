"""A trial's id changes with the code that computes its numbers, and with no other code."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stlab
import stmodels
from stlab.catalog import create_config
from stlab.study import identity
from stlab.study.sources import digests

MODELS = ("st_vfm", "st_vlm", "lstm", "last_value", "ridge")
Edit = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in (stlab, stmodels):
        shutil.copytree(Path(package.__file__ or "").parent, folder / package.__name__, ignore=ignored)
    return folder


@pytest.fixture
def edit(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """The copy counts in place of the sources; ``edit(file, old, new)`` changes it, until the test ends."""
    monkeypatch.setattr(identity, "roots", lambda: {name: copied / name for name in ("stlab", "stmodels")})
    before: dict[Path, str] = {}

    def change(file: str, old: str, new: str) -> None:
        path = copied / file
        text = path.read_text() if path.exists() else ""
        assert old in text
        before.setdefault(path, text)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(old, new, 1) if old else text + new)
        identity.own_digests.cache_clear()  # as in another process

    identity.own_digests.cache_clear()
    yield change
    for path, text in before.items():
        path.write_text(text)
    identity.own_digests.cache_clear()


def code() -> dict[str, dict[str, str]]:
    return {name: identity.source_digests(create_config({"name": name})) for name in MODELS}


def changed(before: dict[str, dict[str, str]]) -> set[str]:
    after = code()
    return {name for name in MODELS if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stmodels/new_model/model.py", "", "RATE = 3\n"),
        ("stmodels/layers/lstm.py", "", "# a remark\n\n\n"),
        ("stmodels/series/lstm_config.py", '"""Hidden units of encoder and decoder."""', '"""Units."""'),
        ("stmodels/series/lstm_config.py", "add the array `timestamps`, or switch it off", "none at all"),
        ("stmodels/series/lstm_config.py", "return self.layers *", "return 7 * self.layers *"),
        ("stmodels/st_vlm/model.py", "def model_input(", "def model_input(self, *_):\n        return 7\n\n    def unused_input("),
        ("stlab/training/record.py", "", "MORE = 1\n"),
        ("stlab/data/formats/npz.py", "", "MORE = 1\n"),
        ("stlab/report/page/study.py", "", "MORE = 1\n"),
        ("stlab/training/loop.py", "-> str | None:", "-> object:"),
    ],
)
def test_what_computes_no_number_leaves_every_id(edit: Edit, file: str, old: str, new: str) -> None:
    before = code()
    edit(file, old, new)
    if "model_input" in new:
        assert changed(before) == {"st_vlm"}, "a method of any other name counts"
        edit(file, "unused_input", "model_input")
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "models"),
    [
        ("stmodels/layers/lstm.py", "import torch\n", "import torch\n\nSCALE = 2.0\n", {"st_vlm", "lstm"}),
        ("stmodels/st_vfm/config.py", '{"adapter": 64,', '{"adapter": 65,', {"st_vfm"}),
        ("stmodels/backbones.py", "import torch\n", "import torch\n\nSCALE = 2.0\n", {"st_vfm", "st_vlm"}),
        ("stmodels/layers/ridge.py", "import torch\n", "import torch\n\nSCALE = 2.0\n", {"last_value", "ridge", "st_vfm", "st_vlm"}),
        ("stlab/training/step.py", "fused=is_fused", "fused=False", set(MODELS)),
        ("stlab/data/protocol/scaler.py", "import numpy as np\n", "import numpy as np\n\nSCALE = 2.0\n", set(MODELS)),
        ("stlab/training/metrics.py", "import torch\n", "import torch\n\nSCALE = 2.0\n", set(MODELS)),
    ],
)
def test_a_changed_constant_changes_the_models_that_use_it(edit: Edit, file: str, old: str, new: str, models: set[str]) -> None:
    before = code()
    edit(file, old, new)
    assert changed(before) == models


def test_the_version_is_that_of_training(edit: Edit) -> None:
    before = identity.code_version()
    edit("stmodels/st_vfm/config.py", '{"adapter": 64,', '{"adapter": 65,')
    assert identity.code_version() == before
    edit("stlab/training/step.py", "fused=is_fused", "fused=False")
    assert identity.code_version() != before


def test_a_file_counts_by_what_it_does(tmp_path: Path) -> None:
    """Imports are followed wherever they stand, except those for type checkers; a name of a package is no module."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "from typing import TYPE_CHECKING\nfrom mine.b import f\nimport numpy\nif TYPE_CHECKING:\n    import mine.types\n"
        "def late():\n    from . import c\n    return c\n"
    )
    (package / "b.py").write_text("from mine import VALUE\ndef f(): return 1\n")
    for name in ("c", "types", "other"):
        (package / f"{name}.py").write_text("")
    found = digests(["mine.a"], {"mine": package})
    assert list(found) == ["mine/__init__.py", "mine/a.py", "mine/b.py", "mine/c.py"]
    assert list(digests(["mine.a"], {"mine": package}, {"mine.b"})) == ["mine/__init__.py", "mine/a.py", "mine/c.py"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("def f(x):\n    return x + 1\n", True),
        ('"""A module."""\ndef f(x: int) -> int:\n    """Add one."""\n    # one\n    return (x +\n            1)\n', True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x, y=0):\n    return x + 1\n", False),
    ],
)
def test_words_and_layout_do_not_count(tmp_path: Path, other: str, same: bool) -> None:
    for name, text in (("one", "def f(x):\n    return x + 1\n"), ("other", other)):
        (tmp_path / f"{name}.py").write_text(text)
    one, two = (digests([name], {name: tmp_path / f"{name}.py"})[f"{name}.py"] for name in ("one", "other"))
    assert (one == two) is same


@pytest.mark.parametrize("other", ["raise ValueError('other')", "raise ValueError(f'{x} is wrong') from None"])
def test_the_text_of_an_error_does_not_count(tmp_path: Path, other: str) -> None:
    found = []
    for line in ("raise ValueError('text')", other, "raise TypeError('text')"):
        path = tmp_path / f"m{len(found)}.py"
        path.write_text(f"def f(x):\n    if x:\n        logger.info('seen %s', x)\n        {line}\n")
        found.append(digests([path.stem], {path.stem: path})[path.name])
    assert found[0] == found[1] != found[2]
