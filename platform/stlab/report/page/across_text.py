"""Sentences about models over several data sets: what differs, what cannot be concluded, and why a cell is empty."""

from __future__ import annotations

from stlab.report.statistics.across import FEWEST, Across, Error, Ranks
from stlab.report.statistics.comparisons import ALPHA

_MOST_PAIRS = 12


def rank_sentences(found: Across, error: Error) -> list[str]:
    """Friedman's test, the critical difference, and the pairs that Wilcoxon's test tells apart."""
    ranks = found.ranks.get(error)
    name, count = error.upper(), len(found.datasets)
    if ranks is None:
        return [f"{name}: fewer than two models have a result on every data set, so there are no ranks."]
    said = []
    if ranks.friedman is not None and ranks.p is not None and ranks.critical_difference is not None:
        differ = "some ranks differ" if ranks.p < ALPHA else "no rank can be told from another"
        said.append(
            f"{name}: Friedman's test over {count} data sets and {len(ranks.labels)} models gives χ² = {ranks.friedman:.2f}, "
            f"{p_text(ranks.p)}: {differ}. Mean ranks less than {ranks.critical_difference:.2f} apart cannot be told apart (Nemenyi)."
        )
    if count >= FEWEST:
        said.append(f"{name}: {_pairs(ranks)}")
    return said


def _pairs(ranks: Ranks) -> str:
    means, count = ranks.mean, len(ranks.by_dataset)
    if (least := 2.0 ** (1 - count) * len(ranks.wilcoxon)) >= ALPHA:
        return (
            f"Wilcoxon's signed-rank test can tell no pair apart: over {count} data sets its smallest p is {2.0 ** (1 - count):.2g}, which "
            f"Holm's correction over {len(ranks.wilcoxon)} pairs makes {min(1.0, least):.2g}."
        )
    apart = [pair if means[pair[0]] <= means[pair[1]] else pair[::-1] for pair, p in ranks.wilcoxon.items() if p < ALPHA]
    if not apart:
        return f"Wilcoxon's signed-rank test tells none of {len(ranks.wilcoxon)} pairs apart, after Holm's correction."
    listed = ", ".join(f"{better} before {worse}" for better, worse in apart[:_MOST_PAIRS])
    others = f" and {len(apart) - _MOST_PAIRS} more" if len(apart) > _MOST_PAIRS else ""
    many = f"{len(apart)} of {len(ranks.wilcoxon)} pairs"
    return f"Wilcoxon's signed-rank test, after Holm's correction, tells {many} apart: {listed}{others}."


def limits(found: Across) -> list[str]:
    """What these data sets cannot show; empty where there are enough."""
    count = len(found.datasets)
    said = []
    if count < FEWEST:
        least = 2.0 ** (1 - count)
        said.append(
            f"{count} data sets are too few for conclusions over data sets: Friedman's and Nemenyi's tests assume more, and Wilcoxon's "
            f"cannot give a p below {least:.3g}, whatever the errors are. What holds on each data set is in its own section."
        )
    elif count == FEWEST:
        said.append("With five data sets Wilcoxon's test cannot give a p below 0.062, so it tells no pair apart, whatever the errors are.")
    if without := found.missing():
        listed = "; ".join(f"{label} ({', '.join(names)})" for label, names in without.items())
        said.append(f"Models without a result on some data set have no rank, since a mean over fewer would be another mean: {listed}.")
    return said


def marks_sentence(found: Across) -> str:
    """The meaning of bold and underlined."""
    nothing = "" if found.marks else " Nothing is marked here: with these seeds no best model can be told from the next one."
    return (
        "Bold: the lowest error of a data set, where it can be told from the next one (paired t-test over seeds, p < 0.05 after Holm's "
        "correction over the whole table, each error for itself). Underlined: the second, where the best is marked and the second can be "
        f"told from the third.{nothing}"
    )


def relative_sentence(found: Across) -> str:
    """The meaning of the column of relative errors; empty where there is no common reference."""
    if not any(found.relative.values()):
        return ""
    return (
        f"Relative error: the geometric mean over data sets of a model's error divided by that of {found.reference}; below 1 is better. "
        "The interval (95 %) is a bootstrap over data sets and seeds. Wins and losses count data sets on which the two can be told apart "
        "(paired over seeds, after Holm's correction within the data set), ties the others."
    )


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
