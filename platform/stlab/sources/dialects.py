"""How a file of records is written: its columns, separator, encoding, decimal sign, and the form of its times, from its first lines."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from stlab.errors import DataError
from stlab.sources.layouts import headless_layout, pems_columns
from stlab.sources.raw_files import RawFile

_SEPARATORS = ",;\t|"
_SAMPLE_LINES = 1000
_ENCODINGS = {"utf-8": "UTF-8", "latin-1": "Latin-1", "utf-16": "UTF-16"}
"""Those that DuckDB reads, and their names."""
_WITH_OFFSET = re.compile(r"\d\d:\d\d.*(?:Z|UTC|[+-]\d\d(?::?\d\d)?)$")
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?$")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+$")
# Day and month first are told apart by a part above twelve; points stand in day-first dates alone.
_DATES = (
    (re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}"), ("%d.%m.%Y",)),
    (re.compile(r"\d{4}/\d{1,2}/\d{1,2}"), ("%Y/%m/%d",)),
    (re.compile(r"\d{1,2}/\d{1,2}/\d{4}"), ("%m/%d/%Y", "%d/%m/%Y")),
)
_CLOCKS = (
    (re.compile(r"\d{1,2}:\d\d:\d\d\.\d+$"), "%H:%M:%S.%f"),
    (re.compile(r"\d{1,2}:\d\d:\d\d$"), "%H:%M:%S"),
    (re.compile(r"\d{1,2}:\d\d$"), "%H:%M"),
    (re.compile(r"\d{1,2}:\d\d:\d\d [AP]M$", re.IGNORECASE), "%I:%M:%S %p"),
    (re.compile(r"\d{1,2}:\d\d [AP]M$", re.IGNORECASE), "%I:%M %p"),
)
EPOCHS = {"epoch": 1, "epoch_ms": 1000}
"""Times as a number since 1970-01-01 UTC: the name of the form, and its parts of a second."""


@dataclass(frozen=True)
class Dialect:
    """Files of one dialect are read together."""

    header: tuple[str, ...]
    """The columns as DuckDB holds them: none empty, none twice but for case."""
    names: tuple[str, ...] = ()
    """The columns as the file writes them."""
    is_parquet: bool = False
    types: tuple[str, ...] = ()
    """DuckDB's types of a Parquet file's columns."""
    separator: str = ","
    encoding: str = "utf-8"
    has_header: bool = True
    skip: int = 0

    def words(self) -> str:
        """What a reader should know of how the file was read; empty for plain CSV."""
        if self.is_parquet:
            return ""
        found = [] if self.separator == "," else [f"{self.separator!r} between columns"]
        return ", ".join(found + ([] if self.encoding == "utf-8" else [_ENCODINGS[self.encoding]]))


@contextmanager
def opened(file: RawFile) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The bytes of a text file, decompressed."""
    suffix = file.path.suffix.lower()
    if suffix == ".gz":
        with gzip.open(file.path) as stream:
            yield stream
    elif suffix == ".zst":
        import pyarrow as pa

        with pa.CompressedInputStream(str(file.path), "zstd") as stream:
            yield stream
    else:
        with file.path.open("rb") as stream:
            yield stream


def text_dialect(file: RawFile, separator: str | None, encoding: str | None) -> tuple[Dialect, list[list[str]]]:
    """The dialect of a text file, and its first rows of cells.

    Raises:
        DataError: the file is empty, no text, or its compression is damaged.
    """
    try:
        with opened(file) as stream:
            head = stream.read(1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.name}: cannot be read ({error}). Fetch it again.") from error
    if not head.strip():
        raise DataError(f"{file.name}: an empty file. Fetch it again, or leave it out.")
    if encoding != "utf-16" and (head[:4] in (b"PAR1", b"PK\x03\x04") or b"\0" in head[:4096]):
        raise DataError(f"{file.name}: no text, but binary data. Is its name right? Parquet ends in .parquet, archives in .zip.")
    found = encoding or _encoding(head)
    lines = head.decode(found, "replace").removeprefix("\ufeff").splitlines()
    lines = lines if len(head) < 1 << 20 else lines[:-1]  # the last may be cut
    skip = next(number for number, line in enumerate(lines) if line.strip())
    layout = headless_layout(file.base)
    sign = separator or ("," if layout else _separator(lines[skip]))
    try:
        rows = list(csv.reader(io.StringIO("\n".join(lines[skip : skip + _SAMPLE_LINES + 1])), delimiter=sign))
    except csv.Error as error:
        raise DataError(f"{file.name}: no table of text ({error}). Is a quotation mark open? Is --delimiter right?") from error
    if layout:
        names = pems_columns(len(rows[0]))
        return Dialect(names, names, separator=sign, encoding=found, has_header=False, skip=skip), rows
    names = tuple(cell.strip() for cell in rows[0])
    # Some of the TLC's files have an empty line below the header.
    return Dialect(tuple(_unique(names)), names, separator=sign, encoding=found, skip=skip), [row for row in rows[1:] if row]


