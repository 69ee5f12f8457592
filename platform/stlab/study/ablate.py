"""Generate the variants of an ablation from the components that the base's model declares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from stlab.catalog import config_class, config_values
from stlab.storage.schema import flatten
from stlab.study.errors import Problem, problem, study_error
from stlab.study.source import StudySource, did_you_mean, flatten_overrides
from stlab.study.spec import StudySpec
from stmodels.config import ModelConfig
from stmodels.errors import ConfigError

FULL = "full"
Overrides = dict[str, Any]

_NOT_GIVEN: dict[str, Overrides] = StudySpec.model_fields["variants"].default


def with_ablation(study: StudySpec, source: StudySource | None = None) -> StudySpec:
    """The study with the variants that its ``ablate`` generates after its own. Without ``ablate`` the study is returned unchanged.

    A study that was written out and read again already holds these variants, and gets none twice.

    Raises:
        StudyError: the model does not declare a component, a component is off in the base or cannot be switched off, or a variant of
            the study has the name of a generated one but other settings.
    """
    if study.ablate is None:
        return study
    own = {} if study.variants == _NOT_GIVEN else study.variants
    full = next((name for name, overrides in own.items() if not overrides), FULL)
    generated = dict(_generate(study, full, source))
    clashes = [name for name, overrides in generated.items() if flatten_overrides(own.get(name, overrides)) != overrides]
    if clashes:
        message = f"`ablate` generates a variant of this name with other settings: {generated[clashes[0]] or 'the base'}. Rename this one."
        raise study_error([problem(message, ("variants", clashes[0]), source)])
    return study.model_copy(update={"variants": {**own, **generated}})


def _generate(study: StudySpec, full: str, source: StudySource | None) -> Iterator[tuple[str, Overrides]]:
    assert study.ablate is not None
    base = _base(study)
    if base is None:
        return  # the plan reports the errors of the base
    components, problems = _components(study, base, source)
    if problems:
        raise study_error(problems)
    seen: list[Overrides] = []
    for label, without in _left_out(list(components), study.ablate.mode, full):
        try:
            overrides = _switched_off(study, base, [components[name] for name in without])
        except (ConfigError, pydantic.ValidationError) as error:
            message = f"'{label}' is not possible: {_reason(error)}. Leave one of them out, or write that variant yourself."
            raise study_error([problem(message, ("ablate", "components"), source)]) from error
        # Two labels may mean the same variant: without the flow branch there are no cross-prompts either.
        if overrides not in seen:
            seen.append(overrides)
            yield label, overrides


def _left_out(components: Sequence[str], mode: str, full: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name of each variant and the components that it leaves out, in the order of the table."""
    if mode == "cumulative":
        for count in range(len(components)):
            name = "".join(f"+ {component} " for component in components[:count]).strip() or "without all"
            yield name, tuple(components[count:])
        yield full, ()
        return
    yield full, ()
    sizes = (1, 2) if mode == "pairs" else (1,)
    for without in itertools.chain.from_iterable(itertools.combinations(components, size) for size in sizes):
        yield f"w/o {', '.join(without)}", without


def _base(study: StudySpec) -> ModelConfig | None:
    try:
        return _config(study.base.model)
    except (ConfigError, pydantic.ValidationError):
        return None


def _config(model: Mapping[str, Any]) -> ModelConfig:
    config: ModelConfig = pydantic.TypeAdapter(config_class(model["name"])).validate_python(dict(model))
    return config


def _components(
    study: StudySpec, base: ModelConfig, source: StudySource | None
) -> tuple[dict[str, str], list[Problem]]:
    """The study's name of each component → the model's name of it, and the problems of those that cannot be left out."""
    assert study.ablate is not None
    known = base.components()
    fields = _by_field(known)
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for index, name in enumerate(study.ablate.components):
        component = name if name in known else fields.get(name)
        if component is None:
            message = f"{base.name} has no component '{name}'.{did_you_mean(name, [*known, *fields])} It has: {', '.join(known) or 'none'}."
        elif not _changes(study, base, known[component]):
            message = f"'{name}' is already off in the base, so that nothing is left out. Switch it on there, or remove it here."
        elif component in found.values():
            message = f"'{name}' is the component '{component}', which is already listed. Keep one of them."
        else:
            found[name] = component
            continue
        problems.append(problem(message, ("ablate", "components", index), source))
    return found, problems


def _by_field(components: Mapping[str, Overrides]) -> dict[str, str]:
    """Field → component, for components with a single field that switches no other component."""
    single = [(next(iter(off)).rpartition(".")[2], name) for name, off in components.items() if len(off) == 1]
    fields = [field for field, _ in single]
    return {field: name for field, name in single if fields.count(field) == 1}


def _changes(study: StudySpec, config: ModelConfig, off: Overrides) -> bool:
    """Whether overrides change anything that has an effect. The loss of a branch that is off has none, for example."""
    now = flatten({"model": config_values(config), "train": study.base.train.model_dump()})
    return any(value != now[path] for path, value in off.items() if path not in config.inert())


def _switched_off(study: StudySpec, base: ModelConfig, components: Sequence[str]) -> Overrides:
    """Overrides that switch components off, whatever the order of the names. A component that the others switch off adds nothing."""
    needed = list(components)
    for component in components:
        others = [other for other in needed if other != component]
        if others and _goes_with(study, base, others, component):
            needed = others
    return _one_by_one(study, base, needed)[0]


def _goes_with(study: StudySpec, base: ModelConfig, others: Sequence[str], component: str) -> bool:
    """Whether a component is off once the others are, as the flow loss is without the flow branch."""
    try:
        config = _one_by_one(study, base, others)[1]
    except (ConfigError, pydantic.ValidationError):
        return False  # the others cannot be switched off while this component is on
    return not _changes(study, config, config.components()[component])


def _one_by_one(study: StudySpec, base: ModelConfig, components: Sequence[str]) -> tuple[Overrides, ModelConfig]:
    overrides: Overrides = {}
    config = base
    for component in components:
        off = config.components()[component]
        if _changes(study, config, off):
            overrides |= off
            switches = {path.removeprefix("model."): value for path, value in overrides.items() if path.startswith("model.")}
            config = _config({**study.base.model, **switches})
    return overrides, config


def _reason(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(str(found.get("ctx", {}).get("error", found["msg"])) for found in error.errors())
    return str(error)
