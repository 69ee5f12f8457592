"""Files that ``data.path`` reads already, so that one kind becomes another."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from stlab.data.formats.content import Series
from stlab.data.formats.readers import READERS
from stlab.errors import DataError
from stlab.sources.foreign import LAYOUTS, Foreign


def read_own(path: Path) -> Foreign:
    """Read a series.

    Raises:
        DataError: the file is of another kind, or holds windows that were cut already.
    """
    suffix = path.suffix.lower()
    families = [family for family in ("sensors", "grid") if suffix in READERS[family]]
    if not families:
        known = "; ".join(layout for layout, _ in LAYOUTS)
        raise DataError(f"{path}: in no known layout. Known: {known}, and {', '.join(READERS['sensors'])}.")
    family = _family_of_npz(path) if suffix == ".npz" else families[0]
    content = READERS[family][suffix](path, family)
    if not isinstance(content, Series):
        raise DataError(
            f"{path}: windows that were cut already; they are read as they are, by data.path and data.protocol=unist."
        )
    return Foreign(
        family, content.values, suffix, content.timestamps, nodes=content.node_names, channels=content.channel_names,
        notes=(content.left_out,) if content.left_out else (), zero_is_a_reading=suffix == ".parquet" and content.null is None,
    )  # fmt: skip


def _family_of_npz(path: Path) -> str:
    """A grid has four axes. Whatever else is wrong with the file, its reader says."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "grid" if archive["data"].ndim == 4 else "sensors"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return "grid"
