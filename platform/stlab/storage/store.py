"""Files on any path that pyarrow's file systems accept: local, NFS, s3://, gs://."""

from __future__ import annotations

import contextlib
import json
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stlab.errors import StorageError
from stlab.files import QUICK, file_system, is_uri, shown, told

_PROBE = b"stlab looks whether it can write here\n"


class Store:
    """A folder on some file system. Paths given to its methods are relative to it, with forward slashes.

    A file is never visible in part: local files are written under a temporary name and then renamed, and an object store shows an
    object only when it is complete. Requests to S3 that fail because of the server or the network are repeated for about 50 s. After
    that, and on any other failure, a method raises StorageError, which says what to do.

    Raises:
        StorageError: the location is invalid, or contains keys.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        try:
            self._fs, self._root = file_system(text)
        except StorageError as error:
            raise StorageError(f"--storage {error} Give a folder, or a URI such as s3://bucket/runs.") from error
        self.location = text.rstrip("/") if is_uri(text) else self._root
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        if self.is_local and Path(self._root).exists() and not Path(self._root).is_dir():
            raise StorageError(f"--storage {text}: that is a file. Give a folder; a missing folder is created.")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def path(self, relative: str) -> str:
        """The full path within the file system; on a local store it can be opened."""
        return posixpath.join(self._root, relative)

    def address(self, relative: str) -> str:
        """The address of a file for a reader or a command: a path on a local store, else a URI."""
        if self.is_local:
            return self.path(relative)
        folder, mark, options = self.location.partition("?")
        return f"{folder.rstrip('/')}/{relative}{mark}{options}"

    def make(self) -> None:
        """Make the folder, and write, read and delete a file in it, so that a problem shows before hours of work.

        Raises:
            StorageError: the folder cannot be used; the message says what to do.
        """
        name = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            system = self._fs if self.is_local else file_system(self.location, QUICK)[0]
            path = self.path(name)
            if self.is_local:
                Path(self._root).mkdir(parents=True, exist_ok=True)
            with system.open_output_stream(path) as stream:
                stream.write(_PROBE)
            with system.open_input_stream(path) as stream:
                found = stream.read()
            system.delete_file(path)
        except OSError as error:
            raise StorageError(f"--storage {shown(self.location)}: cannot be written. {told(error)}") from error
        if found != _PROBE:
            raise StorageError(f"--storage {shown(self.location)}: a file read back differs from what was written. Give another place.")

    def exists(self, relative: str) -> bool:
        with self._reaching("look at", relative):
            return bool(self._fs.get_file_info(self.path(relative)).type != pafs.FileType.NotFound)

    def names(self, relative: str) -> list[str]:
        """Sorted names of the files and folders in a folder; empty if there is no such folder. Takes one request on an object store."""
        with self._reaching("list", relative):
            found = self._fs.get_file_info(pafs.FileSelector(self.path(relative), allow_not_found=True))
            return sorted(info.base_name for info in found)

    def sizes(self, relative: str) -> dict[str, int]:
        """Name → size in bytes of the files directly in a folder; empty if there is no such folder."""
        with self._reaching("list", relative):
            found = self._fs.get_file_info(pafs.FileSelector(self.path(relative), allow_not_found=True))
        return {info.base_name: int(info.size) for info in found if info.type == pafs.FileType.File}

    def last_written(self, relative: str) -> datetime | None:
        """The time (UTC) of the last write to a file, or to any file in a folder and its subfolders; None if there is none."""
        with self._reaching("list", relative):
            found = [self._fs.get_file_info(self.path(relative))]
            if not found[0].is_file:
                found = self._fs.get_file_info(pafs.FileSelector(self.path(relative), recursive=True, allow_not_found=True))
        return max((info.mtime for info in found if info.type == pafs.FileType.File and info.mtime), default=None)

    def read(self, relative: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._reaching("read", relative), self._fs.open_input_stream(self.path(relative)) as stream:
            return bytes(stream.read())

    def write(self, relative: str, content: bytes) -> None:
        target = self.path(relative)
        with self._reaching("write", relative):
            if not self.is_local:  # an object store has no folders to make
                with self._fs.open_output_stream(target) as stream:
                    stream.write(content)
                return
            self._fs.create_dir(posixpath.dirname(target), recursive=True)
            beside = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with self._fs.open_output_stream(beside) as stream:
                    stream.write(content)
                self._fs.move(beside, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(beside)
                raise

    def move(self, source: str, target: str) -> None:
        """Move a file or a folder. An object store copies all files before it deletes any."""
        old, new = self.path(source), self.path(target)
        with self._reaching("move", source):
            if self.is_local:
                self._fs.create_dir(posixpath.dirname(new), recursive=True)
                self._fs.move(old, new)
            elif self._fs.get_file_info(old).is_file:
                self._fs.copy_file(old, new)
                self._fs.delete_file(old)
            else:
                for info in self._fs.get_file_info(pafs.FileSelector(old, recursive=True)):
                    if info.is_file:
                        self._fs.copy_file(info.path, posixpath.join(new, posixpath.relpath(info.path, old)))
                self._fs.delete_dir(old)

    def delete_folder(self, relative: str) -> None:
        if self.exists(relative):
            with self._reaching("delete", relative):
                self._fs.delete_dir(self.path(relative))

    def read_json(self, relative: str) -> Any:
        return json.loads(self.read(relative))

    def write_json(self, relative: str, value: Any) -> None:
        self.write(relative, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_table(self, relative: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet table, or some columns of it.

        It is read in this thread alone, because Arrow's own threads release Python's bytes after the call and abort a process that ends
        at that moment (apache/arrow#34314).
        """
        with pq.ParquetFile(pa.BufferReader(self.read(relative)), pre_buffer=False) as file:
            return file.read(columns=columns, use_threads=False)

    def write_table(self, relative: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(relative, sink.getvalue().to_pybytes())

    @contextlib.contextmanager
    def _reaching(self, what: str, relative: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot {what} {self.address(relative)}: {told(error)}") from error
