"""Data: from a file to windows on the device, under a protocol that hides everything later than the forecast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlab.data.dataset import Dataset
from stlab.data.formats.content import ReadyWindows
from stlab.data.formats.readers import read_content
from stlab.data.from_series import dataset_from_series
from stlab.data.from_windows import dataset_from_windows
from stlab.data.protocol.scaler import Scaler
from stlab.data.windows import Windows

if TYPE_CHECKING:
    from stlab.study.spec import DataSpec

__all__ = ["Dataset", "Scaler", "Windows", "load_dataset"]


def load_dataset(spec: DataSpec) -> Dataset:
    """Read, check, split and scale the data of a specification.

    Raises:
        DataError: the data cannot be used; the message names the file, the array, the index and the remedy.
    """
    content = read_content(spec)
    if isinstance(content, ReadyWindows):
        return dataset_from_windows(content, spec)
    return dataset_from_series(content, spec)
