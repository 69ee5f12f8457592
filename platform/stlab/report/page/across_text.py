"""Sentences about models over several data sets: what differs, what cannot be concluded, and why a cell is empty."""

from __future__ import annotations

from typing import Any

from stlab.report.page.text import caveats
from stlab.report.statistics.across import FEWEST, Across, Error, Ranks
from stlab.report.statistics.comparisons import ALPHA
from stlab.storage import single_protocol

_MOST_PAIRS = 12


def rank_sentences(found: Across, error: Error) -> list[str]:
    """Friedman's test, the critical difference, and the pairs that Wilcoxon's test tells apart."""
    ranks = found.ranks.get(error)
    name, count = error.upper(), len(found.datasets)
    if ranks is None:
        why = "there is one data set" if count == 1 else "fewer than two models have a result on every data set"
        return [f"{name}: {why}, so there are no ranks."]
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
    if count == 1:
        return ["With one data set there is nothing to compare over data sets."]
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
    pairs = "seeds" if found.over_seeds else "blocks of test windows, since there is one seed"
    nothing = "" if found.marks else " Nothing is marked here: with these seeds no best model can be told from the next one."
    return (
        f"Bold: the lowest error of a data set, where it can be told from the next one (paired t-test over {pairs}, p < 0.05 after "
        "Holm's correction over the whole table, each error for itself). Underlined: the second, where the best is marked and the second "
        f"can be told from the third.{nothing}"
    )


def relative_sentence(found: Across) -> str:
    """The meaning of the column of relative errors; empty where there is no common reference."""
    every = [one for own in found.relative.values() for one in own.values()]
    if not every:
        return ""
    interval = "The interval (95 %) is a bootstrap over data sets and seeds. " if any(one.low is not None for one in every) else ""
    pairs = "seeds" if found.over_seeds else "blocks of test windows"
    return (
        "Relative error: the geometric mean over data sets of a model's error divided by that of "
        f"{reference_name(found)}; below 1 is better. {interval}Wins and losses count data sets on which the two can be told apart "
        f"(paired over {pairs}, after Holm's correction within the data set), ties the others."
    )


def reference_name(found: Across) -> str:
    """The label that all others are compared with, or words for several."""
    names = set(found.references.values())
    return names.pop() if len(names) == 1 else "its reference at the same point of the axes"


def caveats_of(found: Across) -> list[dict[str, Any]]:
    """Every caveat, and its sentences with the data sets that they are about."""
    by_badge: dict[str, dict[str, list[str]]] = {}
    for part in found.datasets:
        for one in caveats(found.rows[part], single_protocol(found.rows[part])):
            by_badge.setdefault(one.badge, {}).setdefault(one.sentence, []).append(part)
    everywhere = len(found.datasets)
    return [
        {"badge": badge, "sentences": [{"text": said, "names": names if len(names) < everywhere else []} for said, names in own.items()]}
        for badge, own in by_badge.items()
    ]


def caveat_sentences(found: Across) -> list[str]:
    """The caveats for the terminal."""
    return [
        f"{', '.join(one['names'])}: {one['text']}" if one["names"] else one["text"]
        for caveat in caveats_of(found)
        for one in caveat["sentences"]
    ]


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
