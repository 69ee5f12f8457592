"""One paper: a YAML description and a CSV file of its values, shipped by name or given by path.

Each row of the CSV file holds the cells of one method on one data set: ``table, method, dataset``, ``train_ratio`` if the table has it,
and a column for each metric. The texts are as printed; an empty text is not printed. The description holds the facts that a comparison
needs: shape, step and span of the data sets, the protocol as far as it is printed, and each method's backbone or the reason that the
method is not implemented here.
"""

from __future__ import annotations

import csv
import datetime
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from stlab.errors import StudyError
from stlab.study.spec import Family, Spec

_FOLDER = Path(__file__).parent
_KEYS = ("table", "method", "dataset", "train_ratio")
CellKey = tuple[str, str, str, float]


class PrintedProtocol(Spec):
    """The evaluation protocol as far as the paper prints it; it does not print the fields that are left out."""

    family: Family
    history: int | None = None
    horizon: int | None = None
    split: tuple[float, float, float] | None = None
    mask: Literal["none"] | float | None = None
    """The value that means a missing reading, or `none` if all values count as readings."""
    leaks: bool = False
    """The model sees something later than the forecast, for example through a scaler fitted on the test segment."""
    leak: str = ""
    """A description of the leak."""


class DatasetFacts(Spec):
    """The facts that the paper prints about a data set; no paper prints a hash of the content."""

    family: Family
    shape: tuple[int, ...] | None = None
    """(H, W) of a grid, (N,) of sensors."""
    steps: int | None = None
    step_minutes: float | None = None
    first: datetime.date | None = None
    last: datetime.date | None = None
    scale: float = 1.0
    """The factor by which the errors in the tables are multiplied."""
    aliases: list[str] = Field(default_factory=list)
    """Names of public files of this data set."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted fields to which the paper gives another value on this data set."""
    note: str = ""


class MethodFacts(Spec):
    """Facts about a row of a table."""

    backbone: str | None = None
    """`model.backbone` of this method, with pretrained weights; unset if it has no backbone."""
    missing: str | None = None
    """The reason that this model is not implemented here."""
    protocol_unknown: str | None = None
    """The reason that its values are not comparable, whatever the printed protocol."""
    note: str = ""


class TableFacts(Spec):
    """A table or a figure."""

    title: str
    what: str
    says: str = ""
    """A remark for the reader, such as a figure without numbers or a detail that is not printed."""
    printed_in: str | None = None
    """The table that prints the numbers of a figure."""
    methods: list[str] = Field(default_factory=list)
    datasets: list[str] = Field(default_factory=list)
    ours: dict[str, Literal["wall_minutes"]] = Field(default_factory=dict)
    """Column that is not a forecast error → our quantity that is shown beside it."""
    not_comparable: dict[str, str] = Field(default_factory=dict)
    """Column that is never comparable → the reason."""


class CellNote(Spec):
    """A remark on some cells."""

    table: str
    method: str | None = None
    datasets: list[str] = Field(default_factory=list)
    note: str


class _Description(Spec):
    title: str
    short: str
    source: str
    cells: str
    caveat: str = ""
    caveat_short: str = ""
    protocol: PrintedProtocol
    not_printed: list[str] = Field(default_factory=list)
    datasets: dict[str, DatasetFacts]
    facts_from: str = ""
    data_missing: str = "the file is not shipped (data.path)"
    methods: dict[str, MethodFacts]
    tables: dict[str, TableFacts] = Field(min_length=1)
    notes: list[CellNote] = Field(default_factory=list)

    @field_validator("cells")
    @classmethod
    def _lies_beside_it(cls, cells: str) -> str:
        if Path(cells).name != cells:
            raise ValueError(f"{cells!r} is not a file name; the CSV file lies beside the description")
        return cells


