"""The data sets that a command line names: files, patterns of files, or entries of the study."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stlab.errors import StorageError, StudyError
from stlab.files import file_system, is_uri, shown, told

_FILES = (".npz", ".json", ".h5", ".hdf5", ".csv", ".parquet")
_GENERATED = "synthetic:"
_WILD = re.compile(r"[*?\[]")


def chosen_datasets(words: Sequence[str], entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → entry for each data set that the words of ``--datasets`` choose.

    A word is the name of one of the study's entries, a file, a pattern of files on this machine or in a store, or generated data. A file
    is named by its stem; where an entry of the study has that name, in any case, it keeps its other fields.

    Raises:
        StudyError: a word matches nothing, or two files have one name.
    """
    by_name = {name.lower(): name for name in entries}
    chosen: dict[str, dict[str, Any]] = {}
    for word in words:
        if word in entries:
            chosen[word] = dict(entries[word])
            continue
        for path in _paths(word):
            stem = _name(path)
            name = by_name.get(stem.lower(), stem)
            if chosen.get(name, {}).get("path", path) != path:
                raise StudyError(f"--datasets: {chosen[name]['path']} and {path} would both be named {name}. Rename one of the files.")
            chosen[name] = {**entries.get(name, {}), "path": path}
    return chosen


def _paths(word: str) -> list[str]:
    if word.startswith(_GENERATED) or not _WILD.search(word):
        return [word]
    found = _in_store(word) if is_uri(word) else sorted(glob.glob(str(Path(word).expanduser()), recursive=True))
    files = [path for path in found if path.lower().endswith(_FILES)]
    if not files:
        there = f" It matches {len(found)} other files." if found else ""
        raise StudyError(f"--datasets {shown(word)}: no data file matches it ({', '.join(_FILES)}).{there}")
    return files


def _in_store(pattern: str) -> list[str]:
    """URIs of the files that match. A question mark is a wildcard here, so options of a store cannot stand behind one."""
    import pyarrow.fs as pafs

    above = posixpath.dirname(pattern[: _WILD.search(pattern).start()])  # type: ignore[union-attr]
    try:
        system, root = file_system(above)
        found = system.get_file_info(pafs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"--datasets {shown(pattern)}: cannot be listed. {told(error)}") from error
    uris = (f"{above}/{posixpath.relpath(info.path, root)}" for info in found if info.is_file)
    return sorted(uri for uri in uris if fnmatch.fnmatchcase(uri, pattern))


def _name(path: str) -> str:
    """The name of a data set, from that of its file; ``synthetic:city?seed=1`` gives ``city-seed-1``."""
    plain = path.removeprefix(_GENERATED)
    stem = plain if plain != path else posixpath.basename(plain).rpartition(".")[0] or plain
    return re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-_") or "data"
