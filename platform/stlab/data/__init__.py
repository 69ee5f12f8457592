"""Data: from a file to windows on the device, under a protocol that hides everything later than the forecast."""

from __future__ import annotations

import dataclasses
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
    made = dataset_from_windows(content, spec) if isinstance(content, ReadyWindows) else dataset_from_series(content, spec)
    return dataclasses.replace(made, pretrain=tuple(_for_pretraining(path, spec, made) for path in spec.pretrain))


def _for_pretraining(path: str, spec: DataSpec, own: Dataset) -> Dataset:
    """A data set of ``data.pretrain``, cut into windows as the trial's own. What the study says about the trial's own file does not hold
    for it. It may be the trial's own, which is cut to ``data.train_ratio`` then, as the trial is."""
    if path == spec.path:
        return own
    of_one_file = ("train_ratio", "start", "step_minutes", "node_ids", "distances", "graph", "inputs", "pretrain")
    other = load_dataset(spec.model_copy(update={"path": path, **{name: type(spec).model_fields[name].default for name in of_one_file}}))
    return own if other.sha256 == own.sha256 else other
