"""Find study files by name, read them with overrides, validate them, and write them back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from stlab.errors import StorageError, StudyError
from stlab.files import holds_secret, is_uri, local_copy, secrets_of, shown
from stlab.study.dataset_files import chosen_datasets
from stlab.study.datasets import entry_problems
from stlab.study.errors import Problem, explain, problem, section_fields, show, study_error, unknown_field
from stlab.study.source import SECTIONS, Key, StudySource, flatten_overrides, leaves
from stlab.study.spec import StudySpec
from stlab.study.yaml import write_yaml

__all__ = [
    "StudySource",
    "dump_study",
    "find_study",
    "flatten_overrides",
    "load_study",
    "load_study_source",
    "parse",
    "shipped_studies",
]

NO_PASSWORD = (
    "a password does not belong in a study, which is kept in its storage, in MLflow and in the report. Take it out of the URL. The "
    "database's client finds it by itself: for PostgreSQL in PGPASSWORD or ~/.pgpass, for MySQL in a file that the URL names, "
    "?read_default_file=~/.my.cnf. A search on a cluster reads them on the cluster's nodes."
)
"""The reason why a `search.storage` is refused, and the remedy."""

_SUFFIXES = (".yaml", ".yml")


def shipped_studies() -> list[Path]:
    """The studies that come with the package, by name."""
    package = Path(__file__).resolve().parents[1]
    # A wheel has them inside the package, and a checkout has them beside `platform/`.
    for folder in (package / "search_spaces", package.parents[1] / "search_spaces"):
        if folder.is_dir():
            return _studies_in(folder)
    return []


def find_study(name_or_path: str) -> Path:
    """The file of a study: a path or URI, or a bare name in ``./search_spaces`` or among the shipped ones.

    The name may omit ``.yaml`` or ``.yml``.

    Raises:
        StudyError: there is no such study; the message lists the known ones.
    """
    if is_uri(name_or_path):
        try:
            return local_copy(name_or_path, folders=False)
        except (FileNotFoundError, IsADirectoryError, StorageError) as error:
            raise StudyError(f"the study {shown(name_or_path)} cannot be read: {error}") from error
    given = Path(name_or_path).expanduser()
    if not name_or_path.strip():
        raise StudyError(f"the name of the study is empty. {_known()}")
    if found := _file(given):
        return found
    if given.name == name_or_path:
        here = Path.cwd() / "search_spaces"
        shipped = [path for path in shipped_studies() if name_or_path in (path.stem, path.name)]
        if found := _file(here / name_or_path) or next(iter(shipped), None):
            return found
    if given.is_dir():
        raise StudyError(f"{name_or_path} is a folder. {_known()}")
    names = list(_by_name())
    close = get_close_matches(given.stem, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise StudyError(f"there is no study '{name_or_path}', neither as a file nor by name.{hint} {_known()}")


def load_study_source(name_or_path: str, overrides: Sequence[str] = ()) -> StudySource:
    """Read a study's text and apply ``--set`` overrides, without validation.

    Raises:
        StudyError: the file is missing, unreadable or not YAML, or an override cannot be applied.
    """
    _refuse_passwords(overrides)
    path = find_study(name_or_path)
    label = _label(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StudyError(f"{label}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise StudyError(f"{label}:{line}: is not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from error
    return StudySource.from_text(text, label, overrides, path.resolve().parent)


def with_trials(name_or_path: str, overrides: Sequence[str] | None, trials: int | None) -> list[str]:
    """The overrides, with ``--trials N`` as ``search.max_trials=N`` among them.

    Raises:
        StudyError: the study has no search, or cannot be read.
    """
    overrides = list(overrides or ())
    if trials is None:
        return overrides
    if not isinstance((source := load_study_source(name_or_path, overrides)).data.get("search"), dict):
        raise StudyError(f"--trials {trials}: this is the number of trials of a search, and {source.label} has no search. Leave it out.")
    return [*overrides, f"search.max_trials={trials}"]


def with_datasets(name_or_path: str, overrides: Sequence[str] | None, words: Sequence[str] | None) -> list[str]:
    """The overrides, with the data sets that ``--datasets`` chooses among them.

    Raises:
        StudyError: a word chooses nothing, or the study cannot be read.
    """
    overrides = list(overrides or ())
    if not words:
        return overrides
    entries = load_study_source(name_or_path, overrides).data.get("datasets")
    chosen = chosen_datasets(words, entries if isinstance(entries, dict) else {})
    return [*overrides, f"datasets={json.dumps(chosen)}"]


def parse(source: StudySource) -> StudySpec:
    """The validated study. The fields of the model are not checked here but when the plan is made.

    Raises:
        StudyError: the study is not valid; the message has one line for each problem.
    """
    _refuse_passwords(override.text for override in source.overrides)
    search = source.data.get("search")
    storage = search.get("storage") if isinstance(search, dict) else None
    if isinstance(storage, str) and secrets_of(storage):  # reported alone, since other messages might show the password
        raise study_error([problem(f"{shown(storage)}: {NO_PASSWORD}", ("search", "storage"), source)])
    problems = list(_path_problems(source))
    try:
        spec = StudySpec.model_validate(source.data)
    except ValidationError as error:
        reported = {known.field for known in problems}
        problems += [found for found in explain(error, StudySpec, source) if found.field not in reported]
        raise study_error(problems) from error
    if problems:
        raise study_error(problems)
    return spec


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> StudySpec:
    """Find, read, override and validate a study.

    Args:
        name_or_path: See `find_study`.
        overrides: ``path=value`` with the value in YAML. A path that starts with data, model, train or resources names a field of
            the base (``model.rank=4``); any other names a field of the study (``seeds=[0, 1]``, ``variants.full.model.rank=4``).

    Raises:
        StudyError: see `find_study`, `load_study_source` and `parse`.
    """
    return parse(load_study_source(name_or_path, overrides))


def dump_study(spec: StudySpec) -> str:
    """The study as YAML with every default written out. Reading it again gives an equal study.

    Raises:
        StudyError: the study, which was not read from text, holds a password; the file would keep it.
    """
    if spec.search is not None and secrets_of(spec.search.storage or ""):
        raise StudyError(f"search.storage={shown(spec.search.storage or '')}: {NO_PASSWORD}")
    return write_yaml(spec.model_dump())


def _refuse_passwords(overrides: Iterable[str]) -> None:
    """Refuse a search storage with a password first, since any other error would show the override as typed."""
    for text in overrides:
        path, _, value = text.partition("=")
        if path.strip().startswith("search") and holds_secret(value):
            raise StudyError(f"--set {path.strip()}: {NO_PASSWORD}")


def _path_problems(source: StudySource) -> Iterator[Problem]:
    """Paths of variants and axes that name no field. A model's own fields are left to the model."""
    variants = source.data.get("variants")
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        if not isinstance(variant, dict):
            continue
        try:
            flatten_overrides(variant)
        except StudyError as error:
            yield problem(str(error), ("variants", name), source)
        for keys in leaves(variant):
            if message := _path_message(".".join(keys)):
                yield problem(message, ("variants", name, *keys), source)
    datasets = source.data.get("datasets")
    for name, entry in datasets.items() if isinstance(datasets, dict) else ():
        for where, message in entry_problems(str(name), entry):
            yield problem(message, ("datasets", str(name), *where), source)
    axes = source.data.get("axes")
    for path, values in axes.items() if isinstance(axes, dict) else ():
        loc: tuple[Key, ...] = ("axes", path)
        if isinstance(values, dict):
            dotted = f"{path}.{next(iter(values), 'field')}"
            yield problem(f"write the path of an axis with dots: {dotted}.", loc, source)
        elif message := _path_message(path):
            yield problem(message, loc, source)
        elif isinstance(values, list):
            if not values:
                yield problem("an axis without values leaves nothing to run. Give at least one value.", loc, source)
            if twice := [value for index, value in enumerate(values) if value in values[:index]]:
                yield problem(f"the value {show(twice[0])} appears twice. Keep one of them.", loc, source)
    yield from _search_path_problems(source)


