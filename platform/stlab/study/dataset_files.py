"""The data sets that a command line names: files, patterns of files, or entries of the study."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stlab.errors import StorageError, StudyError
from stlab.files import file_system, is_uri, shown, told
from stlab.study.identity import absolute
from stlab.study.source import did_you_mean

_FILES = (".npz", ".json", ".h5", ".hdf5", ".csv", ".parquet")
_GENERATED = "synthetic:"
_WILD = re.compile(r"[*?\[]")
_WILD_IN_URI = re.compile(r"[*\[]")  # a question mark begins the options of a store


def chosen_datasets(words: Sequence[str], entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → entry for each data set that the words of ``--datasets`` choose.

    A word is the name of one of the study's entries, a file, a pattern of files on this machine or in a store, or generated data. A file
    is named by its stem; where an entry of the study has that name, in any case, it keeps its other fields.

    Raises:
        StudyError: a word matches nothing, or two files have one name.
    """
    by_name = {name.lower(): name for name in entries}
    by_path = {absolute(str(entry.get("path"))): name for name, entry in entries.items() if isinstance(entry, dict)}
    chosen: dict[str, dict[str, Any]] = {}
    for word in words:
        if word in entries:
            chosen[word] = dict(entries[word])
            continue
        for path in _paths(word, list(entries)):
            stem = _name(path)
            name = by_path.get(absolute(path)) or by_name.get(stem.lower(), stem)
            if chosen.get(name, {}).get("path", path) != path:
                raise StudyError(f"--datasets: {chosen[name]['path']} and {path} would both be named {name}. Rename one of the files.")
            chosen[name] = {**entries.get(name, {}), "path": path}
    return chosen


def _paths(word: str, entries: Sequence[str]) -> list[str]:
    if word.startswith(_GENERATED) or not (_WILD_IN_URI if is_uri(word) else _WILD).search(word):
        if not re.search(r"[./\\:]", word) and not Path(word).exists():
            listed = f" The study names {', '.join(entries)}." if entries else ""
            raise StudyError(f"--datasets {word}: there is neither such an entry nor such a file.{did_you_mean(word, entries)}{listed}")
        return [word]
    found = _in_store(word) if is_uri(word) else sorted(glob.glob(str(Path(word).expanduser()), recursive=True))
    files = [path for path in found if path.partition("?")[0].lower().endswith(_FILES)]
    if not files:
        there = f" It matches {len(found)} other files." if found else ""
        raise StudyError(f"--datasets {shown(word)}: no data file matches it ({', '.join(_FILES)}).{there}")
    return files


def _in_store(pattern: str) -> list[str]:
    """URIs of the files that match, with the options of the store that stand behind the pattern's question mark."""
    import pyarrow.fs as pafs

    pattern, mark, options = pattern.partition("?")
    above = posixpath.dirname(pattern[: _WILD_IN_URI.search(pattern).start()])  # type: ignore[union-attr]
    try:
        system, root = file_system(f"{above}{mark}{options}")
        found = system.get_file_info(pafs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"--datasets {shown(pattern)}: cannot be listed. {told(error)}") from error
    uris = (f"{above}/{posixpath.relpath(info.path, root)}" for info in found if info.is_file)
    return sorted(f"{uri}{mark}{options}" for uri in uris if fnmatch.fnmatchcase(uri, pattern))


def _name(path: str) -> str:
    """The name of a data set, from that of its file; ``synthetic:city?seed=1`` gives ``city-seed-1``."""
    plain = path.removeprefix(_GENERATED)
    if plain == path:
        file = posixpath.basename(plain.partition("?")[0] if is_uri(plain) else plain)
        plain = file.rpartition(".")[0] or file
    letters = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", letters).strip("-_") or "data"
