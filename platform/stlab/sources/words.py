"""What a command made and of what, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from stlab.sources.outcome import REASONS, Outcome


def lines(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Label and text of each line for the terminal."""
    facts = outcome.facts
    rows = outcome.tallies[0].rows
    layouts = f" ({'; '.join(facts['layouts'])})" if facts["layouts"] else ""
    yield "read", f"{_count(len(outcome.files), 'file')}, {_count(rows, 'row')}{layouts}"
    if facts["read_as"]:
        yield "read as", "; ".join(facts["read_as"])
    for tally in outcome.tallies:
        dropped = ", ".join(f"{count:,} {REASONS[reason]}" for reason, count in tally.dropped.items())
        yield tally.channel, f"{tally.kept:,} kept" + (f"; dropped: {dropped}" if dropped else "; nothing dropped")
    for i, example in enumerate(outcome.examples):
        yield "malformed" if i == 0 else "", str(example)
    yield "times", _times(facts)
    for i, stretch in enumerate(facts["left_out_days"]):
        yield "left out" if i == 0 else "", f"{stretch}: a week without a record lies between; --from and --to take them in"
    for i, change in enumerate(facts.get("clock_changes", [])):
        yield "clocks" if i == 0 else "", change
    if "cell_metres" in facts:
        height, width = facts["cell_metres"]
        yield (
            "cells",
            f"{facts['rows']} × {facts['columns']}, {height:g} × {width:g} m each; row 0 is the north, column 0 the west",
        )
    if "h3" in facts:
        yield "cells", f"{facts['nodes']} hexagons of resolution {facts['h3']}"
    elif "box" in facts:
        box = " ".join(f"{edge:.6g}" for edge in facts["box"])
        yield (
            "box",
            f"--box {box}" + ("" if facts["box_said"] else " (the central 99 % of the coordinates; say it to keep it)"),
        )
    elif "missing" in facts:
        yield "nodes", _nodes(facts)
    elif "nodes" in facts:
        yield "nodes", f"{facts['nodes']:,} zones; no trip is 0, a reading"


def _times(facts: dict[str, Any]) -> str:
    begin, end = (datetime.fromisoformat(facts[name]) for name in ("begin", "end"))
    zone = facts["tz"] or "in the files' own time: no zone was said (--tz)"
    return f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}, {facts['steps']:,} steps of {facts['step_seconds'] // 60} min, {zone}"


def _nodes(facts: dict[str, Any]) -> str:
    cells = facts["nodes"] * facts["steps"]
    text = f"{facts['nodes']:,}, {100 * facts['missing'] / cells:.2g} % of their steps without a reading"
    if facts["readings_a_step"] > 1 or facts["steps_with_fewer"]:
        text += f"; a step is the {facts['how']} of {facts['readings_a_step']} readings, of fewer {facts['steps_with_fewer']:,} times"
    if facts["several_readings_of_one_time"]:
        text += f"; {facts['several_readings_of_one_time']:,} times one node has several readings of one time, taken together so"
    return text


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
