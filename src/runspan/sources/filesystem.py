"""Places named by URL, such as ``s3://bucket/prefix/``: read and written through fsspec, which is an optional extra.

Files and folders by their path or URL: what is there, how large it is, and its bytes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from runspan.errors import ConfigError
from runspan.http.urls import redact_url
from runspan.sources.decompress import CHUNK

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_EXTRA: Final = "pip install 'runspan[objects]'"
_ENVIRONMENT: Final = "credentials come from the environment that fsspec reads, such as AWS_PROFILE, or its own files"


def is_url(path: str) -> bool:
    """Whether a path means a place behind fsspec."""
    return bool(_URL.match(path))


def display_path(url: str) -> str:
    """A place as others may see it: see ``shown_url``; a path is shown as it is."""
    return redact_url(url) if is_url(url) else url


def join(folder: str, name: str) -> str:
    """The URL of a name in a folder."""
    return f"{folder.rstrip('/')}/{name}"


class ObjectStore:
    """The file system of a URL. Every method takes URLs of it, and raises OSError for whatever goes wrong there.

    ConfigError at once when a package that it needs is not installed, or when a secret stands in the URL.
    """

    def __init__(self, url: str) -> None:
        if urlsplit(url).password:
            raise ConfigError(
                "a command line is no place for a password",
                where=display_path(url),
                hint=f"leave it away: {_ENVIRONMENT}",
            )
        try:
            fsspec: Any = import_module("fsspec")
        except ImportError:
            raise ConfigError(
                where=display_path(url), expected="fsspec, which reads such URLs", got="no such package", hint=_EXTRA
            ) from None
        try:
            self._files: Any = fsspec.core.url_to_fs(url)[0]
            self._split: Callable[[str], tuple[Any, str]] = fsspec.core.url_to_fs
        except ImportError as error:
            raise ConfigError(
                where=display_path(url),
                expected="the package for this kind of URL",
                got=str(error),
                hint=_package(error),
            ) from None
        except ValueError as error:
            known = "one that fsspec knows, such as s3://, gs://, abfs://, file://"
            raise ConfigError(where=display_path(url), expected=known, got=str(error)) from None
        except Exception as error:  # each of these packages has a tree of errors of its own
            raise ConfigError(
                where=display_path(url), expected="a place that can be reached", got=_words(error), hint=_ENVIRONMENT
            ) from None

    def sizes(self, folder: str) -> dict[str, int | None] | None:
        """The files directly in a folder by name, with their sizes; None when it is no folder."""
        path = self._path(folder)
        with _as_os_error():
            self._files.invalidate_cache()
            if not self._files.isdir(path):
                return None
            entries = self._files.ls(path, detail=True)
        found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}
        found.pop("", None)  # the marker of an empty folder
        return {name: entry.get("size") for name, entry in found.items()}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder."""
        path = self._path(folder)
        with _as_os_error():
            self._files.invalidate_cache()
            entries = self._files.ls(path, detail=True) if self._files.isdir(path) else []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")

    def size(self, url: str) -> int | None:
        """The bytes of a file, as they are stored; None when that is unknown."""
        with _as_os_error():
            size: int | None = self._files.info(self._path(url)).get("size")
            return size

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        """A file, to read. What goes wrong while it is read is an OSError as well."""
        with _as_os_error():
            file: BinaryIO = self._files.open(self._path(url), "rb")
        with file, _as_os_error():
            yield file

    def write(self, url: str, content: bytes) -> None:
        """Puts a whole file there, in place of the one that may be there. It shows only when it is whole."""
        path = self._path(url)
        with _as_os_error():
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

    def remove(self, url: str) -> None:
        """Deletes a file; one that is not there is no error."""
        path = self._path(url)
        with _as_os_error():
            if self._files.exists(path):
                self._files.rm_file(path)

    def _path(self, url: str) -> str:
        return self._split(url)[1]


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:  # each of these packages has a tree of errors of its own
        raise OSError(_words(error)) from None


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _package(error: ImportError) -> str:
    """What to install: fsspec's words name the package."""
    named = re.search(r"[Ii]nstall ([a-z0-9_-]+)", str(error))
    return f"pip install {named[1]}" if named else _EXTRA


SUFFIXES: Final = tuple(f".{name}{packed}" for packed in ("", ".gz", ".zst") for name in ("json", "ndjson", "jsonl"))
"""The names that are taken from a folder. A file that is named itself may be called anything."""


def list_files(path: str) -> dict[str, int | None] | None:
    """The files directly in a folder by name, with their sizes; None when path is no folder. OSError otherwise.

    A link to nothing is among them, so that it is told and not passed over.
    """
    if is_url(path):
        return ObjectStore(path).sizes(path)
    if not os.path.isdir(path):
        return None
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))]
        return {entry.name: entry.stat(follow_symlinks=entry.is_file()).st_size for entry in found}


def folders(path: str) -> list[str]:
    """The names of the folders directly in a folder, sorted."""
    if is_url(path):
        return ObjectStore(path).folders(path)
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def path_inside(folder: str, name: str) -> str:
    """The path or URL of a name in a folder."""
    return join(folder, name) if is_url(folder) else os.path.join(folder, name)


def is_document_name(name: str) -> bool:
    """Whether a folder's file of this name is taken."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def require_file(path: str) -> None:
    """OSError unless the file can be opened."""
    if is_url(path):
        ObjectStore(path).size(path)
    elif not os.access(path, os.R_OK):
        os.stat(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def size_of(url: str) -> int | None:
    """The bytes of a file behind a URL, as they are stored."""
    return ObjectStore(url).size(url)


def chunks(path: str, on_bytes: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """The bytes of a file. on_bytes: called with the number of those just read."""
    if is_url(path):
        with ObjectStore(path).open(path) as file:
            yield from with_progress(file.read, on_bytes)
        return
    with open(path, "rb", buffering=0) as file:
        yield from with_progress(file.read, on_bytes)


def with_progress(read: Callable[[int], bytes | None], on_bytes: Callable[[int], object] | None) -> Iterator[bytes]:
    """What a reader gives until its end."""
    while chunk := read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def read_all(path: str) -> bytes:
    """All of a small file."""
    return b"".join(chunks(path))
