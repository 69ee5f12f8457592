"""What a job needs of models from outside: files beside the study, and packages that the cluster may not have."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stlab.catalog import MODELS, registered
from stlab.errors import UserError
from stlab.model_files import files_of, is_file, is_place, short
from stlab.study.model_places import models_of
from stlab.study.spec import StudySpec


@dataclass
class ModelSources:
    """Files and packages to be sent with a study."""

    files: dict[str, Path] = field(default_factory=dict)
    """Path below the study's folder on the cluster → file here."""
    packages: list[Path] = field(default_factory=list)
    """Folders for the import path: packages, and the metadata by which they register their models."""


def model_names(study: StudySpec) -> list[str]:
    """The names of the models from outside in a study."""
    return [name for name in models_of(study.model_dump()) if name not in MODELS]


def model_sources(names: Iterable[str], study_folder: Path) -> ModelSources:
    """The sources of models from outside.

    Raises:
        UserError: a model's file lies neither below the study's folder nor below the working directory.
        ModelError: a model cannot be loaded.
    """
    found = ModelSources()
    for name in names:
        if is_file(name):
            folder, files = files_of(name)
            below = _below(folder, (study_folder, Path.cwd()), name)
            found.files |= {(below / file).as_posix(): folder / file for file in files}
        else:
            module = (name if is_place(name) else registered()[name]).partition(":")[0]
            _add_package(found, module.partition(".")[0])
    return found


def _below(folder: Path, bases: Iterable[Path], name: str) -> Path:
    for base in bases:
        if folder.resolve().is_relative_to(base.resolve()):
            return folder.resolve().relative_to(base.resolve())
    raise UserError(
        f"model.name={short(name)}: a job gets what lies beside the study. Put the file there, and name it as ./{short(name)}."
    )


def _add_package(found: ModelSources, top: str) -> None:
    module = importlib.import_module(top)
    paths = list(getattr(module, "__path__", []))
    if not paths:  # a single file, which is found in the job's folder
        file = Path(str(module.__file__))
        found.files[file.name] = file
        return
    found.packages.append(Path(paths[0]))
    for distribution in importlib.metadata.packages_distributions().get(top, []):
        place = getattr(importlib.metadata.distribution(distribution), "_path", None)
        if place is not None and Path(place).is_dir():
            found.packages.append(Path(place))
