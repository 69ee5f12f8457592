"""The space of a search: a study's distributions as Optuna's, and the points of a define-by-run space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stlab.errors import StudyError
from stlab.storage.schema import flatten
from stlab.study.errors import Problem, problem, show, study_error
from stlab.study.plan import PlannedTrial, SearchBranch, plan_point
from stlab.study.source import StudySource, did_you_mean, flatten_overrides
from stlab.study.spec import Distribution, SearchSpec, StudySpec, conditions_first

if TYPE_CHECKING:
    import optuna

Point = dict[str, Any]


class Space:
    """The fields that one branch searches, ordered so that a field follows the fields of its conditions."""

    def __init__(self, search: SearchSpec, branch: SearchBranch) -> None:
        self.fields = {path: search.space[path] for path in conditions_first(search.space) if path not in branch.fixed}
        self._fixed = _values(branch.template)

    def suggest(self, trial: optuna.Trial) -> Point:
        """The point that Optuna chooses for a trial, without the fields whose condition does not hold."""
        point: Point = {}
        for path, found in self.fields.items():
            if self.is_open(path, point):
                point[path] = _suggest(trial, path, found)
        return point

    def is_open(self, path: str, point: Mapping[str, Any]) -> bool:
        """Whether the conditions of a field hold, given the values that are already chosen."""
        for other, wanted in self.fields[path].when.items():
            if other in self.fields and other not in point:
                return False
            value = point[other] if other in point else self._fixed.get(other)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether this space contains a point: it has exactly the fields whose conditions hold, within their bounds."""
        opened = {path for path in self.fields if self.is_open(path, point)}
        return opened == set(point) and not any(outside(self.fields[path], value) for path, value in point.items())

    def distributions(self, point: Mapping[str, Any]) -> dict[str, optuna.distributions.BaseDistribution]:
        return {path: as_optuna(self.fields[path]) for path in point}

    def corners(self) -> Iterator[tuple[str, Any, Point]]:
        """Every field at each end of its range or each choice, as field, value and point; the point fulfils the field's conditions."""
        for path, found in self.fields.items():
            for value in found.categorical or found.float or found.int or ():
                if (point := self._with_conditions(path)) is not None:
                    yield path, value, {**point, path: value}

    def _with_conditions(self, path: str) -> Point | None:
        """The smallest point that fulfils a field's conditions; None if the branch rules it out."""
        point: Point = {}
        for other, wanted in self.fields[path].when.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if other not in self.fields:
                if self._fixed.get(other) not in allowed:
                    return None
                continue
            before = self._with_conditions(other)
            chosen = [value for value in allowed if not outside(self.fields[other], value)]
            if before is None or not chosen:
                return None
            point |= {**before, other: chosen[0]}
        return point


def as_optuna(found: Distribution) -> optuna.distributions.BaseDistribution:
    """A study's distribution as Optuna's."""
    from optuna import distributions

    if found.categorical is not None:
        return distributions.CategoricalDistribution([encoded(choice) for choice in found.categorical])
    if found.int is not None:
        return distributions.IntDistribution(*found.int, log=found.log, step=int(found.step or 1))
    assert found.float is not None
    return distributions.FloatDistribution(*found.float, log=found.log, step=found.step)


def _suggest(trial: optuna.Trial, path: str, found: Distribution) -> Any:
    if found.categorical is not None:
        chosen = trial.suggest_categorical(path, [encoded(choice) for choice in found.categorical])
        return next(choice for choice in found.categorical if encoded(choice) == chosen)
    if found.int is not None:
        return trial.suggest_int(path, *found.int, log=found.log, step=int(found.step or 1))
    assert found.float is not None
    return trial.suggest_float(path, *found.float, log=found.log, step=found.step)


