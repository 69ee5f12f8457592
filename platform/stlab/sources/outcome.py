"""What became of the records: how many were read, kept, and dropped for which reason. It is printed, and kept in the file that was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stlab.errors import DataError
from stlab.sources.records import Loaded, Malformed
from stlab.sources.sql import literal

if TYPE_CHECKING:
    import duckdb

MALFORMED = "malformed"
REASONS: dict[str, str] = {
    MALFORMED: "malformed",
    "no time": "no time",
    "no coordinate": "no coordinate",
    "no place": "no zone or node",
    "no reading": "no reading",
    "duplicate": "the same row twice",
    "left out": "left out (--without)",
    "outside the box": "outside the box",
    "outside the times": "outside the times",
}
"""Reason → its words, in the order in which they are looked at: a record counts under its first."""


@dataclass(frozen=True)
class Tally:
    """The records of one channel: a trip's beginning or end, or a reading."""

    channel: str
    rows: int
    kept: int
    dropped: Mapping[str, int]
    """Reason → rows. With the kept they are all rows."""


Cases = Sequence[tuple[str, str]]
"""SQL of a test, and the reason for which a record that passes it does not count; the first counts."""


def why(cases: Cases) -> str:
    """SQL of the reason why a record does not count; NULL if it does."""
    return f"(CASE {' '.join(f'WHEN {test} THEN {literal(reason)}' for test, reason in cases)} END)"


def tallied(connection: duckdb.DuckDBPyConnection, channel: str, cases: Cases, loaded: Loaded) -> Tally:
    """What became of the records of a channel.

    Raises:
        DataError: none is kept. The message says why each was not.
    """
    rows = connection.execute(f"SELECT {why(cases)} AS why, count(*) FROM records GROUP BY 1").fetchall()
    counted = {str(reason): int(count) for reason, count in rows if reason is not None}
    kept = sum(int(count) for reason, count in rows if reason is None)
    torn = loaded.rows - kept - sum(counted.values())  # lines that were no rows
    counted[MALFORMED] = counted.get(MALFORMED, 0) + torn
    dropped = {reason: counted[reason] for reason in REASONS if counted.get(reason)}
    if not kept:
        causes = ", ".join(f"{count} {REASONS[reason]}" for reason, count in dropped.items()) or "the files are empty"
        raise DataError(f"nothing is left: of {loaded.rows} rows ({channel}), {causes}.")
    return Tally(channel, loaded.rows, kept, dropped)


@dataclass
class Outcome:
    """What a command made, and of what."""

    command: str
    files: Sequence[str]
    tallies: Sequence[Tally]
    malformed: int
    examples: Sequence[Malformed]
    facts: dict[str, Any] = field(default_factory=dict)
    """Label → what else a reader has to know, in the order of the terminal."""

    def metadata(self) -> str:
        """All of it as JSON, for the output."""
        tallies = [asdict(tally) | {"dropped": dict(tally.dropped)} for tally in self.tallies]
        return json.dumps(
            {
                "command": self.command, "files": list(self.files), "tallies": tallies, "malformed": self.malformed,
                "malformed_examples": [str(example) for example in self.examples], **self.facts,
            }
        )  # fmt: skip


def check_malformed(loaded: Loaded, most: float) -> None:
    """Refuse records of which too many are malformed.

    Args:
        most: share of the rows, 0 to 1.

    Raises:
        DataError: more than that share is malformed. The message names the first.
    """
    if loaded.rows and loaded.malformed > most * loaded.rows:
        named = "\n".join(f"  {example}" for example in loaded.examples)
        raise DataError(
            f"{loaded.malformed} of {loaded.rows} rows are malformed, more than --max-bad {100 * most:g}%. The first:\n{named}\n"
            "Mend the files, say how they are to be read (--delimiter, --time-format, --encoding), or allow more: --max-bad 5%."
        )


def share(text: str) -> float:
    """A share such as ``1%`` or ``0.01``.

    Raises:
        DataError: it is none from 0 to 1.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(f"--max-bad {text}: give a share of the rows, for example 1%.")
    return value
