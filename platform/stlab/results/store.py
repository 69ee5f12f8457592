"""Files on any path that pyarrow's file systems take: local, NFS, s3://, gs://."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stlab.errors import StorageError


class Store:
    """A folder on some file system. Paths given to its methods are relative to it, with forward slashes.

    A file is there whole or not at all: local files are written beside their place and moved into it, and an object store shows
    an object only once it is complete.

    Raises:
        StorageError: the location cannot be understood, read or written.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        try:
            if "://" in text:
                self._fs, self._root = pafs.FileSystem.from_uri(text)
                self.location = text.rstrip("/")
            else:
                self._fs, self._root = pafs.LocalFileSystem(), str(Path(text).expanduser().resolve())
                self.location = self._root
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(
                f"--storage {text}: {error}. Give a folder, or a URI such as s3://bucket/runs."
            ) from error
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        if self.is_local and Path(self._root).exists() and not Path(self._root).is_dir():
            raise StorageError(f"--storage {text}: that is a file. Give a folder; it is made where there is none.")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def path(self, relative: str) -> str:
        """The full path within the file system: on a local store, a path to open."""
        return posixpath.join(self._root, relative)

    def make(self) -> None:
        """Make the folder on a local store, so that what cannot be written is known before hours of work."""
        if not self.is_local:
            return
        try:
            Path(self._root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"--storage {self.location}: cannot be made ({error.strerror}). Give another folder.") from error
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise StorageError(f"--storage {self.location}: no permission to write there. Give another folder.")

    def exists(self, relative: str) -> bool:
        return bool(self._fs.get_file_info(self.path(relative)).type != pafs.FileType.NotFound)

    def names(self, relative: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; empty where there is no such folder."""
        found = self._fs.get_file_info(pafs.FileSelector(self.path(relative), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self, relative: str) -> bytes:
        """Raises FileNotFoundError where there is nothing."""
        with self._fs.open_input_stream(self.path(relative)) as stream:
            return bytes(stream.read())

    def write(self, relative: str, content: bytes) -> None:
        target = self.path(relative)
        try:
            self._fs.create_dir(posixpath.dirname(target), recursive=True)
            if not self.is_local:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(content)
                return
            beside = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with self._fs.open_output_stream(beside) as stream:
                    stream.write(content)
                self._fs.move(beside, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(beside)
                raise
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error}") from error

    def move(self, source: str, target: str) -> None:
        """Move a file or, on a local store, a folder."""
        self._fs.create_dir(posixpath.dirname(self.path(target)), recursive=True)
        self._fs.move(self.path(source), self.path(target))

    def delete_folder(self, relative: str) -> None:
        if self.exists(relative):
            self._fs.delete_dir(self.path(relative))

    def read_json(self, relative: str) -> Any:
        return json.loads(self.read(relative))

    def write_json(self, relative: str, value: Any) -> None:
        self.write(relative, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_table(self, relative: str) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.read(relative)))

    def write_table(self, relative: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(relative, sink.getvalue().to_pybytes())