def encoded(value: Any) -> Any:
    """A choice as Optuna stores it: scalars as they are, lists as JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def as_params(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    return {path: encoded(value) for path, value in point.items()}


def outside(found: Distribution, value: Any) -> str | None:
    """The reason that a value is outside a distribution; None if it is inside."""
    if found.categorical is not None:
        return None if value in found.categorical else f"{show(value)} is none of {show(found.categorical)}"
    bounds = found.int or found.float
    assert bounds is not None
    if isinstance(value, bool) or not isinstance(value, int if found.int else (int, float)):
        return f"{show(value)} is no {'whole number' if found.int else 'number'}"
    if bounds[0] <= value <= bounds[1]:
        return None
    return f"{show(value)} is not within {bounds[0]:g} and {bounds[1]:g}"


def check_space(study: StudySpec, branches: Sequence[SearchBranch], source: StudySource | None = None) -> None:
    """Refuse, before anything runs, a space that no variant searches or that contains values which no trial can have.

    Raises:
        StudyError: all problems, a line each.
    """
    assert study.search is not None
    found = [*_collisions(study, source), *_conditions(study, branches, source), *_points(study.search, source)]
    found += [] if found else _corners(study, branches, source)
    if found:
        raise study_error(found)


def without_dead_fields(
    study: StudySpec, branches: Sequence[SearchBranch], source: StudySource | None = None
) -> tuple[tuple[SearchBranch, ...], list[str]]:
    """The branches without the fields that have no effect in them (such as λ without the flow branch), and a note on each such field.

    A search over such a field would train nothing new, and the field would get an importance by chance.

    Raises:
        StudyError: a field has no effect in any branch.
    """
    assert study.search is not None
    dead = [_dead_on_all(study, branch) for branch in branches]
    kept = tuple(_with_fixed(branch, fields) for branch, fields in zip(branches, dead, strict=True))
    nowhere = [path for path in study.search.space if all(path in branch.fixed for branch in kept)]
    if nowhere:
        message = "changes nothing in any variant: parameters, output and training stay the same. Take it out of the space."
        raise study_error(problem(message, ("search", "space", path), source) for path in nowhere)
    notes = [
        f"'{branch.label}' does not search {path}: it changes nothing there."
        for branch, fields in zip(branches, dead, strict=True)
        for path in fields
    ]
    return kept, notes


def _dead_on_all(study: StudySpec, branch: SearchBranch) -> dict[str, Any]:
    """Field → its value, for fields that change no trial on any data set of the branch."""
    found = _dead_fields(study, branch)
    for other in branch.beside if found else ():
        also = _dead_fields(study, other)
        found = {path: value for path, value in found.items() if path in also}
    return found


def _with_fixed(branch: SearchBranch, fields: Mapping[str, Any]) -> SearchBranch:
    beside = tuple(_with_fixed(other, fields) for other in branch.beside)
    return replace(branch, fixed={**branch.fixed, **fields}, beside=beside)


def _dead_fields(study: StudySpec, branch: SearchBranch) -> dict[str, Any]:
    """Field → its value, for fields that change no trial, whatever value any single other field has."""
    assert study.search is not None
    space, values = Space(study.search, branch), _values(branch.template)
    corners = list(space.corners())
    dead: dict[str, Any] = {}
    for path in space.fields:
        ends = [point for field, _, point in corners if field == path]
        surroundings: list[Point] = [{}, *({other: value} | point for other, value, point in corners if other != path)]
        if path in values and not any(_differ(study, branch, [{**around, **end} for end in ends]) for around in surroundings):
            dead[path] = values[path]
    return dead


def _differ(study: StudySpec, branch: SearchBranch, points: Sequence[Point]) -> bool:
    ids = set()
    for point in points:
        try:
            ids.add(plan_point(study, branch, point).trial_id)
        except StudyError:  # two values are incompatible, so the field has an effect
            return True
    return len(ids) > 1


def _collisions(study: StudySpec, source: StudySource | None) -> Iterator[Problem]:
    assert study.search is not None
    own = [flatten_overrides(overrides) for overrides in study.variants.values()]
    for path in study.search.space:
        if path in study.axes:
            yield problem(f"`{path}` is an axis too: it cannot be both. Take it out of one.", ("search", "space", path), source)
        elif all(path in overrides for overrides in own):
            message = "every variant sets this field, so there is nothing to search. Take it out of the space, or of a variant."
            yield problem(message, ("search", "space", path), source)


def _conditions(study: StudySpec, branches: Sequence[SearchBranch], source: StudySource | None) -> Iterator[Problem]:
    assert study.search is not None
    known = dict.fromkeys([*study.search.space, *(path for branch in branches for path in _values(branch.template))])
    for path, found in study.search.space.items():
        for other, wanted in found.when.items():
            loc = ("search", "space", path, "when", other)
            if other not in known:
                yield problem(f"there is no such field.{did_you_mean(other, list(known))}", loc, source)
            elif other in study.search.space:
                allowed = wanted if isinstance(wanted, list) else [wanted]
                reasons = [outside(study.search.space[other], value) for value in allowed]
                if all(reasons):
                    yield problem(f"the condition never holds: in the space, {reasons[0]}.", loc, source)


def _points(search: SearchSpec, source: StudySource | None) -> Iterator[Problem]:
    for at, point in enumerate(search.points):
        for path, value in point.items():
            if message := outside(search.space[path], value):
                yield problem(f"{message}.", ("search", "points", at, path), source)


def _corners(study: StudySpec, branches: Sequence[SearchBranch], source: StudySource | None) -> list[Problem]:
    assert study.search is not None
    problems: dict[str, Problem] = {}
    for branch in branches:
        for path, value, point in Space(study.search, branch).corners():
            try:
                plan_point(study, branch, point)
            except StudyError as error:
                reason = str(error).removesuffix(".")
                message = f"{show(value)} cannot be in '{branch.label}': {reason}. Narrow the range, or add a `when`."
                problems.setdefault(path, problem(message, ("search", "space", path), source))
    return list(problems.values())


def _values(trial: PlannedTrial) -> dict[str, Any]:
    """A trial's fields by dotted path."""
    spec = trial.spec
    return flatten({"data": spec.data.model_dump(), "model": spec.model, "train": spec.train.model_dump()})
