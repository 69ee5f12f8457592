"""Models compared over several data sets, whose errors have different units: by ranks and by ratios, never by a mean of errors.

Friedman's test asks whether any ranks differ, Nemenyi's critical difference which do (Demšar 2006, "Statistical Comparisons of
Classifiers over Multiple Data Sets"). Wilcoxon's signed-rank test compares two models by the logarithm of the ratio of their errors,
which has no unit. A model without a result on some data set has no rank: a mean over fewer data sets would be one of other data sets.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stlab.report.statistics.comparisons import ALPHA, Comparison, compare, compare_lines, holm, trials_by_seed
from stlab.report.statistics.summary import CONFIDENCE, Interval, Row, Summary, summarise
from stlab.storage import Store, table_rows
from stlab.study.datasets import parts
from stlab.study.spec import StudySpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Error = Literal["rmse", "mae"]
ERRORS: tuple[Error, ...] = ("rmse", "mae")
FEWEST = 5
"""Data sets below which neither ranks nor signed ranks can tell much: Wilcoxon's smallest p is 2^(1−N)."""
_DRAWS = 2000
_SEED = 20061201


@dataclass(frozen=True)
class Ranks:
    """Ranks of k models on N data sets by one error; 1 is the lowest error, equal errors share a rank."""

    labels: tuple[str, ...]
    """The models with a result on every data set, in the order of the table."""
    by_dataset: NDArray[np.float64]  # (N, k)
    friedman: float | None
    """Friedman's χ²; None for fewer than three models or two data sets, as is its p."""
    p: float | None
    critical_difference: float | None
    """Nemenyi's: mean ranks that differ by less cannot be told apart."""
    wilcoxon: Mapping[tuple[str, str], float]
    """Two-sided p of each pair, after Holm's correction over all pairs."""

    @functools.cached_property
    def mean(self) -> dict[str, float]:
        """The mean rank of each model over all data sets."""
        return dict(zip(self.labels, map(float, self.by_dataset.mean(axis=0)), strict=True))

    def differ(self, one: str, other: str) -> bool:
        """Whether two mean ranks are farther apart than the critical difference, where Friedman's test found any difference."""
        if self.critical_difference is None or self.p is None or self.p >= ALPHA:
            return False
        return abs(self.mean[one] - self.mean[other]) > self.critical_difference


@dataclass(frozen=True)
class Relative:
    """A model's error relative to the reference's: the geometric mean of the ratios over data sets, with a bootstrap interval."""

    ratio: float
    low: float | None
    """95 %, over data sets and over seeds; None for fewer than three data sets or two seeds."""
    high: float | None
    wins: int
    """Data sets on which the error is lower than the reference's and can be told apart."""
    ties: int
    losses: int


@dataclass(frozen=True)
class Across:
    """A study on several data sets: the lines of each table, and what can be said over all of them."""

    datasets: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]
    lines: Mapping[str, Sequence[Summary]]
    compared: Mapping[str, Sequence[Comparison]]
    """Comparisons with the reference, corrected within the data set."""
    ranks: Mapping[Error, Ranks | None] = field(default_factory=dict)
    relative: Mapping[Error, Mapping[str, Relative]] = field(default_factory=dict)
    marks: Mapping[tuple[str, str, Error], str] = field(default_factory=dict)
    """(data set, label, error) → ``best`` or ``second``, where it can be told from the next one."""

    @property
    def labels(self) -> list[str]:
        """The models, in the order in which the study has them, and then the baselines."""
        every = [line for dataset in self.datasets for line in self.lines[dataset]]
        return list(dict.fromkeys(line.label for line in [*(e for e in every if not e.baseline), *(e for e in every if e.baseline)]))

    def line(self, dataset: str, label: str) -> Summary | None:
        return next((line for line in self.lines[dataset] if line.label == label), None)

    @property
    def references(self) -> dict[str, str]:
        """Label → the label that it is compared with on every data set, for those that have one."""
        found: dict[str, set[str]] = {}
        for compared in self.compared.values():
            for one in compared:
                found.setdefault(one.label, set()).add(one.reference)
        return {label: names.pop() for label, names in found.items() if len(names) == 1}

    @property
    def over_seeds(self) -> bool:
        """Whether pairs are seeds; a study of one seed is compared over blocks of test windows."""
        return len({row.get("seed") for rows in self.rows.values() for row in rows if not row.get("baseline")}) > 1

    def missing(self) -> dict[str, list[str]]:
        """Model → the data sets on which it has no tested result."""
        found: dict[str, list[str]] = {}
        for label in self.labels:
            lines = {dataset: self.line(dataset, label) for dataset in self.datasets}
            if any(line.baseline for line in lines.values() if line):
                continue
            without = [dataset for dataset, line in lines.items() if line is None or line.test_rmse is None]
            if without:
                found[label] = without
        return found


