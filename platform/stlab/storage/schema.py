"""The Parquet schemas. The metadata of each field hold its unit and its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning, "unit": unit})


_EPOCH_FIELDS = [
    _field("epoch", pa.int32(), "epochs done, from 1"),
    _field("step", pa.int64(), "optimiser steps done"),
    _field("loss", pa.float64(), "training loss, mean over the epoch", "scaled²"),
    _field("val_mae", pa.float64(), "mean absolute error on the validation segment", "data unit"),
    _field("val_rmse", pa.float64(), "root mean squared error on the validation segment", "data unit"),
    _field("lr", pa.float64(), "learning rate at the end of the epoch"),
    _field("grad_norm", pa.float64(), "gradient norm before clipping, mean over the epoch"),
    _field("clipped", pa.float64(), "share of the steps whose gradients train.clip_norm made smaller; 0: it did not act"),
    _field("seconds", pa.float64(), "duration of the epoch, validation included", "s"),
    _field("samples_per_second", pa.float64(), "training windows per second", "1/s"),
    _field("micro_batch", pa.int32(), "windows that pass through the model at once, on each worker"),
]

HORIZON = pa.schema(
    [
        _field("segment", pa.string(), "validation or test"),
        _field("horizon", pa.int32(), "steps ahead, from 1", "step"),
        _field("mae", pa.float64(), "mean absolute error at this horizon", "data unit"),
        _field("rmse", pa.float64(), "root mean squared error at this horizon", "data unit"),
        _field("mape", pa.float64(), "mean absolute percentage error at this horizon; sensors only", "%"),
        _field("count", pa.int64(), "readings"),
    ]
)

PREDICTIONS = pa.schema(
    [
        _field("window", pa.int64(), "index in the series of the first step of the window's history"),
        _field("horizon", pa.int32(), "steps ahead, from 1", "step"),
        _field("time", pa.timestamp("s"), "time of the step that is forecast; null without timestamps"),
        _field("truth", pa.list_(pa.float32()), "measured values of one step, flattened in C order", "data unit"),
        _field("forecast", pa.list_(pa.float32()), "forecast values, in the same order", "data unit"),
    ]
)

_TRIAL_FIELDS = [
    _field("study", pa.string(), "the study that lists the trial"),
    _field("trial_id", pa.string(), "hash of everything that changes the numbers"),
    _field("variant", pa.string(), "name of the variant, or of the baseline"),
    _field("seed", pa.int64(), "seed of initial weights and data order"),
    _field("baseline", pa.bool_(), "a reference forecast, not a variant"),
    _field("status", pa.string(), "finished, failed, pruned or missing"),
    _field("searched", pa.bool_(), "a trial of a search that was not selected, so it is in no table and was not tested"),
    _field("number", pa.int64(), "number of the trial within its search, from 0"),
    _field("val_mae", pa.float64(), "mean absolute error, validation segment, best checkpoint", "data unit"),
    _field("val_rmse", pa.float64(), "root mean squared error, validation segment, best checkpoint", "data unit"),
    _field("test_mae", pa.float64(), "mean absolute error, test segment, best checkpoint", "data unit"),
    _field("test_rmse", pa.float64(), "root mean squared error, test segment, best checkpoint", "data unit"),
    _field("test_mape", pa.float64(), "mean absolute percentage error, test segment; sensors only", "%"),
    _field("test_mae_unmasked", pa.float64(), "test_mae with missing readings counted as stored", "data unit"),
    _field("test_rmse_unmasked", pa.float64(), "test_rmse with missing readings counted as stored", "data unit"),
    _field("best_epoch", pa.int32(), "epoch of the best checkpoint, by validation error"),
    _field("epochs", pa.int32(), "epochs trained"),
    _field("wall_seconds", pa.float64(), "training and validation, resumed parts summed", "s"),
    _field("device_seconds", pa.float64(), "wall_seconds times workers", "s"),
    _field("peak_memory_bytes", pa.int64(), "of the device on a GPU, of the process on a CPU", "B"),
    _field("trainable_params", pa.int64(), "parameters the optimiser changes"),
    _field("total_params", pa.int64(), "all parameters, frozen ones included"),
    _field("samples_per_second", pa.float64(), "training windows per second, mean", "1/s"),
    _field("micro_batch", pa.int32(), "windows that pass through the model at once, on each worker; fewer if memory ran out"),
    _field("precision", pa.string(), "fp32 or bf16, as trained"),
    _field("device", pa.string(), "name of the device"),
    _field("weights", pa.string(), "source of the frozen weights: pretrained, random, a path, or none"),
    _field("information", pa.string(), "what a forecast may know: window, calendar (hour and weekday too), or period (earlier days too)"),
    _field("dataset", pa.string(), "name of the data set"),
    _field("synthetic", pa.bool_(), "the data was generated, not measured"),
    _field("leaks", pa.bool_(), "the protocol lets later values be seen (UniST's scaler)"),
    _field("protocol", pa.string(), "protocol fingerprint, as JSON"),
    _field("data_sha256", pa.string(), "hash of the data's content"),
    _field("code_version", pa.string(), "stlab's version and the hash of the sources that compute"),
    _field("started_at", pa.timestamp("us", tz="UTC"), "start of the training"),
    _field("reused_from", pa.string(), "the study that trained it, if that is another one; else null"),
    _field("error", pa.string(), "why a trial failed"),
    _field("notes", pa.string(), "problems during the trial that were resolved, such as memory that ran out or damaged files"),
]

_FLOATS = pa.list_(pa.float32())
_PLAIN_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _plain(values: Iterable[Any]) -> tuple[list[Any], pa.DataType]:
    """A column of configuration values and its type. Values of different types are stored as JSON."""
    values = list(values)
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        kinds = {float} if float in kinds else {int}
    if len(kinds) == 1 and (kind := kinds.pop()) in _PLAIN_TYPES:
        return [None if v is None else kind(v) for v in values], _PLAIN_TYPES[kind]
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()


def _table(fields: list[pa.Field], rows: Sequence[Mapping[str, Any]], extra: dict[str, str]) -> pa.Table:
    """Rows as a table of the given fields, followed by all columns whose names start with a prefix in ``extra``."""
    names = dict.fromkeys(name for row in rows for name in row if any(name.startswith(prefix) for prefix in extra))
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in fields]
    fields = list(fields)
    for name in names:
        values, kind = _plain(row.get(name) for row in rows)
        columns.append(pa.array(values, kind))
        fields.append(_field(name, kind, next(meaning for prefix, meaning in extra.items() if name.startswith(prefix))))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def trials_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row for each trial; ``param.*`` columns hold the resolved configuration, flat and typed."""
    return _table(_TRIAL_FIELDS, rows, {"param.": "resolved configuration field"})


