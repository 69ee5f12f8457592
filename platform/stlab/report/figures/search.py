"""Figures of a search: history, slices, parallel coordinates, importance of the fields, and the front of two objectives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stlab.report.figures.study_figures import ReportFigure
from stlab.report.figures.style import MUTED, PALETTE, legend_beside, paper_style
from stlab.storage import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

OBJECTIVES = {
    "val_rmse": "validation RMSE",
    "val_mae": "validation MAE",
    "device_seconds": "device-seconds a trial",
    "wall_seconds": "seconds a trial",
    "trainable_params": "trainable parameters",
    "total_params": "parameters",
    "peak_memory_bytes": "peak memory, bytes",
}
_PANELS_A_ROW = 3
_MOST_FIELDS = 12


@dataclass(frozen=True)
class SearchResult:
    """``results/search.parquet`` and ``results/importance.parquet`` of a study."""

    rows: list[Row]
    importance: list[Row]
    objectives: list[str]
    space: dict[str, dict[str, Any]]
    sampler: str
    pruner: str
    fewest: int
    """Finished trials of a branch from which its importances are shown."""
    over: str | None = None
    """``datasets`` where one configuration was searched for all data sets."""

    def on(self, dataset: str) -> SearchResult:
        """The searches on one of several data sets, whose names their branches begin with."""
        mine = [[row for row in rows if row["arm"].startswith(f"{dataset}: ")] for rows in (self.rows, self.importance)]
        return replace(self, rows=mine[0], importance=mine[1])

    @property
    def branches(self) -> list[str]:
        return list(dict.fromkeys(row["arm"] for row in self.rows))

    def complete(self) -> list[Row]:
        return [row for row in self.rows if row["state"] == "complete"]

    def value(self, row: Row, index: int = 0) -> float:
        value = row[f"value.{self.objectives[index]}"]
        return math.nan if value is None else float(value)


def read_search(store: Store, study: str) -> SearchResult | None:
    """The results of a study's search; None if the study has none, or the search has not begun."""
    folder = f"studies/{study}/results"
    try:
        table = store.read_table(f"{folder}/search.parquet")
        importance = store.read_table(f"{folder}/importance.parquet")
    except FileNotFoundError:
        return None
    metadata = {name.decode(): json.loads(value) for name, value in table.schema.metadata.items() if name != b"ARROW:schema"}
    fewest = int((importance.schema.metadata or {}).get(b"fewest", 0))
    about = {name: metadata[name] for name in ("objectives", "space", "sampler", "pruner")}
    return SearchResult(table.to_pylist(), importance.to_pylist(), **about, fewest=fewest, over=metadata.get("over"))


def draw_search(found: SearchResult) -> list[ReportFigure]:
    """All figures of a search that its trials allow."""
    if not found.complete():
        return []
    error = OBJECTIVES[found.objectives[0]]
    begins = error[0].upper() + error[1:]  # str.capitalize would write "Validation mae"
    captions: dict[Callable[[SearchResult], Figure], str] = {
        history: f"{begins} of every trial, in the order in which they began. The line is the best error so far. A hollow point is a "
        "pruned trial, at its last error; a cross at the top edge is a failed one. Errors far above the rest are cut off, here and below.",
        slices: f"{begins} by each searched field. Hollow points are pruned trials.",
        parallel: f"Each line is a finished trial across the searched fields; a darker line has a lower {error}. The selected trial is "
        "orange.",
    }
    if found.importance:
        captions[importance] = (
            "How much each field matters for being among the best tenth of the finished trials (PED-ANOVA by Optuna); pruned trials do not "
            "count. The bars of a search sum to 1, and the lines reach from the 5th to the 95th percentile over resampled trials. The "
            "figure shows which fields matter; the slices show in which direction."
        )
    captions[slices] += _too_few_for_importance(found)
    if len(found.objectives) == 2:
        captions[front] = (
            f"{begins} against {OBJECTIVES[found.objectives[1]]}. No other trial is better in both than those on the line."
        )
    with paper_style():
        return [ReportFigure(*_TITLES[draw.__name__], caption, draw(found)) for draw, caption in captions.items()]


def _too_few_for_importance(found: SearchResult) -> str:
    """A sentence on the branches that have too few trials; empty where there is none."""
    done = {branch: len({row["trial_id"] for row in found.complete() if row["arm"] == branch}) for branch in found.branches}
    missing = {branch: found.fewest - count for branch, count in done.items() if count < found.fewest}
    if not missing:
        return ""
    listed = ", ".join(f"{count} of '{branch}'" for branch, count in missing.items())
    return f" The importance of the fields is shown from {found.fewest} finished trials on; missing are {listed}."


_TITLES = {
    "history": ("search_history", "Search: history"),
    "slices": ("search_slices", "Search: slices"),
    "parallel": ("search_parallel", "Search: parallel coordinates"),
    "importance": ("search_importance", "Search: importance"),
    "front": ("search_front", "Search: trade-off"),
}
"""The drawing function's name → the figure's name and title."""


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colour(found: SearchResult, branch: str) -> str:
    return PALETTE[found.branches.index(branch) % len(PALETTE)]