def across_datasets(rows: Sequence[Row], axes: Sequence[str] | None, study: Mapping[str, object], store: Store | None = None) -> Across:
    """Compare a study's models over its data sets.

    Args:
        rows: rows of ``trials.parquet``; the column ``dataset`` tells data sets apart.
        study: the resolved study as a mapping; the order of ``datasets`` is that of the table.

    Raises:
        ProtocolMismatch: rows of one data set were made by different protocols.
        UserError: the study's reference is none of its variants.
    """
    own = rows_by_dataset(rows, study)
    lines = {name: summarise(part, axes) for name, part in own.items()}
    alone = parts_of(study, list(own))
    compared = {name: compare(part, axes, alone.get(name, study), store) for name, part in own.items()}
    found = Across(tuple(own), own, lines, compared)
    return replace(
        found,
        ranks={error: rank(found, error) for error in ERRORS},
        relative={error: relative_errors(found, error) for error in ERRORS},
        marks={key: mark for error in ERRORS for key, mark in marked_cells(found, error, store).items()},
    )


def rows_by_dataset(rows: Sequence[Row], study: Mapping[str, object]) -> dict[str, list[Row]]:
    """The rows of a study's table for each data set, in the order of the study."""
    named = study.get("datasets")
    found: dict[str, list[Row]] = {str(name): [] for name in (named if isinstance(named, Mapping) else ())}
    for row in table_rows(rows):
        found.setdefault(str(row.get("dataset")), []).append(row)
    return {name: own for name, own in found.items() if own}


def parts_of(study: Mapping[str, object], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Data set → the resolved study on it alone, as a mapping; empty for a study that names none."""
    if not study.get("datasets"):
        return {}
    return {name: part.model_dump(mode="json") for name, part in parts(StudySpec.model_validate(study), *names).items()}


def errors_of(found: Across, error: Error) -> tuple[list[str], NDArray[np.float64]]:
    """The models with a result on every data set, and their mean errors (N, k)."""
    labels = [label for label in found.labels if all(_mean(found.line(name, label), error) is not None for name in found.datasets)]
    labels = [label for label in labels if not any(line.baseline for line in _lines(found, label))]
    table = [[_mean(found.line(name, label), error) for label in labels] for name in found.datasets]
    return labels, np.array(table, dtype=np.float64).reshape(len(found.datasets), len(labels))


def rank(found: Across, error: Error) -> Ranks | None:
    """The ranks of the models by one error; None for fewer than two data sets or models that can be ranked."""
    from scipy import stats

    labels, errors = errors_of(found, error)
    count, models = errors.shape
    if count < 2 or models < 2:
        return None
    ranks = stats.rankdata(errors, axis=1)
    friedman = p = critical = None
    if models > 2:
        friedman, p = _friedman(errors)
        # The ranges of k standard normal variables, for infinitely many degrees of freedom (Demšar 2006, Table 5a, is this over √2).
        q = float(stats.studentized_range.ppf(CONFIDENCE, models, np.inf)) / math.sqrt(2)
        critical = q * math.sqrt(models * (models + 1) / (6 * count))
    pairs = list(itertools.combinations(range(models), 2))
    with np.errstate(divide="ignore", invalid="ignore"):  # an error of exactly 0
        p_values = [_wilcoxon(np.log(errors[:, a] / errors[:, b])) for a, b in pairs]
    wilcoxon = {(labels[a], labels[b]): value for (a, b), value in zip(pairs, holm(p_values), strict=True)}
    return Ranks(tuple(labels), ranks, friedman, p, critical, wilcoxon)


def relative_errors(found: Across, error: Error) -> dict[str, Relative]:
    """Every ranked model's error relative to that of its reference, if that is ranked, too; on the seeds that both have."""
    labels, errors = errors_of(found, error)
    draw = np.random.default_rng(_SEED)
    references = {label: own for label, own in found.references.items() if label in labels and own in labels}
    values = {label: [_by_seed(found, name, label, error) for name in found.datasets] for label in labels}
    relative = {}
    for label, reference in references.items() if errors.size and errors.min() > 0 else ():
        pairs = list(zip(values[label], values[reference], strict=True))
        if all(ours.keys() & theirs.keys() for ours, theirs in pairs):
            relative[label] = _relative(found, label, error, pairs, draw)
    return relative


def marked_cells(found: Across, error: Error, store: Store | None = None) -> dict[tuple[str, str, Error], str]:
    """The best model of each data set, and the second, where they can be told from the next one.

    The tests are paired, as those against the reference (``comparisons``), and Holm's correction is over all of this table's: the
    probability of any false mark in the whole table stays below 5 %. The second is marked only where the best is.
    """
    tests: list[tuple[str, str, str, float]] = []
    for name in found.datasets:
        ordered = sorted(
            (line for line in found.lines[name] if not line.baseline and _mean(line, error) is not None),
            key=lambda line: float(_mean(line, error) or 0.0),
        )
        pairs = list(itertools.pairwise(ordered[:3]))
        for place, one in zip(("best", "second"), compare_lines(found.rows[name], pairs, store), strict=False):
            test = getattr(one, error)
            # A seed that one of both lost may turn the order of the means over.
            tests.append((name, one.label, place, test.p if test is not None and test.mean < 0 else 1.0))
    corrected = holm([p for *_, p in tests])
    told = {(name, place): label for (name, label, place, _), p in zip(tests, corrected, strict=True) if p < ALPHA}
    return {(name, label, error): place for (name, place), label in told.items() if place == "best" or (name, "best") in told}


def _relative(
    found: Across, label: str, error: Error, pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]], draw: np.random.Generator
) -> Relative:
    shared = [sorted(ours.keys() & theirs.keys()) for ours, theirs in pairs]
    own = list(zip(pairs, shared, strict=True))
    logs = [math.log(np.mean([ours[seed] for seed in seeds]) / np.mean([theirs[seed] for seed in seeds])) for (ours, theirs), seeds in own]
    verdicts = [_verdict(found.compared[name], label, error) for name in found.datasets]
    low = high = None
    if len(pairs) > 2 and all(len(seeds) > 1 for seeds in shared):
        drawn = np.stack([_resampled(ours, theirs, seeds, draw) for (ours, theirs), seeds in own])  # (N, draws)
        chosen = draw.integers(len(pairs), size=drawn.shape)
        means = np.take_along_axis(drawn, chosen, axis=0).mean(axis=0)
        tail = _tail(len(pairs))
        low, high = (float(np.exp(np.quantile(means, share))) for share in (tail, 1 - tail))
    return Relative(math.exp(float(np.mean(logs))), low, high, verdicts.count("win"), verdicts.count("tie"), verdicts.count("loss"))


