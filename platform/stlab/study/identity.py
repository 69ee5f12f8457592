"""The id of a trial: a hash of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

from stlab.catalog import ModelConfig, weights_file
from stlab.study.spec import TrialSpec

# Fields that cannot change a number, or change it only through the content of the data, which is hashed by itself: the path of the
# data, the origin of its timestamps, the network beside it, the interval of checkpoints, and the time limit of a step.
_NO_PART_OF_IT = {
    "data.path",
    "data.start",
    "data.step_minutes",
    "data.node_ids",
    "data.distances",
    "train.checkpoint_seconds",
    "train.step_timeout",
}
_LENGTH = 16
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "peft", "safetensors", "numba", "numpy", "scipy", "pandas")


@functools.cache
def code_hash() -> str:
    """Hash of the sources that compute the numbers: the models, the training and the data."""
    import stlab
    import stmodels

    engine = Path(stlab.__file__).parent
    digest = hashlib.sha256()
    for folder in (Path(stmodels.__file__).parent, engine / "training", engine / "data"):
        _add_files(digest, folder, "*.py")
    return digest.hexdigest()


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the numerical libraries in this process. They are not part of a trial's id."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


def trial_id(spec: TrialSpec, config: ModelConfig, data_sha256: str) -> str:
    """The id of a resolved trial.

    Raises:
        ModelError: a file that the model names (weights, a tokenizer) does not exist.
    """
    without = config.inert() | spec.train.inert() | _NO_PART_OF_IT
    fields = {
        f"{section}.{name}": value
        for section, values in (
            ("data", spec.data.model_dump(mode="json")),
            ("model", spec.model),
            ("train", spec.train.model_dump(mode="json")),
        )
        for name, value in values.items()
        if section not in without and f"{section}.{name}" not in without
    }
    for path in config.files():
        naming = [name for name, value in fields.items() if value == path]
        fields |= dict.fromkeys(naming, content_hash(path, " = ".join(naming)))
    document = {"fields": fields, "seed": spec.seed, "data": data_sha256, "code": code_hash()}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def content_hash(path: str, field: str) -> str:
    """Hash of a file's content, or of all files in a folder, since a checkpoint may be either. ``field`` names it in messages."""
    place = weights_file(path, field)
    digest = hashlib.sha256()
    if place.is_dir():
        _add_files(digest, place, "*")
    else:
        digest.update(place.read_bytes())
    return digest.hexdigest()


def absolute(path: str) -> str:
    """The absolute path, which does not depend on the working directory. URIs and generated data are returned unchanged."""
    return path if ":" in path else str(Path(path).expanduser().absolute())


def _add_files(digest: hashlib._Hash, folder: Path, pattern: str) -> None:
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(path.read_bytes())
