"""Files and folders by path, or by a URL such as ``s3://bucket/prefix/`` through fsspec, which is an optional extra."""

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

SUFFIXES: Final = tuple(f".{name}{packed}" for packed in ("", ".gz", ".zst") for name in ("json", "ndjson", "jsonl"))
"""The suffixes of the files that are read of a folder. A file that is named itself may have any name."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_EXTRA: Final = "pip install 'runspan[objects]'"
_ENVIRONMENT: Final = "credentials come from the environment that fsspec reads, such as AWS_PROFILE, or its own files"


def is_url(path: str) -> bool:
    """Return whether a path is a URL for fsspec."""
    return bool(_URL.match(path))


def display_path(path: str) -> str:
    """Return a path or URL without its secrets; see ``redact_url``."""
    return redact_url(path) if is_url(path) else path


def path_inside(folder: str, name: str) -> str:
    """Return the path or URL of a name in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def is_document_name(name: str) -> bool:
    """Return whether a folder's file of this name is read."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def list_files(path: str) -> dict[str, int | None] | None:
    """Return the files directly in a folder by name, with their sizes, or None when the path is no folder.

    A broken symbolic link is among them, so that it is reported and not skipped. Raise OSError if it cannot be listed.
    """
    if is_url(path):
        return ObjectStore(path).sizes(path)
    if not os.path.isdir(path):
        return None
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))]
        return {entry.name: entry.stat(follow_symlinks=entry.is_file()).st_size for entry in found}


def folders(path: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted."""
    if is_url(path):
        return ObjectStore(path).folders(path)
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def require_file(path: str) -> None:
    """Raise OSError unless the file can be opened."""
    if is_url(path):
        ObjectStore(path).size(path)
    elif not os.access(path, os.R_OK):
        os.stat(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def chunks(path: str, on_bytes: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file. ``on_bytes``: called with the number of bytes that were just read."""
    if is_url(path):
        with ObjectStore(path).open(path) as file:
            yield from with_progress(file.read, on_bytes)
        return
    with open(path, "rb", buffering=0) as file:
        yield from with_progress(file.read, on_bytes)


def with_progress(read: Callable[[int], bytes | None], on_bytes: Callable[[int], object] | None) -> Iterator[bytes]:
    """Yield what a reader returns, until its end."""
    while chunk := read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def read_all(path: str) -> bytes:
    """Return the bytes of a small file."""
    return b"".join(chunks(path))


class ObjectStore:
    """The file system of a URL. Every method takes URLs of it, and raises OSError for whatever goes wrong there."""

    def __init__(self, url: str) -> None:
        """Raise ConfigError when a required package is not installed, or when the URL contains a password."""
        name = display_path(url)
        if urlsplit(url).password:
            raise ConfigError(
                "a command line is no place for a password", where=name, hint=f"leave it out: {_ENVIRONMENT}"
            )
        try:
            fsspec: Any = import_module("fsspec")
        except ImportError:
            expected = "fsspec, which reads such URLs"
            raise ConfigError(where=name, expected=expected, got="no such package", hint=_EXTRA) from None
        try:
            self._files: Any = fsspec.core.url_to_fs(url)[0]
            self._split: Callable[[str], tuple[Any, str]] = fsspec.core.url_to_fs
        except ImportError as error:
            package = re.search(r"[Ii]nstall ([a-z0-9_-]+)", str(error))  # fsspec's words name it
            hint = f"pip install {package[1]}" if package else _EXTRA
            expected = "the package for this kind of URL"
            raise ConfigError(where=name, expected=expected, got=str(error), hint=hint) from None
        except ValueError as error:
            expected = "one that fsspec knows, such as s3://, gs://, abfs://, file://"
            raise ConfigError(where=name, expected=expected, got=str(error)) from None
        except Exception as error:  # each of these packages has a tree of errors of its own
            expected = "a place that can be reached"
            raise ConfigError(where=name, expected=expected, got=_one_line(error), hint=_ENVIRONMENT) from None

    def sizes(self, folder: str) -> dict[str, int | None] | None:
        """Return the files directly in a folder by name, with their sizes, or None when it is no folder."""
        path = self._path(folder)
        with _translate_errors():
            self._files.invalidate_cache()
            if not self._files.isdir(path):
                return None
            entries = self._files.ls(path, detail=True)
        found = {_name(entry): entry.get("size") for entry in entries if entry["type"] == "file"}
        found.pop("", None)  # the marker of an empty folder
        return found

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder."""
        path = self._path(folder)
        with _translate_errors():
            self._files.invalidate_cache()
            entries = self._files.ls(path, detail=True) if self._files.isdir(path) else []
        return sorted(_name(entry) for entry in entries if entry["type"] == "directory")

    def size(self, url: str) -> int | None:
        """Return the size of a file as it is stored, or None when it is unknown."""
        with _translate_errors():
            size: int | None = self._files.info(self._path(url)).get("size")
            return size

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        """Open a file to read. What goes wrong while it is read is an OSError as well."""
        with _translate_errors():
            file: BinaryIO = self._files.open(self._path(url), "rb")
        with file, _translate_errors():
            yield file

    def write(self, url: str, content: bytes) -> None:
        """Write a file, or replace it. No reader sees a part of it."""
        path = self._path(url)
        with _translate_errors():
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, content)

    def remove(self, url: str) -> None:
        """Delete a file if it exists."""
        path = self._path(url)
        with _translate_errors():
            if self._files.exists(path):
                self._files.rm_file(path)

    def _path(self, url: str) -> str:
        return self._split(url)[1]


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:  # each of these packages has a tree of errors of its own
        raise OSError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]