def epochs_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row for each epoch; ``loss.*`` columns hold the loss terms, ``grad_norm.*`` the norms of their gradients, both unweighted."""
    extra = {
        "loss.": "term of the training loss, unweighted, mean over the epoch",
        "grad_norm.": "gradient norm of this loss term alone, unweighted and not clipped, on the epoch's first batch",
    }
    return _table(_EPOCH_FIELDS, rows, extra)


def model_input_table(
    names: Sequence[str],
    channels: Mapping[str, NDArray[np.float32]],
    series: NDArray[np.float32],
    facts: Mapping[str, Any],
) -> pa.Table:
    """The image of one window that a model sees, with a row for each of N nodes and L steps of their series.

    Args:
        names: the nodes' names.
        channels: name → (N, N) image channel in [0, 1].
        series: (N, L) readings from the window's first step on, in the data's unit.
        facts: ``window`` (index in the series of its first step), ``history`` (its steps), ``time`` (of its first step,
            ISO, or None) and ``step_seconds`` (or None): the table's metadata, as JSON, with the channels' names.
    """
    pixels = "image channel {}: this node's row, one pixel a node, by index"
    columns = [
        (_field("node", pa.int32(), "index of the node, from 0"), pa.array(range(len(names)), pa.int32())),
        (_field("name", pa.string(), "the node's name, or its index if it has none"), pa.array(names, pa.string())),
        *((_field(name, _FLOATS, pixels.format(name), "0 to 1"), _lists(rows)) for name, rows in channels.items()),
        (_field("series", _FLOATS, "readings from the window's first step on", "data unit"), _lists(series)),
    ]
    metadata = {name: json.dumps(value) for name, value in {**facts, "channels": list(channels)}.items()}
    schema = pa.schema([field for field, _ in columns], metadata=metadata)
    return pa.Table.from_arrays([column for _, column in columns], schema=schema)


def _lists(rows: NDArray[np.float32]) -> pa.Array:
    """(n, length) as n lists."""
    return pa.array(list(np.ascontiguousarray(rows, dtype=np.float32)), _FLOATS)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names: ``{"model": {"rank": 8}}`` → ``{"model.rank": 8}``."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{name}."))
        else:
            flat[name] = list(item) if isinstance(item, tuple) else item
    return flat