@dataclass(frozen=True)
class Paper:
    """A paper's tables."""

    name: str
    facts: _Description
    cells: dict[CellKey, dict[str, str]]
    """(table, method, data set, train ratio) → metric → text as printed."""

    def table(self, name: str) -> TableFacts:
        """The facts about a table.

        Raises:
            StudyError: the paper has no such table.
        """
        if name not in self.facts.tables:
            raise StudyError(f"there is no table {name!r} in {self.name}.{_near(name, self.facts.tables)}")
        return self.facts.tables[name]

    def _keys(self, table: str) -> list[CellKey]:
        known = self.table(table)
        held = known.printed_in or table
        keys = [key for key in self.cells if key[0] == held]
        if known.printed_in and known.datasets:
            keys = [key for key in keys if key[2] in known.datasets]
        return keys

    def has_numbers(self, table: str) -> bool:
        """Whether the paper prints numbers of this table or figure, here or in another table."""
        return bool(self._keys(table))

    def methods(self, table: str) -> list[str]:
        """The rows of a table, in printed order."""
        return self.table(table).methods or list(dict.fromkeys(key[1] for key in self._keys(table)))

    def datasets(self, table: str) -> list[str]:
        """The data sets of a table, in printed order."""
        return self.table(table).datasets or list(dict.fromkeys(key[2] for key in self._keys(table)))

    def ratios(self, table: str) -> list[float]:
        """The shares of the train segment that a table has values for; [1.0] if it is not a few-shot table."""
        return list(dict.fromkeys(key[3] for key in self._keys(table))) or [1.0]

    def metrics(self, table: str) -> list[str]:
        """Columns with at least one value: ``rmse``, ``mae``, ``mape_percent`` and others."""
        found = [self.cells[key] for key in self._keys(table)]
        return list(dict.fromkeys(metric for cell in found for metric, text in cell.items() if text))

    def cell(self, table: str, method: str, dataset: str, ratio: float = 1.0) -> dict[str, str]:
        """Metric → text as printed; empty if there is no such cell."""
        if self.table(table).datasets and dataset not in self.datasets(table):
            return {}
        found = self.cells.get((self.table(table).printed_in or table, method, dataset, ratio), {})
        return {metric: text for metric, text in found.items() if text}

    def notes(self, table: str, method: str, dataset: str | None) -> list[str]:
        """Remarks on these cells, on the method and on the data set."""
        held = {table, self.table(table).printed_in}
        found = [
            note.note
            for note in self.facts.notes
            if note.table in held
            and note.method in (None, method)
            and (not note.datasets or dataset in note.datasets)
        ]
        found += [self.facts.methods[method].note] if method in self.facts.methods else []
        found += [self.facts.datasets[dataset].note] if dataset in self.facts.datasets else []
        return [note for note in dict.fromkeys(found) if note]

    def find_dataset(self, name: str) -> str | None:
        """The paper's data set that a file of this name holds, judged by the name alone; the suffix ``_short`` of UniST is ignored."""
        plain = _plain(re.sub(r"_short$", "", name))
        for known, facts in self.facts.datasets.items():
            if plain in map(_plain, (known, *facts.aliases)):
                return known
        return None


def shipped_papers() -> list[str]:
    """Names of the papers that the package ships."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_paper(name: str) -> Paper:
    """Load a shipped paper by name, or a user's description by path (``.yaml``).

    Raises:
        StudyError: there is no such paper, or its files are invalid; the message names the place.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise StudyError(
            f"there is no paper {name!r}.{_near(name, shipped_papers())} Or give the path of a description (.yaml)."
        )
    try:
        facts = _Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        cells = _read_cells(path.with_name(facts.cells))
    except (yaml.YAMLError, ValidationError, OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path.name}: is not a valid description of a paper: {error}") from error
    paper = Paper(path.stem, facts, cells)
    _check(paper)
    return paper


def _read_cells(path: Path) -> dict[CellKey, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        cells: dict[CellKey, dict[str, str]] = {}
        for row in reader:
            try:
                key = (row["table"], row["method"], row["dataset"], float(row.get("train_ratio") or 1.0))
            except (KeyError, ValueError) as error:
                raise StudyError(f"{path.name}:{reader.line_num}: {error!r}; columns: {', '.join(_KEYS)}.") from error
            if key in cells:
                raise StudyError(f"{path.name}:{reader.line_num}: {key} appears twice.")
            cells[key] = {metric: text.strip() for metric, text in row.items() if metric not in _KEYS and text is not None}
    return cells


def _check(paper: Paper) -> None:
    """Refuse a table, method or data set that the CSV file names and the description does not."""
    for table, method, dataset, _ in paper.cells:
        for name, known in ((table, paper.facts.tables), (method, paper.facts.methods), (dataset, paper.facts.datasets)):
            if name not in known:
                raise StudyError(f"{paper.facts.cells}: {name!r} is not described in {paper.name}.yaml.")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _near(name: str, known: Any) -> str:
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" There: {', '.join(names)}."
