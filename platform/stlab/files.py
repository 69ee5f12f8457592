"""Files by path or URI, through the file systems of pyarrow: local, NFS, s3://, gs://. Remote files can be copied to this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from stlab.errors import StorageError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

PATIENT = 10
"""Attempts of a request to S3 that the server answers with 5xx or not at all. With pyarrow's growing pauses they take about 50 s."""
QUICK = 3
"""Attempts at the first contact, so that a wrong address is reported within seconds."""

# An S3 request counts as lost after this many seconds without a byte. The SDK's default of 3 s is too short for a busy store.
_SILENCE = 30.0
_CONNECT = 10.0

_SECRET = re.compile(r"passw|pwd|secret|token|credential|api_?key|access_?key|signature", re.IGNORECASE)
_SECRET_INSIDE = re.compile(rf"({_SECRET.pattern})\w*\s*=", re.IGNORECASE)  # inside a value: odbc_connect=…;PWD=…
_USER_AND_WORD = re.compile(r"([^:/?#]+://[^:/?#@]*:)(.*)@", re.DOTALL)
_URI = re.compile(r"[A-Za-z][\w+.-]*://\S+")
_WITH_PORTS = ("http", "https", "hdfs", "abfs", "abfss")  # an @ after the port belongs to the path in these schemes
_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them into ~/.aws/credentials."

# The reason and the remedy for an error of a file system, by a word of its text or by its number.
_REMEDIES: tuple[tuple[str, str], ...] = (
    ("NO_SUCH_BUCKET", "There is no such bucket. Make it first, or correct the URI."),
    ("NoSuchBucket", "There is no such bucket. Make it first, or correct the URI."),
    ("ACCESS_DENIED", f"These credentials may not do that. {_KEYS}"),
    ("HTTP status 403", f"These credentials may not do that. {_KEYS}"),
    ("HTTP response code 403", f"These credentials may not do that. {_KEYS}"),
    ("INVALID_ACCESS_KEY_ID", f"The store does not know these credentials. {_KEYS}"),
    ("INVALID_CLIENT_TOKEN_ID", f"The store does not know these credentials. {_KEYS}"),
    ("SIGNATURE_DOES_NOT_MATCH", f"The secret key is not that of the access key. {_KEYS}"),
    ("NETWORK_CONNECTION", "No store answers there. Is its address right (AWS_ENDPOINT_URL), and is it up?"),
)
_NUMBERS = {
    errno.ENOSPC: "The disk is full. Free space there; what is written stays, and the same command goes on from it.",
    errno.EDQUOT: "The quota is used up. Free space there; what is written stays, and the same command goes on from it.",
    errno.ENOENT: "Give another folder, or create its parent.",
    errno.EROFS: "It is read-only. Give another folder, or make it writable.",
    errno.EACCES: "No permission. Give another folder, or change its mode.",
    errno.EPERM: "It is not allowed. Give another folder, or change its mode.",
    errno.ESTALE: "The shared folder is not available any more. Mount it again; the same command goes on.",
    errno.EIO: "The disk does not work properly. Check it, or give another folder.",
}


def is_uri(path: str) -> bool:
    return "://" in path


def shown(uri: str) -> str:
    """A URI for display: all passwords and keys in it become three asterisks."""
    if not is_uri(uri):
        return uri
    parts = _split(uri)
    user, at, host = parts.netloc.rpartition("@")
    if at and ":" in user:
        user = f"{user.partition(':')[0]}:***"
    elif at and parts.scheme == "s3":
        user = "***"
    query = parts.query
    if _SECRET.search(query):
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, "***" if _is_secret(name, value) else value) for name, value in pairs], safe="*/:")
    masked = parts._replace(netloc=f"{user}{at}{host}", query=query)
    return uri if masked == parts else urlunsplit(masked)  # urlunsplit would drop two slashes of sqlite:////


def secrets_of(uri: str) -> list[str]:
    """The passwords and keys in a URI, as they are written and without percent-encoding."""
    parts = _split(uri)
    user, _, word = parts.netloc.rpartition("@")[0].partition(":")
    found = [word] if word else [user] if user and parts.scheme == "s3" else []
    found += [value for name, value in parse_qsl(parts.query) if _is_secret(name, value)]
    return [secret for value in found for secret in dict.fromkeys((value, unquote(value))) if secret]


def holds_secret(text: str) -> bool:
    """Whether a text is or contains a URI with a password or a key."""
    return any(secrets_of(uri) for uri in (text.strip("'\" "), *_URI.findall(text)) if is_uri(uri))


