"""Files that ``data.path`` reads already, so that one kind becomes another."""

from __future__ import annotations

from pathlib import Path

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
    family = next(
        (
            family
            for family in ("sensors", "grid")
            if suffix in READERS[family] and (family == "sensors") == (suffix != ".npz")
        ),
        None,
    )
    family = family or ("grid" if suffix in READERS["grid"] else None)
    if family is None:
        raise DataError(
            f"{path}: in no known layout. Known: {'; '.join(layout for layout, _ in LAYOUTS)}, and {', '.join(READERS['sensors'])}."
        )
    content = READERS[family][suffix](path, family)
    if not isinstance(content, Series):
        raise DataError(
            f"{path}: windows that were cut already; they are read as they are, by data.path and data.protocol=unist."
        )
    notes = (content.left_out,) if content.left_out else ()
    return Foreign(
        family,
        content.values,
        suffix,
        content.timestamps,
        nodes=content.node_names,
        channels=content.channel_names,
        notes=notes,
    )