def _tail(count: int) -> float:
    """The tail of a bootstrap of a mean over few values at which its interval covers 95 %, as Student's t does for normal values.

    It is the expanded percentile of Hesterberg (2015, "What Teachers Should Know About the Bootstrap", section 5.3).
    """
    from scipy import stats

    t = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return float(stats.norm.cdf(-math.sqrt(count / (count - 1)) * t))


def _friedman(errors: NDArray[np.float64]) -> tuple[float, float]:
    """χ² and p; where all models have equal errors, there is nothing to tell apart."""
    from scipy import stats

    with np.errstate(invalid="ignore"):
        found = stats.friedmanchisquare(*errors.T)
    return (float(found.statistic), float(found.pvalue)) if np.isfinite(found.statistic) else (0.0, 1.0)


def _resampled(
    ours: Mapping[int, float], theirs: Mapping[int, float], seeds: Sequence[int], draw: np.random.Generator
) -> NDArray[np.float64]:
    """(draws,) logarithms of the ratio of mean errors over resampled seeds, which are paired."""
    mine, others = (np.array([values[seed] for seed in seeds]) for values in (ours, theirs))
    index = draw.integers(len(seeds), size=(_DRAWS, len(seeds)))
    ratios: NDArray[np.float64] = np.log(mine[index].mean(axis=1) / others[index].mean(axis=1))
    return ratios


def _verdict(compared: Sequence[Comparison], label: str, error: Error) -> str:
    test = next((getattr(one, error) for one in compared if one.label == label), None)
    if test is None or not test.differs:
        return "tie"
    return "win" if test.mean < 0 else "loss"


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    """Two-sided p; 1 where two models have the same errors."""
    from scipy import stats

    return float(stats.wilcoxon(differences).pvalue) if np.any(differences != 0) else 1.0


def _lines(found: Across, label: str) -> list[Summary]:
    return [line for name in found.datasets if (line := found.line(name, label)) is not None]


def error_of(line: Summary | None, error: Error) -> Interval | None:
    """A line's test error, if there is such a line and it was tested."""
    return None if line is None else line.test_rmse if error == "rmse" else line.test_mae


def _mean(line: Summary | None, error: Error) -> float | None:
    interval = error_of(line, error)
    return None if interval is None else interval.mean


def _by_seed(found: Across, dataset: str, label: str, error: Error) -> dict[int, float]:
    line = found.line(dataset, label)
    rows = {str(row.get("trial_id")): row for row in found.rows[dataset]}
    own = trials_by_seed(rows, line) if line is not None else {}
    return {seed: float(row[f"test_{error}"]) for seed, row in own.items()}
