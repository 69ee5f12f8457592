"""The files of raw records that a command names: patterns, URIs and zip archives become files on this machine."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import posixpath
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stlab.errors import DataError
from stlab.files import file_system, is_uri, local_copy, shown

PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".csv.zst", ".tsv.zst", ".txt.zst")
_PATTERN = "*?["


@dataclass(frozen=True)
class RawFile:
    """A file of records on this machine."""

    path: Path
    """A link in the scratch folder, whose name holds nothing that DuckDB would take for a pattern."""
    name: str
    """What the user calls it: the path or URI as given, and the member of a zip archive after an exclamation mark."""

    @property
    def base(self) -> str:
        """The file's own name, without its folder."""
        return PurePosixPath(self.name.rpartition("!")[2]).name

    @property
    def is_parquet(self) -> bool:
        return self.path.suffix.lower() in PARQUET


def raw_files(patterns: Sequence[str], scratch: Path) -> list[RawFile]:
    """Every file that the patterns match, each once, in the order of the patterns and then of the names.

    Args:
        patterns: paths, URIs, and either with ``*``, ``?``, ``[…]`` or ``**``.
        scratch: a folder for what archives hold.

    Raises:
        DataError: a pattern matches nothing, a file is of another kind, or an archive is damaged or holds no records.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        for name in _matches(pattern):
            for path, shown_name in _opened(name, scratch):
                found.setdefault(path.resolve(), shown_name)
    links = scratch / "files"
    links.mkdir()
    return [RawFile(_linked(path, links / f"{number:06d}"), name) for number, (path, name) in enumerate(found.items())]


def _linked(path: Path, link: Path) -> Path:
    """A link to a file that ends as its name does."""
    suffix = next(suffix for suffix in sorted((*TEXT, *PARQUET), key=len, reverse=True) if path.name.lower().endswith(suffix))
    named = link.with_name(link.name + suffix)
    named.symlink_to(path)
    return named


def _matches(pattern: str) -> list[str]:
    if is_uri(pattern):
        return _matches_at_uri(pattern)
    path = Path(pattern).expanduser()
    if not any(sign in pattern for sign in _PATTERN) or path.exists():
        if path.is_dir():
            raise DataError(f"{pattern}: a folder. Give the files in it, for example '{path / '*.csv'}'.")
        if not path.exists():
            raise DataError(_not_found(path))
        return [str(path)]
    names = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not names:
        raise DataError(f"{pattern}: no file matches. Relative paths start where the command runs, {Path.cwd()}.")
    return names


def _not_found(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {folder.absolute()}."
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1, cutoff=0.5)
    hint = (
        f"Did you mean {folder / near[0]}?" if near else f"Relative paths start where the command runs, {Path.cwd()}."
    )
    return f"{path}: no such file. {hint}"


def _matches_at_uri(pattern: str) -> list[str]:
    """The URIs below the last folder of a URI that is no pattern."""
    import pyarrow.fs as pafs

    if not any(sign in pattern.partition("?")[0] if sign == "?" else sign in pattern for sign in "*["):
        return [pattern]
    parts = PurePosixPath(pattern.partition("://")[2]).parts
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*["))
    scheme = pattern.partition("://")[0]
    root = f"{scheme}://{'/'.join(parts[:fixed])}"
    system, folder = file_system(root)
    wanted = "/".join(parts[fixed:])
    try:
        entries = system.get_file_info(pafs.FileSelector(folder, recursive=True))
    except OSError as error:
        raise DataError(f"{shown(pattern)}: cannot be listed ({str(error).splitlines()[0]}).") from error
    below = sorted(posixpath.relpath(entry.path, folder) for entry in entries if entry.is_file)
    names = [f"{root}/{name}" for name in below if fnmatch.fnmatchcase(name, wanted)]
    if not names:
        raise DataError(f"{shown(pattern)}: no file matches.")
    return names


def _opened(name: str, scratch: Path) -> Iterator[tuple[Path, str]]:
    """The file itself, or what a zip archive holds: paths, and what the user calls them."""
    if is_uri(name):
        try:
            path = local_copy(name, folders=False)
        except FileNotFoundError as error:
            raise DataError(
                f"{shown(name)}: no such file. Is the bucket right, and the case of every letter?"
            ) from error
        except IsADirectoryError as error:
            raise DataError(
                f"{shown(name)}: a folder. Give the files in it: {shown(name).rstrip('/')}/*.csv"
            ) from error
        name = shown(name)
    else:
        path = Path(name)
    if path.suffix.lower() == ".zip":
        yield from _members(path, name, scratch)
    elif _is_known(path.name):
        yield path, name
    else:
        raise DataError(
            f"{name}: files of this kind are not records; known: {', '.join((*TEXT, *PARQUET))}, and .zip of these."
        )


def _is_known(name: str) -> bool:
    return name.lower().endswith((*TEXT, *PARQUET))


def _members(archive: Path, name: str, scratch: Path) -> Iterator[tuple[Path, str]]:
    """The records in an archive, and in archives inside it, as Citi Bike's yearly files are."""
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted = [member for member in opened.infolist() if _is_wanted(member)]
            if not wanted:
                raise DataError(f"{name}: no records in it; there: {_some(opened.namelist())}.")
            for i, member in enumerate(sorted(wanted, key=lambda member: member.filename)):
                folder = scratch / f"{len(list(scratch.iterdir()))}-{i}"
                folder.mkdir()
                target = folder / PurePosixPath(member.filename).name
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                inside = f"{name}!{member.filename}"
                if target.suffix.lower() == ".zip":
                    yield from _members(target, inside, scratch)
                    target.unlink()
                else:
                    yield target, inside
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{name}: no zip archive, or damaged ({error}). Fetch it again.") from error


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    is_hidden = path.name.startswith(".") or "__MACOSX" in path.parts  # what a Mac adds to its archives
    return not member.is_dir() and not is_hidden and (_is_known(path.name) or path.suffix.lower() == ".zip")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "") if listed else "nothing"