def checked_separator(text: str) -> str:
    """The character between columns.

    Raises:
        DataError: it is none, or several.
    """
    sign = "\t" if text in ("\\t", "tab") else text
    if len(sign) != 1 or sign in "\"\r\n":
        raise DataError(f"--delimiter {text}: give one character, for example ';' or '\\t'.")
    return sign


def checked_encoding(text: str) -> str:
    """The encoding's name.

    Raises:
        DataError: it is not among those that are read.
    """
    if text.lower() not in _ENCODINGS:
        raise DataError(f"--encoding {text}: give {', '.join(_ENCODINGS)}; others have to be converted first (iconv -t utf-8).")
    return text.lower()


def _encoding(head: bytes) -> str:
    for encoding in ("utf-8", "latin-1"):
        try:
            head[: head.rfind(b"\n") + 1 or len(head)].decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    raise AssertionError("Latin-1 takes every byte")


def _separator(line: str) -> str:
    return max(_SEPARATORS, key=line.count)


def _unique(names: Sequence[str]) -> list[str]:
    """Names as DuckDB can hold them: none empty, none twice."""
    result: list[str] = []
    for i, name in enumerate(names):
        plain = name or f"column {i + 1}"
        taken = {other.lower() for other in result}
        result.append(plain if plain.lower() not in taken else f"{plain} ({i + 1})")
    return result


def has_decimal_comma(cells: Sequence[str], separator: str, file: RawFile) -> bool:
    """Whether numbers are written as 12,5: at least one is, and the comma does not separate columns.

    Raises:
        DataError: each comma has three digits after it, so that it may stand for thousands.
    """
    commas = [cell.strip() for cell in cells if _DECIMAL_COMMA.match(cell.strip())] if separator != "," else []
    if commas and all(len(cell.partition(",")[2]) == 3 for cell in commas):
        whole = commas[0].partition(",")[0]
        raise DataError(f"{file.name}: is {commas[0]} a little more than {whole}, or in thousands? Say it: --decimal , or --decimal .")
    return bool(commas)


@dataclass(frozen=True)
class TimeForm:
    """How times are written."""

    format: str = "iso"
    """``iso``, ``epoch``, ``epoch_ms``, or strptime's."""
    fractions: bool = False
    """Whether seconds may have fractions beside the format."""
    has_offset: bool = False
    """Whether each time says its distance from UTC."""


def time_form(cells: Sequence[str], file: RawFile, column: str, *, month_first: bool = False) -> TimeForm:
    """The form of the times in a sample.

    Args:
        month_first: whether dates with slashes begin with the month, as those of publishers in the USA do; else the sample has to tell.

    Raises:
        DataError: no known form, or one that leaves open whether the day or the month stands first.
    """
    texts = [cell.strip() for cell in cells if cell.strip()]
    if not texts:  # what the column lacks is counted when it is read
        return TimeForm()
    for text in texts[:50]:
        if _WITH_OFFSET.search(text):
            return TimeForm(has_offset=True)
        if _ISO.match(text):
            return TimeForm()
        for pattern, dates in _DATES:
            if found := pattern.match(text):
                date = dates[0] if len(dates) == 1 or month_first else _day_or_month(texts, dates, file, column)
                rest = text[found.end() :].lstrip()
                clock = next((form for shape, form in _CLOCKS if shape.match(rest)), None)
                if clock or not rest:
                    form = f"{date}{text[found.end() : len(text) - len(rest)]}{(clock or '').removesuffix('.%f')}"
                    return TimeForm(form, fractions=form.endswith("%S"))
    hint = (
        "They count seconds? --time-format epoch."
        if re.fullmatch(r"\d{9,11}", texts[0])
        else "Say how, as strptime does: --time-format '%d.%m.%Y %H:%M'."
    )
    shown = ", ".join(repr(text) for text in texts[:3])
    raise DataError(f"{file.name}: column '{column}' holds no times in a known form: {shown}. {hint}")


def _day_or_month(texts: Sequence[str], dates: Sequence[str], file: RawFile, column: str) -> str:
    for text in texts:
        parts = re.match(r"(\d{1,2})/(\d{1,2})/", text)
        if parts and int(parts[2]) > 12:
            return dates[0]
        if parts and int(parts[1]) > 12:
            return dates[1]
    raise DataError(
        f"{file.name}: column '{column}': does {texts[0]} begin with the day or the month? Nothing in the first {len(texts)} rows tells. "
        f"Say it: --time-format '{dates[0]} %H:%M:%S' or '{dates[1]} %H:%M:%S'."
    )