def _is_secret(name: str, value: str) -> bool:
    """Whether a pair in the query of a URI is secret."""
    return bool(_SECRET.search(name) or _SECRET_INSIDE.search(value))


def _split(uri: str) -> SplitResult:
    """The parts of a URI. A password may contain ``/``, ``?``, ``#`` and brackets unescaped, since SQLAlchemy ends it at the ``@``."""
    found = _USER_AND_WORD.match(uri)
    try:
        parts = urlsplit(uri)
        port = parts.netloc.rpartition(":")[2]
        is_meant = "@" in parts.netloc or (port.isdigit() and parts.scheme in _WITH_PORTS)
    except ValueError:  # urlsplit takes a bracket for the beginning of an IPv6 address
        is_meant = False
    if found and not is_meant:
        return urlsplit(f"{found[1]}{quote(found[2], safe='')}@{uri[found.end() :]}")
    return urlsplit(uri)


def file_system(location: str, attempts: int = PATIENT) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path within it.

    Args:
        attempts: the number of attempts of a request to S3 before it counts as failed.

    Raises:
        StorageError: the URI is invalid, or it holds keys.
    """
    import pyarrow as pa
    import pyarrow.fs as pafs

    if not is_uri(location):
        return pafs.LocalFileSystem(), str(Path(location).expanduser().resolve())
    parts = urlsplit(location)
    user = parts.netloc.rpartition("@")[0]
    if user and (parts.scheme == "s3" or ":" in user):
        raise StorageError(
            f"{shown(location)}: keys do not belong in a URI, which ends up in shell histories, process lists and logs. {_KEYS}"
        )
    try:
        found, path = pafs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StorageError(f"{shown(location)}: {told(error).replace(location, shown(location))}") from error
    if isinstance(found, pafs.S3FileSystem):
        _, (options,) = found.__reduce__()  # the options of the URI and the environment; those below cannot be given there
        found = pafs.S3FileSystem(
            **options
            | {
                "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
                "request_timeout": _SILENCE,
                "connect_timeout": _CONNECT,
                "allow_delayed_open": True,  # one request per small object instead of three
            }
        )
    return found, path.rstrip("/")


def told(error: BaseException) -> str:
    """The reason for an error of a file system and its remedy, for the user who gave the path."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    number = getattr(error, "errno", None)
    if number in _NUMBERS:
        return f"{os.strerror(number)}. {_NUMBERS[number]}"
    remedy = next((remedy for word, remedy in _REMEDIES if word in text), "")
    return f"{text.rstrip('. ')}. {remedy}".rstrip()


def local_copy(uri: str, *, folders: bool = True) -> Path:
    """A local copy of a remote file, with the same name. The file is copied on first use, and again when it has changed.

    The copies are in ``$XDG_CACHE_HOME/stlab`` (``~/.cache/stlab``). They can be deleted when the process has ended.

    Args:
        folders: whether a folder is copied as well, with its whole content.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder, and ``folders`` is False.
        StorageError: the URI is invalid, or the store refuses.
    """
    import pyarrow.fs as pafs

    system, path = file_system(uri)
    try:
        info = system.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "no such file", shown(uri))
        if info.is_file:
            files = [info]
        elif folders:
            files = [found for found in system.get_file_info(pafs.FileSelector(path, recursive=True)) if found.is_file]
        else:
            raise IsADirectoryError(errno.EISDIR, "a folder", shown(uri))
        marks = sorted((found.path, found.size, found.mtime_ns) for found in files)
        place = _cache() / hashlib.sha256(repr((uri.partition("?")[0], marks)).encode()).hexdigest()[:24]
        if not place.exists():
            _fetch(system, path, [found.path for found in files], place)
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise StorageError(f"{shown(uri)}: cannot be read. {told(error)}") from error
    return place / posixpath.basename(path)


def _fetch(system: pafs.FileSystem, path: str, files: list[str], place: Path) -> None:
    """Copy into a temporary folder beside ``place`` and rename it, so that no partial copy is ever visible."""
    import pyarrow.fs as pafs

    beside = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name in files:
            target = beside / posixpath.basename(path) / posixpath.relpath(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(name, str(target), source_filesystem=system, destination_filesystem=pafs.LocalFileSystem())
        try:
            beside.rename(place)
        except OSError:
            if not place.exists():  # if it does, another process has made the same copy
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stlab"
