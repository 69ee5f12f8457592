"""The data sets of a study: each entry is the base with some fields of its own, so a study on several is one study for each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pydantic

from stlab.errors import DataError, StudyError
from stlab.study.errors import Problem, explain, problem, section_fields, unknown_field
from stlab.study.resolve import merged
from stlab.study.source import SECTIONS, StudySource, did_you_mean, entry_path, flatten_overrides
from stlab.study.spec import BaseConfig, DataSpec, ResourcesSpec, StudySpec, TrainSpec

if TYPE_CHECKING:
    from stlab.study.plan import PlannedTrial

WITHOUT = "without"
"""The field of an entry that lists the variants which are not run on that data set."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""The name of a data set, which is also that of a folder of the report, a part of the path in ``--set``, and a column."""


def entry_overrides(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's overrides of the base by dotted path. A field of ``data`` stands there by its bare name.

    Raises:
        StudyError: two keys write the same field.
    """
    own: dict[str, Any] = {}
    for key, value in entry.items():
        if key != WITHOUT:
            path = entry_path(key)
            if path in own:
                raise StudyError(f"`{path}` is written twice. Keep one of them.")
            own[path] = value
    return flatten_overrides(own)


def on_dataset(study: StudySpec, name: str, source: StudySource | None = None) -> tuple[StudySpec | None, list[Problem]]:
    """The study on one of its data sets alone, and what is wrong with that entry; the study is None where something is.

    The entry changes the base, so variants and axes keep precedence, and a field of the base's model does not concern a variant with
    another model.
    """
    entry = study.datasets[name]
    values = merged(study, entry_overrides(entry))
    beside = source and source.on(name)
    problems = [problem(said, ("datasets", name, WITHOUT), source) for said in _bad_without(study, entry)]
    for path in entry_overrides(entry).keys() & study.axes.keys():
        message = f"{path} is an axis, whose values are crossed with every data set. Set it in one place."
        problems.append(problem(message, ("datasets", name), source))
    owners: dict[str, type[pydantic.BaseModel]] = {"data": DataSpec, "train": TrainSpec, "resources": ResourcesSpec}
    for section, owner in owners.items():
        try:
            owner.model_validate(values[section])
        except pydantic.ValidationError as error:
            problems += explain(error, owner, beside, section=section)
    if problems:
        return None, problems
    variants = {variant: own for variant, own in study.variants.items() if variant not in entry.get(WITHOUT, ())}
    part = {"base": BaseConfig.model_validate(values), "variants": variants, "datasets": {}, "ablate": None}
    return study.model_copy(update=part), []


def _bad_without(study: StudySpec, entry: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the variants that an entry leaves out."""
    names = entry.get(WITHOUT, [])
    if not isinstance(names, list):
        yield f"must be a list of variants, this is {names!r}."
        return
    for name in names:
        if name not in study.variants:
            hint = did_you_mean(str(name), list(study.variants))
            yield f"there is no variant {name!r}.{hint} The variants are {', '.join(study.variants)}."
    reference = study.reference or ("full" if "full" in study.variants else next(iter(study.variants)))
    if reference in names:
        yield f"{reference!r} is the reference, with which the others are compared on every data set. Set `reference` to another variant."
    if set(study.variants) <= {str(name) for name in names}:
        yield "this leaves no variant. Leave the data set out instead."


def parts(study: StudySpec, *names: str) -> dict[str, StudySpec]:
    """Name → the study on that data set alone; a study without ``datasets`` is its only part, with an empty name.

    Args:
        names: the data sets that are asked for. Unset: all.

    Raises:
        StudyError: an entry is not valid. A study that was planned has none.
    """
    if not study.datasets:
        return {"": study}
    found = {}
    for name in names or study.datasets:
        part, problems = on_dataset(study, name)
        if part is None:
            raise StudyError("\n".join(map(str, problems)))
        found[name] = part
    return found


def unusable_datasets(reasons: Mapping[str, str], usable: Sequence[str]) -> DataError:
    """The error for data sets that cannot be used: each with its reason, and those that can be used."""
    said = [f"{name}: {reason}" for name, reason in reasons.items()]
    if usable:
        them = "it" if len(reasons) == 1 else "them"
        said.append(f"Usable: {', '.join(usable)}. --skip-bad-datasets runs the study without {them}, and its report says so.")
    else:
        said.append("None is usable. Give files of your own, --datasets 'data/*.npz', or one alone, --set data.path=….")
    return DataError("\n".join(said))


def refuse_equal_datasets(trials: Mapping[str, Sequence[PlannedTrial]]) -> None:
    """Refuse two data sets with the same content: a rank over both would count one of them twice.

    Args:
        trials: name of the data set → its trials.

    Raises:
        DataError: names both.
    """
    first: dict[tuple[str, int], str] = {}
    for name, planned in trials.items():
        for key in {(trial.identity["data_sha256"], trial.spec.data.channel) for trial in planned}:
            if (other := first.setdefault(key, name)) != name:
                raise DataError(
                    f"datasets: {other} and {name} have the same content, so that every rank would count it twice. Remove one of them."
                )


def entry_problems(name: str, entry: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with the keys of an entry: the place within it, and the message."""
    if not NAME.fullmatch(name):
        yield (), "the name of a data set consists of letters, digits, dashes and underscores, since folders and columns bear it."
    if not isinstance(entry, dict):
        return
    try:
        overrides = entry_overrides(entry)
    except StudyError as error:
        yield (), str(error)
        return
    if not isinstance(overrides.get("data.path"), str):
        yield (), f"`path` is missing: the file of this data set. Or give the files on the command line: --datasets 'data/{name}.npz'."
    for path in overrides:
        section, _, field = path.partition(".")
        allowed = section_fields()[section]
        if allowed is not None and field.partition(".")[0] not in allowed:
            written = field if section == "data" and field in entry else path
            hint = unknown_field(field, allowed)
            yield (written,), f"{hint} An entry has fields of data, the sections {', '.join(SECTIONS[1:])}, and `{WITHOUT}`."
