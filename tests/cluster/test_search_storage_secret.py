"""A password in ``search.storage`` would be published with the study: it is refused, and stands nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlab.files import holds_secret, secrets_of, shown

SECRET = "hunter2Nowhere"
URLS = [
    f"postgresql+psycopg2://me:{SECRET}@db/x", f"postgresql://db/x?user=me&password={SECRET}", f"mysql://me:a/{SECRET}?#@db/x",
    f"mysql://db/x?passwd={SECRET}", f"redis://:{SECRET}@db:6379/0", f"postgresql://me:[{SECRET}@db:5432/x",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
]  # fmt: skip
SEARCH = "search:\n  space: {{train.lr: {{float: [1.0e-4, 3.0e-3], log: true}}}}\n  max_trials: 2\n  storage: '{url}'\n"
SOUND = [
    "sqlite:////data/a:b@c.db", "postgresql+psycopg2://me@db:5432/x?passfile=/home/me/.pgpass", "postgresql://db/x",
    "mysql://me@db/x?read_default_file=~/.my.cnf", "http://host:5000/a@b", "s3://bucket/a:b@c", "gs://bucket/a@b",
]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, study_text: str) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(study_text + SEARCH.format(url="sqlite:///search.db"))
    return path


def _is_refused(answer: Any, *words: str) -> None:
    assert answer.code == 2, answer
    assert all(word in answer.err for word in ("PGPASSWORD", "password does not belong in a study", *words)), answer.err
    assert SECRET not in answer.err + answer.out


@pytest.mark.parametrize("command", [["run"], ["plan"], ["submit", "--address", "http://127.0.0.1:9", "--storage", "s3://b/r"]])
@pytest.mark.parametrize("url", URLS)
def test_a_password_in_a_study_is_refused_with_its_line(
    url: str, command: list[str], study: Path, study_text: str, say: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study.write_text(study_text + SEARCH.format(url=url))
    _is_refused(say(command[0], study.name, *command[1:]), "tiny.yaml:13: search.storage: ", "***")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("command", [["run"], ["plan"], ["submit", "--address", "http://127.0.0.1:9", "--storage", "s3://b/r"]])
@pytest.mark.parametrize("override", ["search.storage={url}", "search.storage='{url}'", "search={{storage: '{url}', max_trials: x"])
def test_a_password_in_an_override_is_refused_whatever_else_is_wrong(
    override: str, command: list[str], study: Path, say: Callable[..., Any]
) -> None:
    for url in URLS:
        set_to = override.format(url=url)
        _is_refused(say(command[0], study.name, *command[1:], "--set", set_to), f"--set {set_to.partition('=')[0]}: ")


def test_what_python_gives_is_not_written_down(study: Path) -> None:
    from stlab.errors import StudyError
    from stlab.search.study import check_storage
    from stlab.study.file import dump_study, load_study

    spec = load_study(str(study))
    assert spec.search is not None
    search = spec.search.model_copy(update={"storage": URLS[0]})
    with pytest.raises(StudyError, match="PGPASSWORD") as refused:
        dump_study(spec.model_copy(update={"search": search}))
    assert SECRET not in str(refused.value)
    for url in URLS:
        with pytest.raises(StudyError, match="cannot be used") as refused:
            check_storage(url, ["x"])
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", URLS)
def test_wherever_a_password_stands_it_is_found_and_not_shown(url: str) -> None:
    assert any(SECRET in found for found in secrets_of(url))
    assert SECRET not in shown(url)
    assert "***" in shown(url)
    assert holds_secret(f"{{storage: '{url}', sampler: tpe}}")


@pytest.mark.parametrize("url", SOUND)
def test_what_holds_no_password_is_shown_as_it_is(url: str) -> None:
    assert secrets_of(url) == []
    assert not holds_secret(f"{{storage: {url}}}")
    assert shown(url) == url