def history(found: SearchResult) -> Figure:
    """Error of every trial by its number, and the best so far."""
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    values = [found.value(row) for row in found.complete()]
    for branch in found.branches:
        mine, colour = [row for row in found.rows if row["arm"] == branch], _colour(found, branch)
        done = [row for row in mine if row["state"] == "complete"]
        best, line = math.inf, []
        for row in done:
            best = min(best, found.value(row))
            line.append(best)
        axes.step([row["number"] for row in done], line, where="post", color=colour, label=branch)
        axes.scatter([row["number"] for row in done], [found.value(row) for row in done], s=16, color=colour)
        _hollow(axes, [row["number"] for row in mine if row["state"] == "pruned"], found, mine, colour)
        failed = [row["number"] for row in mine if row["state"] == "fail"]
        axes.scatter(failed, [1.0] * len(failed), marker="x", s=22, color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
    _without_outliers(axes, values)
    axes.set(xlabel="trial", ylabel=OBJECTIVES[found.objectives[0]])
    _legend(figure, axes, found)
    return figure


def _hollow(axes: Axes, at: Sequence[Any], found: SearchResult, rows: Sequence[Row], colour: str) -> None:
    pruned = [found.value(row) for row in rows if row["state"] == "pruned"]
    axes.scatter(at, pruned, s=16, facecolors="none", edgecolors=colour)


def _without_outliers(axes: Axes, values: Sequence[float]) -> None:
    """Cut off errors beyond four times the upper quartile's distance from the best, since diverged trials would flatten the rest.

    Points that a sampler chose again count once; late in a search, many of the best points are such repetitions.
    """
    ordered = sorted(set(values))
    low, upper = ordered[0], ordered[3 * len(ordered) // 4]
    top = low + 4 * (upper - low)
    if top > low and ordered[-1] > top:
        axes.set_ylim(low - 0.1 * (top - low), top)


def _legend(figure: Figure, axes: Axes, found: SearchResult) -> None:
    if len(found.branches) > 1:
        legend_beside(figure, *axes.get_legend_handles_labels())


def _fields(found: SearchResult) -> list[str]:
    """The fields that the trials have, the most important first; at most ``_MOST_FIELDS``, so that the figure stays legible."""
    weight = {path: max((r["importance"] for r in found.importance if r["field"] == path), default=0.0) for path in found.space}
    there = [path for path in found.space if any(row[f"param.{path}"] is not None for row in found.rows)]
    return sorted(there, key=lambda path: -weight[path])[:_MOST_FIELDS]


def _names(paths: Sequence[str]) -> dict[str, str]:
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}


def _choices(found: SearchResult, path: str) -> list[str] | None:
    """The choices of a categorical field as the table writes them; None for a number."""
    choices = found.space[path].get("categorical")
    return None if choices is None else [c if isinstance(c, str) else json.dumps(c) for c in choices]


def slices(found: SearchResult) -> Figure:
    """Error by the value of each field."""
    paths = _fields(found)
    names = _names(paths)
    across = min(_PANELS_A_ROW, len(paths))
    down = -(-len(paths) // across)
    figure = _figure(2.3 * across + 1.0, 2.2 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for panel, path in zip(panels, paths, strict=False):
        choices = _choices(found, path)
        for branch in found.branches:
            mine = [r for r in found.rows if r["arm"] == branch and r[f"param.{path}"] is not None]
            for state, face in (("complete", _colour(found, branch)), ("pruned", "none")):
                shown = [row for row in mine if row["state"] == state]
                at = [choices.index(r[f"param.{path}"]) if choices else r[f"param.{path}"] for r in shown]
                errors = [found.value(row) for row in shown]
                label = branch if face != "none" else None
                panel.scatter(at, errors, s=14, facecolors=face, edgecolors=_colour(found, branch), label=label)
        if choices:
            panel.set_xticks(range(len(choices)), [_short(choice) for choice in choices], rotation=30, ha="right")
            panel.set_xlim(-0.5, len(choices) - 0.5)
        elif found.space[path].get("log"):
            _log_ticks(panel)
        panel.set_xlabel(names[path])
    for panel in panels[len(paths) :]:
        panel.set_visible(False)
    _without_outliers(panels[0], [found.value(row) for row in found.complete()])
    figure.supylabel(OBJECTIVES[found.objectives[0]], fontsize=9)
    _legend(figure, panels[0], found)
    return figure


def _log_ticks(panel: Axes) -> None:
    """A logarithmic axis with plain numbers at powers of ten; a short axis has ticks at 2 and 5 times these as well."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(10, (1.0,) if high / low > 30 else (1.0, 2.0, 5.0), numticks=5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def choice_text(text: str) -> str:
    """A choice for the reader: a list loses its brackets and quotes."""
    return text.strip("[]").replace('"', "") if text.startswith("[") else text


def _short(text: str, limit: int = 16) -> str:
    text = choice_text(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def parallel(found: SearchResult) -> Figure:
    """A line for each finished trial over parallel axes, one for each field; the last axis is the error."""
    import matplotlib

    paths = _fields(found)
    names, done = _names(paths), found.complete()
    errors = [found.value(row) for row in done]
    low, high = min(errors), sorted(errors)[int(0.9 * (len(errors) - 1))]
    figure = _figure(1.1 * len(paths) + 2.2, 3.4)
    axes = figure.subplots()
    colours = matplotlib.colormaps["cividis"]
    for row in sorted(done, key=lambda r: (bool(r["selected"]), -found.value(r))):
        places = [_place(found, path, row[f"param.{path}"]) for path in paths]
        shade = min(1.0, (found.value(row) - low) / (high - low)) if high > low else 0.0
        chosen, other = {"color": PALETTE[1], "linewidth": 2.2}, {"color": colours(shade), "linewidth": 1.0, "alpha": 0.8}
        style: dict[str, Any] = chosen if row["selected"] else other
        axes.plot(range(len(paths) + 1), [*places, shade], **style)
    for at, path in enumerate(paths):
        axes.axvline(at, color=MUTED, linewidth=0.8)
        for place, text in _ticks(found, path):
            axes.annotate(text, (at, place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center", color="#222222")
    axes.axvline(len(paths), color=MUTED, linewidth=0.8)
    for place, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4g}", (len(paths), place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set_xticks(range(len(paths) + 1), [*(names[path] for path in paths), OBJECTIVES[found.objectives[0]]], rotation=20, ha="right")
    axes.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.15, len(paths) + 0.5))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _place(found: SearchResult, path: str, value: Any) -> float:
    """The position of a value on its axis, from 0 to 1; below the axis if the trial does not have the field."""
    if value is None:
        return -0.06
    if choices := _choices(found, path):
        return choices.index(value) / (len(choices) - 1)
    field = found.space[path]
    low, high = field.get("float") or field["int"]
    if field.get("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _ticks(found: SearchResult, path: str) -> list[tuple[float, str]]:
    if choices := _choices(found, path):
        return [(at / (len(choices) - 1), _short(choice, 14)) for at, choice in enumerate(choices)]
    field = found.space[path]
    low, high = field.get("float") or field["int"]
    return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]


def importance(found: SearchResult) -> Figure:
    """Bars by field, in a panel for each objective and a colour for each branch."""
    objectives = list(dict.fromkeys(row["objective"] for row in found.importance))
    branches = [branch for branch in found.branches if any(row["arm"] == branch for row in found.importance)]
    paths = sorted(
        dict.fromkeys(row["field"] for row in found.importance),
        key=lambda path: sum(row["importance"] for row in found.importance if row["field"] == path),
    )
    names = _names(paths)
    figure = _figure(3.4 * len(objectives) + 1.4, 0.34 * len(paths) * max(1, len(branches) * 0.6) + 1.0)
    panels = figure.subplots(1, len(objectives), sharey=True, squeeze=False).ravel()
    thick = 0.8 / len(branches)
    for panel, objective in zip(panels, objectives, strict=True):
        for index, branch in enumerate(branches):
            here = {r["field"]: r for r in found.importance if r["arm"] == branch and r["objective"] == objective}
            places = {path: at + (index - (len(branches) - 1) / 2) * thick for at, path in enumerate(paths)}
            values = [here[path]["importance"] if path in here else 0.0 for path in paths]
            panel.barh(list(places.values()), values, height=thick, color=_colour(found, branch), label=branch)
            for path, row in here.items():
                if row.get("low") is not None:  # tables of before have no spread
                    panel.plot([row["low"], row["high"]], [places[path]] * 2, color="black", linewidth=0.8)
        panel.set_yticks(range(len(paths)), [names[path] for path in paths])
        panel.set(xlabel=f"importance for {OBJECTIVES[objective]}", xlim=(0, None))
    _legend(figure, panels[0], found)
    return figure


def front(found: SearchResult) -> Figure:
    """The second objective against the first, and the trials that no other trial is better than in both."""
    figure = _figure(6.0, 3.8)
    axes = figure.subplots()
    for branch in found.branches:
        done, colour = [row for row in found.complete() if row["arm"] == branch], _colour(found, branch)
        axes.scatter([found.value(r, 1) for r in done], [found.value(r) for r in done], s=14, color=colour, alpha=0.5)
        best = sorted((found.value(r, 1), found.value(r), r["number"]) for r in done if r["on_front"])
        axes.plot([x for x, _, _ in best], [y for _, y, _ in best], color=colour, marker="o", markersize=5, label=branch)
        for x, y, number in best:
            axes.annotate(f"#{number}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    _without_outliers(axes, [found.value(row) for row in found.complete()])
    axes.set(xlabel=OBJECTIVES[found.objectives[1]], ylabel=OBJECTIVES[found.objectives[0]])
    _legend(figure, axes, found)
    return figure
