"""Models from outside: a file ``./mine.py:MyConfig`` or an importable module ``my_package.mine:MyConfig``.

A file is loaded from where it lies. A run first copies it, and what it imports beside it, into its storage (``code/<digest>/``), so that
the workers of every node find it, and so that a trial can be loaded years later with the code that trained it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stlab.errors import ModelError
from stlab.files import is_uri, local_copy, secrets_of, shown
from stlab.study import sources

if TYPE_CHECKING:
    from stlab.storage import Store

_CODE = "code"


def is_place(name: str) -> bool:
    """Whether a model's name says where its configuration is: ``place:Class``."""
    return ":" in name


def is_file(name: str) -> bool:
    """Whether it is in a file: ``./mine.py:MyConfig``."""
    return _split(name.rpartition(":")[0])[1].endswith(".py")


def _split(place: str) -> tuple[str, str]:
    """The folder of a file, and its name; a URI's options belong to the folder."""
    path, mark, options = place.partition("?") if is_uri(place) else (place, "", "")
    folder, _, file = path.rpartition("/")
    return f"{folder}{mark}{options}", file


def short(name: str) -> str:
    """The name for a reader, without folders: ``mine.py:MyConfig``."""
    place, colon, found = name.rpartition(":")
    return f"{_split(place)[1]}{colon}{found}" if is_file(name) else name


def located(name: str, folder: Path | None = None) -> str:
    """The name with the absolute path of its file, which is looked for in ``folder`` and then where the command runs.

    A study in a storage names the file that the storage kept. It is found there after the storage was moved, too.
    """
    place, _, found = name.rpartition(":")
    if not is_file(name) or is_uri(place):
        return name
    path = Path(place).expanduser()
    candidates = [folder / path, path] if folder is not None else [path]
    if folder is not None and path.parts[-3:-2] == (_CODE,):
        candidates.append(folder.parent.parent.joinpath(*path.parts[-3:]))
    return f"{next((c for c in candidates if c.is_file()), path).absolute()}:{found}"


def place_of(config: type[Any]) -> str:
    """The name by which a study names a configuration's class.

    Raises:
        ModelError: the class is in no file that a worker could import.
    """
    module = sys.modules.get(config.__module__)
    file = getattr(module, "__file__", None)
    if config.__module__ == "__main__" or file is None:
        raise ModelError(
            f"{config.__name__} is defined in the running script or notebook, which workers cannot import: write it into a file, mine.py, "
            f"and import it from there, or name it as ./mine.py:{config.__name__}."
        )
    is_package = "." in config.__module__ or Path(file).name == "__init__.py"
    return f"{config.__module__ if is_package else Path(file).absolute()}:{config.__qualname__}"


def load(name: str) -> type[Any]:
    """The class that a name places.

    Raises:
        ModelError: there is no such file, module or class, or it cannot be imported; the message names the line.
    """
    place, _, found = name.rpartition(":")
    module = _module_of_file(_local(place), name) if is_file(name) else _imported(place, name)
    if not hasattr(module, found):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__]
        raise ModelError(f"model.name={short(name)}: {place} has no {found}. It has: {', '.join(known) or 'no class'}.")
    return getattr(module, found)  # type: ignore[no-any-return]


def _local(place: str) -> Path:
    """The file on this machine. What a storage keeps is copied with its neighbours, any other URI alone."""
    if not is_uri(place):
        return Path(place)
    folder, file = _split(place)
    is_kept = folder.partition("?")[0].split("/")[-2:-1] == [_CODE]
    try:
        return local_copy(folder) / file if is_kept else local_copy(place)
    except FileNotFoundError:
        return Path(file)


