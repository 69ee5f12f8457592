"""One paper: a YAML description and a CSV file of its figures, shipped by name or given by path.

The CSV file has a row a cell group: ``table, method, dataset``, ``train_ratio`` where a table has it, and a column a metric. Its
texts are what is printed; an empty one is not printed. The description says what a figure needs to be set beside another: data sets
by shape, step and span, the protocol as far as it is printed, and of each method its backbone, or why it is not there.
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
    """The evaluation protocol as far as the paper prints it; a field that is left out is not printed."""

    family: Family
    history: int | None = None
    horizon: int | None = None
    split: tuple[float, float, float] | None = None
    mask: Literal["none"] | float | None = None
    """The value that counts as no reading, or `none`: all are counted."""
    leaks: bool = False
    """Something later than the forecast is seen, a scaler fitted on the test segment for one."""
    leak: str = ""
    """What that is."""


class DatasetFacts(Spec):
    """What is printed of a data set; no paper prints a hash of its content."""

    family: Family
    shape: tuple[int, ...] | None = None
    """(H, W) of a grid, (N,) of sensors."""
    steps: int | None = None
    step_minutes: float | None = None
    first: datetime.date | None = None
    last: datetime.date | None = None
    scale: float = 1.0
    """Factor on the errors in the tables."""
    aliases: list[str] = Field(default_factory=list)
    """Names that files of it go by."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted fields that the paper sets otherwise on this data set."""
    note: str = ""


class MethodFacts(Spec):
    """What has to be known of a row of a table."""

    backbone: str | None = None
    """`model.backbone` of this method, with pretrained weights; unset: it has none."""
    missing: str | None = None
    """Why there is no such model here."""
    protocol_unknown: str | None = None
    """Why its figures cannot be set beside others, whatever the printed protocol."""
    note: str = ""


class TableFacts(Spec):
    """A table or a figure."""

    title: str
    what: str
    says: str = ""
    """What a reader must know of it: a figure without numbers, a detail that is not printed."""
    printed_in: str | None = None
    """The table that holds a figure's numbers."""
    methods: list[str] = Field(default_factory=list)
    datasets: list[str] = Field(default_factory=list)
    ours: dict[str, Literal["wall_minutes"]] = Field(default_factory=dict)
    """What of ours stands beside a column that is no forecast error."""
    not_comparable: dict[str, str] = Field(default_factory=dict)
    """Columns that never compare, and why."""


class CellNote(Spec):
    """An oddity of some cells."""

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
            raise ValueError(f"{cells!r} is no file name; the CSV file lies beside the description")
        return cells


@dataclass(frozen=True)
class Paper:
    """A paper's tables."""

    name: str
    facts: _Description
    cells: dict[CellKey, dict[str, str]]
    """(table, method, data set, train ratio) → metric → text as printed."""

    def table(self, name: str) -> TableFacts:
        """Raises StudyError where the paper has no such table."""
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
        """Its rows, in the order they are printed."""
        return self.table(table).methods or list(dict.fromkeys(key[1] for key in self._keys(table)))

    def datasets(self, table: str) -> list[str]:
        """Its data sets, in the order they are printed."""
        return self.table(table).datasets or list(dict.fromkeys(key[2] for key in self._keys(table)))

    def ratios(self, table: str) -> list[float]:
        """Shares of the train segment its figures are for; [1.0] where it is no few-shot table."""
        return list(dict.fromkeys(key[3] for key in self._keys(table))) or [1.0]

    def metrics(self, table: str) -> list[str]:
        """Columns that hold a figure for at least one cell: ``rmse``, ``mae``, ``mape_percent`` and others."""
        found = [self.cells[key] for key in self._keys(table)]
        return list(dict.fromkeys(metric for cell in found for metric, text in cell.items() if text))

    def cell(self, table: str, method: str, dataset: str, ratio: float = 1.0) -> dict[str, str]:
        """Metric → text as printed; empty where there is no such cell."""
        if self.table(table).datasets and dataset not in self.datasets(table):
            return {}
        found = self.cells.get((self.table(table).printed_in or table, method, dataset, ratio), {})
        return {metric: text for metric, text in found.items() if text}

    def notes(self, table: str, method: str, dataset: str | None) -> list[str]:
        """Oddities of these cells, of the method and of the data set."""
        held = {table, self.table(table).printed_in}
        told = [
            note.note
            for note in self.facts.notes
            if note.table in held
            and note.method in (None, method)
            and (not note.datasets or dataset in note.datasets)
        ]
        told += [self.facts.methods[method].note] if method in self.facts.methods else []
        told += [self.facts.datasets[dataset].note] if dataset in self.facts.datasets else []
        return [note for note in dict.fromkeys(told) if note]

    def find_dataset(self, name: str) -> str | None:
        """The paper's data set that a file of this name holds, by the name alone; UniST's ``_short`` is no part of it."""
        plain = _plain(re.sub(r"_short$", "", name))
        for known, facts in self.facts.datasets.items():
            if plain in map(_plain, (known, *facts.aliases)):
                return known
        return None


def shipped_papers() -> list[str]:
    """Names of the papers that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_paper(name: str) -> Paper:
    """A shipped paper by name, or a description of one's own by path (``.yaml``).

    Raises:
        StudyError: there is none, or it cannot be used; says where.
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
        raise StudyError(f"{path.name}: is no description of a paper: {error}") from error
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
                raise StudyError(f"{path.name}:{reader.line_num}: {key} stands twice.")
            cells[key] = {metric: text.strip() for metric, text in row.items() if metric not in _KEYS and text is not None}
    return cells


def _check(paper: Paper) -> None:
    """Whatever the CSV file names is described."""
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
