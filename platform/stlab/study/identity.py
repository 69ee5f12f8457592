"""The id of a trial: a hash of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stlab.catalog import MODELS, weights_file
from stlab.model_files import home, short
from stlab.study import sources
from stlab.study.spec import DataSpec, TrainSpec, TrialSpec
from stlab.version import __version__
from stmodels.config import KEEPS_NUMBERS, PARTS, READ_BY_SOME, ModelConfig, marked

_LENGTH = 16
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "peft", "safetensors", "numba", "numpy", "scipy", "pandas")
_TRAINING = ("stlab.training.trial", "stlab.data")
_FOLLOWED = {"training", "data"}  # of stlab, beside all of stmodels
_NOT_NUMERIC = {
    "stlab.data.adjacency",  # so is the network
    "stlab.data.formats",  # the content that a format gives is hashed by itself
    "stlab.training.interruption",
    "stlab.training.memory",
    "stlab.training.model_input",
    "stlab.training.record",
    "stlab.training.watchdog",
}


def roots() -> dict[str, Path]:
    """The packages whose files count."""
    import stlab
    import stmodels

    return {"stlab": Path(stlab.__file__).parent, "stmodels": Path(stmodels.__file__).parent}


def source_digests(config: ModelConfig) -> dict[str, str]:
    """The files that a trial of this model computes with: file → digest of its code."""
    modules, beside = home(type(config), config.name)
    entries = (*modules, *_TRAINING)
    # A process has imported our own files, and runs them as they were then. A user's file may be edited and loaded again.
    return dict(own_digests(entries)) if config.name in MODELS else _digests(entries, beside)


def code_version() -> str:
    """stlab's version, and a hash of the files that every training computes with. Those of the models do not belong to it."""
    return f"{__version__}+{_hash(own_digests(_TRAINING))[:10]}"


@functools.cache
def own_digests(entries: tuple[str, ...]) -> dict[str, str]:
    """The digests of our own files, which are read once a process."""
    return _digests(entries)


def _digests(entries: tuple[str, ...], beside: Mapping[str, Path] | None = None) -> dict[str, str]:
    """``beside``: what lies beside a model from outside."""
    places = {**(beside or {}), **roots()}
    parts = {path.stem for path in places["stlab"].iterdir()} - _FOLLOWED
    found = sources.digests(entries, places, {*_NOT_NUMERIC, *(f"stlab.{part}" for part in parts)})
    return {file: digest for file, digest in found.items() if file != "stlab/__init__.py"}  # the names that the package exports


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the numerical libraries in this process. They are not part of a trial's id."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


def trial_id(spec: TrialSpec, config: ModelConfig, data_sha256: str, parts: Mapping[str, str] | None = None) -> str:
    """The id of a resolved trial: the hash of :func:`document`.

    Raises:
        ModelError: a file that the model names (weights, a tokenizer) does not exist.
    """
    return id_of(document(spec, config, data_sha256, parts))


def id_of(made: Mapping[str, Any]) -> str:
    """The id of the trial that has this :func:`document`."""
    return _hash(made)[:_LENGTH]


def document(spec: TrialSpec, config: ModelConfig, data_sha256: str, parts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything that changes a trial's numbers: its fields by dotted path, its seed, its data, and the code that it runs.

    The network is among its data where the model reads it, by its weights and not by how they were made, and so are further channels.

    Args:
        parts: what only some models read of the data, with the hash of its content (:attr:`stlab.data.Dataset.parts`).

    Raises:
        ModelError: a file that the model names (weights, a tokenizer) does not exist.
    """
    sections = (
        ("data", spec.data.model_dump(mode="json"), DataSpec),
        ("model", spec.model, type(config)),
        ("train", spec.train.model_dump(mode="json"), TrainSpec),
    )
    # A stage has a schedule of its own, so with stages every field of training may count.
    without = config.inert() | (set() if config.stages() else spec.train.inert())
    without |= {f"data.{name}" for name in marked(DataSpec, READ_BY_SOME)}
    fields = {
        f"{section}.{name}": value
        for section, values, owner in sections
        for name, value in values.items()
        if section not in without and f"{section}.{name}" not in without and name not in marked(owner, KEEPS_NUMBERS)
    }
    if config.chooses():
        fields["train.select_by"] = spec.train.select_by
    fields["model.name"] = short(config.name)  # the place of a model's file counts as little as that of the data
    for path in config.files():
        naming = [name for name, value in fields.items() if value == path]
        fields |= dict.fromkeys(naming or [f"file {path}"], content_hash(path, " = ".join(naming) or "model"))
    read = read_parts(config, parts or {})
    return {"fields": fields, "seed": spec.seed, "data": data_sha256, **read, "code": source_digests(config)}


def read_parts(config: ModelConfig, parts: Mapping[str, str]) -> dict[str, str]:
    """Of what only some models read of the data, that which a model reads."""
    return {part: parts[part] for part in config.reads() if part in parts}


def recorded_parts(trial: Mapping[str, Any]) -> dict[str, str]:
    """The parts of the data, with their hashes, that the record of a trial names."""
    return {part: trial[f"{part}_sha256"] for part in PARTS if trial.get(f"{part}_sha256")}


def _hash(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def content_hash(path: str, field: str) -> str:
    """Hash of a file's content, or of all files in a folder, since a checkpoint may be either. ``field`` names it in messages."""
    place = weights_file(path, field)
    digest = hashlib.sha256()
    if place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.is_file()):
            digest.update(f"{place.name}/{file.relative_to(place).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    else:
        digest.update(place.read_bytes())
    return digest.hexdigest()


def absolute(path: str) -> str:
    """The absolute path, which does not depend on the working directory. URIs and generated data are returned unchanged."""
    return path if ":" in path else str(Path(path).expanduser().absolute())
