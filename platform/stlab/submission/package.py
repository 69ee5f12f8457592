"""The package that a job sends to a cluster: the content of a wheel of this stlab, whether a checkout or an installation."""

from __future__ import annotations

import importlib.metadata
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stlab.errors import UserError

_LEFT_OUT = {"direct_url.json", "INSTALLER", "REQUESTED", "RECORD"}  # describe the installation on this machine


def package_folders(scratch: Path) -> list[Path]:
    """Folders with the content of a wheel, the packages and their metadata, for the import path.

    A checkout is built into a wheel, which is unpacked; an installed stlab is copied. Ray does not get the wheel itself: it would run
    ``pip install`` with all dependencies on every node, and assume that two wheels of the same version hold the same code.

    Args:
        scratch: an empty folder to work in.

    Raises:
        UserError: the wheel cannot be built.
    """
    target = scratch / "package"
    checkout = _checkout()
    if checkout is None:
        _copy_installed(target)
    else:
        with zipfile.ZipFile(_built_wheel(checkout, scratch / "wheel")) as wheel:
            wheel.extractall(target)
    return sorted(path for path in target.iterdir() if path.is_dir())


def size(folders: Iterator[Path] | list[Path]) -> int:
    """Bytes in all files of the folders, which is the amount sent, since Ray does not compress them."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _checkout() -> Path | None:
    """The folder with the ``pyproject.toml`` of this stlab, if it runs from a checkout."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "platform" / "stlab").is_dir() else None


def _built_wheel(checkout: Path, folder: Path) -> Path:
    try:
        import pyproject_hooks
        from build import BuildException, ProjectBuilder
    except ImportError as error:
        raise UserError("building the wheel needs the packages build and hatchling: pip install build hatchling") from error
    builder = ProjectBuilder(checkout, runner=pyproject_hooks.quiet_subprocess_runner)
    if missing := [" ".join(chain) for chain in builder.check_dependencies("wheel")]:
        raise UserError(f"building the wheel of {checkout} needs {', '.join(missing)}: pip install hatchling")
    try:
        return Path(builder.build("wheel", folder))
    except BuildException as error:
        raise UserError(f"the wheel of {checkout} cannot be built: {error}. python -m build --wheel shows more.") from error


def _copy_installed(target: Path) -> None:
    for file in importlib.metadata.distribution("stlab").files or ():
        source = Path(str(file.locate()))
        is_ours = file.parts[0] in ("stlab", "stmodels") or file.parts[0].endswith(".dist-info")
        if is_ours and source.suffix != ".pyc" and source.name not in _LEFT_OUT and source.is_file():
            place = target.joinpath(*file.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