def _search_path_problems(source: StudySource) -> Iterator[Problem]:
    search = source.data.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    for path, found in space.items() if isinstance(space, dict) else ():
        loc: tuple[Key, ...] = ("search", "space", path)
        if path in SECTIONS and isinstance(found, dict):
            dotted = f"{path}.{next(iter(found), 'field')}"
            yield problem(f"write the path of a searched field with dots: {dotted}.", loc, source)
        elif message := _path_message(path):
            yield problem(message, loc, source)
        when = found.get("when") if isinstance(found, dict) else None
        for condition in when if isinstance(when, dict) else ():
            if message := _path_message(condition):
                yield problem(message, (*loc, "when", condition), source)


def _path_message(path: str) -> str | None:
    section, _, field = path.partition(".")
    fields = section_fields()
    if section not in SECTIONS:
        owners = [f"{name}.{section}" for name, known in fields.items() if section in (known or ())]
        hint = f" Did you mean '{owners[0]}'?" if owners else ""
        if section == "base" and field:
            hint = f" Leave out 'base.': {field}."
        return f"a path starts with one of {', '.join(f'{name}.' for name in SECTIONS)}{hint or ' This one does not.'}"
    if not field:
        return f"this names a whole section. Name one of its fields: {section}.{(fields[section] or ['name'])[0]}."
    allowed = fields[section]
    name, _, inner = field.partition(".")
    if allowed is None:
        return None
    if name not in allowed:
        return unknown_field(name, allowed)
    return f"`{section}.{name}` is a single value, it has no field '{inner}'." if inner else None


def _studies_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def _file(path: Path) -> Path | None:
    if not path.name:  # `.` and `/` have no name
        return None
    candidates = (path, *(path.with_name(path.name + suffix) for suffix in _SUFFIXES))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _by_name() -> dict[str, Path]:
    """Every study by its name. A study in the working directory hides a shipped one."""
    found = [*_studies_in(Path.cwd() / "search_spaces"), *shipped_studies()]
    return {path.stem: path for path in reversed(found)}


def _known() -> str:
    names = sorted(_by_name())
    listed = f"Studies by name: {', '.join(names)}." if names else "No studies are shipped with this installation."
    return f"{listed} Or give the path of a YAML file."


def _label(path: Path) -> str:
    """The path of a study in messages, relative to the working directory where the file lies below it."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