def _imported(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise broken(name, error) from error
        raise ModelError(
            f"model.name={name}: there is no module {place} in this environment. Install its package, or give a file: ./mine.py:MyConfig."
        ) from error
    except Exception as error:
        raise broken(name, error) from error


def _module_of_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ModelError(
            f"model.name={short(name)}: there is no file {shown(str(path))}. A relative path starts at the study's folder, or where the "
            "command runs."
        )
    try:
        if path.stem in sys.stdlib_module_names:
            raise ModelError(
                f"model.name={short(name)}: {path.name} has the name of a module of Python's own, which others import. Rename the file."
            )
        files = sources.digests([path.stem], _beside(path.parent))
        content = b"".join((path.parent / file).read_bytes() for file in files)
        # The content is part of the name: a file that was edited is another module, and its classes are others.
        module_name = f"stlab_model_{hashlib.sha256(str(path.absolute()).encode() + content).hexdigest()[:12]}_{path.stem}"
        if module_name not in sys.modules:
            _make_room({PurePosixPath(file).parts[0].removesuffix(".py") for file in files} - {path.stem}, path.parent)
            _execute(module_name, path)
    except ModelError:
        raise
    except Exception as error:
        raise broken(name, error) from error
    return sys.modules[module_name]


def _execute(module_name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _make_room(neighbours: Collection[str], folder: Path) -> None:
    """Have the next imports of these names find the ones in ``folder``, whatever was imported under the same names before."""
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in neighbours:
            del sys.modules[loaded]
    place = str(folder.absolute())
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)
    importlib.invalidate_caches()


def _beside(folder: Path) -> dict[str, Path]:
    """The modules and packages in a folder by name; a package needs no ``__init__.py``."""
    return {path.stem: path for path in folder.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}


def broken(name: str, error: Exception) -> ModelError:
    """An error in somebody's code as the user's, with the line where it was raised."""
    if isinstance(error, SyntaxError):
        file, line = str(error.filename), error.lineno
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
        file, line = (frames[-1].filename, frames[-1].lineno) if frames else (name.rpartition(":")[0], None)
    return ModelError(f"model.name={short(name)}: {Path(file).name}:{line}: {type(error).__name__}: {error}")


def home(config: type[Any], name: str) -> tuple[list[str], dict[str, Path]]:
    """The modules of a configuration and of its network, and where :mod:`stlab.study.sources` finds what they import.

    Returns:
        Dotted names, and top-level name → file or folder: of what lies beside a file, or of a package's own files.
    """
    if is_file(name):
        path = _local(name.rpartition(":")[0])
        first, places = path.stem, _beside(path.parent)
    else:
        first = config.__module__
        top = first.partition(".")[0]
        file = Path(str(getattr(sys.modules[top], "__file__", None) or ""))
        packages = list(getattr(sys.modules[top], "__path__", []))
        places = {top: Path(packages[0])} if packages else _beside(file.parent)
    return [first, *filter(None, [config.MODEL.rpartition(":")[0]])], places


def files_of(name: str) -> tuple[Path, list[str]]:
    """The folder of a model's file, and the files there that it consists of: itself, and what it imports from beside it."""
    modules, places = home(load(name), name)
    return _local(name.rpartition(":")[0]).parent, sorted(sources.digests(modules, places))


def keep(name: str, store: Store) -> str:
    """Copy a model's files into the storage, once for each of their states. Returns the name with their new place.

    Raises:
        ModelError: the files cannot be loaded, or the address of the storage holds a key, which the name would show.
    """
    if not is_file(name):
        return name
    if secrets_of(store.location):
        raise ModelError(
            f"model.name={short(name)}: the model's file is kept in the storage, whose address would be written with its keys. Leave the "
            "keys out of --storage, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    folder, files = files_of(name)
    content = {file: (folder / file).read_bytes() for file in files}
    digest = hashlib.sha256(b"".join(file.encode() + text for file, text in content.items())).hexdigest()[:16]
    there = f"{_CODE}/{digest}"
    for file, text in content.items():
        if not store.exists(f"{there}/{file}"):
            store.write(f"{there}/{file}", text)
    place, _, found = name.rpartition(":")
    return f"{store.address(f'{there}/{_split(place)[1]}')}:{found}"


def relocated(name: str, store: Store) -> str:
    """The name of a kept model in a storage that was moved since."""
    place, _, found = name.rpartition(":")
    parts = place.partition("?")[0].split("/")
    if not is_file(name) or len(parts) < 3 or parts[-3] != _CODE or (not is_uri(place) and os.path.exists(place)):
        return name
    return f"{store.address('/'.join(parts[-3:]))}:{found}"
