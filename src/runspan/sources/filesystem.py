"""Read files by path, or by a URL such as ``s3://bucket/prefix/`` through fsspec: folders, bytes, and decompression.

fsspec is an optional extra.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import zstandard

from runspan.errors import ConfigError, DocumentError
from runspan.http.urls import redact_url

SUFFIXES: Final = tuple(f".{name}{packed}" for packed in ("", ".gz", ".zst") for name in ("json", "ndjson", "jsonl"))
"""The suffixes of the files that are read of a folder. A file that is named itself may have any name."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_EXTRA: Final = "pip install 'runspan[objects]'"
_ENVIRONMENT: Final = "credentials come from the environment that fsspec reads, such as AWS_PROFILE, or its own files"

SYMLINK_OUT: Final = "a symbolic link out of the folder, which --follow-symlinks follows"
"""Why something in a folder is not read."""

CHUNK: Final = 64 << 10
"""Bytes that are read or decompressed at a time: much more than a line, and so few that malloc has the memory at hand,
where it would get more from the system, page by page."""

_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_GZIP_SLICE: Final = 1024
"""Compressed bytes that are decompressed at once, which become 1 MiB at most."""

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""Bytes 2 to 4 of a skippable frame, with which pzstd begins its files."""

_ZSTD_SLICE: Final = 512
"""Compressed bytes that are decompressed at once. Four bytes can become a block of 128 KiB, so a file that was made to
fill the memory gets 16 MiB of it."""

_FOREIGN: Final = {
    b"\xfd7zXZ": ("xz data", "unpack it: xz -dc FILE | runspan export -"),
    b"BZh": ("bzip2 data", "unpack it: bzip2 -dc FILE | runspan export -"),
    b"PK\x03\x04": ("a zip archive", "unpack it: unzip -p FILE | runspan export -"),
}


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
        return ObjectPath(path).sizes()
    if not os.path.isdir(path):
        return None
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))]
        return {entry.name: entry.stat(follow_symlinks=entry.is_file()).st_size for entry in found}


def leads_out(folder: str, name: str) -> bool:
    """Return whether a name in a folder is a symbolic link to a place outside of it."""
    local: str | None = ObjectPath(folder).local_path if is_url(folder) else folder
    if local is None or not os.path.islink(path := os.path.join(local, name)):
        return False
    root = os.path.join(os.path.realpath(local), "")
    return not os.path.join(os.path.realpath(path), "").startswith(root)


def folders(path: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted."""
    if is_url(path):
        return ObjectPath(path).folders()
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def require_file(path: str) -> None:
    """Raise OSError unless the file can be opened."""
    if is_url(path):
        ObjectPath(path).size()
    elif not os.access(path, os.R_OK):
        os.stat(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def chunks(path: str, on_bytes: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file. ``on_bytes``: called with the number of bytes that were just read."""
    with ObjectPath(path).open() if is_url(path) else open(path, "rb", buffering=0) as file:
        yield from with_progress(file.read, on_bytes)


def with_progress(read: Callable[[int], bytes | None], on_bytes: Callable[[int], object] | None) -> Iterator[bytes]:
    """Yield what a reader returns, until its end."""
    while chunk := read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def read_all(path: str, limit: int) -> bytes:
    """Return the bytes of a small file. OSError if it is larger than ``limit`` bytes."""
    found, size = [], 0
    for chunk in chunks(path):
        found.append(chunk)
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
    return b"".join(found)


def decompress(chunks: Iterable[bytes], *, name: str) -> Iterator[bytes]:
    """Yield the chunks as they are, or decompressed when they begin like gzip or zstd."""
    stream = iter(chunks)
    first = b""
    for chunk in stream:
        first += chunk
        if len(first) >= max(map(len, _FOREIGN)):
            break
    content = chain((first,), stream)
    if first.startswith(_GZIP):
        yield from _decompress(content, name, "gzip", partial(zlib.decompressobj, _GZIP_WINDOW), _GZIP_SLICE)
        return
    if first.startswith(_ZSTD) or first[1:4] == _ZSTD_SKIPPABLE:
        yield from _decompress(content, name, "zstd", zstandard.ZstdDecompressor().decompressobj, _ZSTD_SLICE)
        return
    for magic, (got, hint) in _FOREIGN.items():
        if first.startswith(magic):
            raise DocumentError(where=name, expected="JSON text, plain, gzip or zstd", got=got, hint=hint)
    yield from content


def _decompress(
    chunks: Iterable[bytes], name: str, kind: str, new_frame: Callable[[], Any], slice_bytes: int
) -> Iterator[bytes]:
    """Yield the content of every frame of a zstd file, or member of a gzip file, where zero bytes are padding.

    This uses zlib and not isal, which is faster but cannot be copied: after an error the copy returns what the failed
    call had already decompressed.
    """
    is_gzip = kind == "gzip"
    frame = None
    read = 0
    for chunk in chunks:
        at, parts, size = 0, [], 0
        while at < len(chunk):
            if frame is None and is_gzip and not chunk[at]:
                at = len(chunk) - len(chunk[at:].lstrip(b"\0"))
                continue
            frame = frame or new_frame()
            piece = chunk[at : at + slice_bytes]
            before = frame.copy() if is_gzip else None
            try:
                parts.append(frame.decompress(piece))
            except (zlib.error, zstandard.ZstdError) as error:
                data, index = (b"", 0) if before is None else _recover_prefix(before, piece)
                yield b"".join((*parts, data))
                got = str(error).removeprefix("zstd decompressor error: ")
                raise _damaged(f"{name} compressed byte {read + at + index}", got, kind) from None
            at += len(piece)
            if frame.eof:
                at -= len(frame.unused_data)
                frame = None
            size += len(parts[-1])
            if size >= CHUNK:
                yield b"".join(parts)
                parts, size = [], 0
        yield b"".join(parts)
        read += len(chunk)
    if frame is not None:
        raise _damaged(f"{name} compressed byte {read}", "the end of the file inside the data", kind)


def _recover_prefix(member: zlib._Decompress, chunk: bytes) -> tuple[bytes, int]:
    """Return what can be decompressed before the byte that fails, and the index of that byte."""
    parts = []
    for index in range(len(chunk)):
        try:
            parts.append(member.decompress(chunk[index : index + 1]))
        except zlib.error:
            return b"".join(parts), index
    return b"".join(parts), len(chunk)


def _damaged(where: str, got: str, kind: str) -> DocumentError:
    return DocumentError(
        where=where,
        expected=f"complete {kind} data",
        got=got,
        hint="documents after this place are missing: fetch or pack the file again",
    )


class ObjectPath:
    """A file or folder of an object store. Every method raises OSError for whatever goes wrong there."""

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
            self._files: Any
            self._files, self._path = fsspec.core.url_to_fs(url)
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

    @property
    def local_path(self) -> str | None:
        """The path, if it is on a disk of this machine."""
        protocols = self._files.protocol
        return self._path if "file" in ((protocols,) if isinstance(protocols, str) else protocols) else None

    def sizes(self) -> dict[str, int | None] | None:
        """Return the files directly in the folder by name, with their sizes, or None when it is no folder."""
        entries = self._entries()
        if entries is None:
            return None
        found = {_name(entry): entry.get("size") for entry in entries if self._is(entry, "file", "isfile")}
        found.pop("", None)  # the marker of an empty folder
        return found

    def folders(self) -> list[str]:
        """Return the names of the folders directly in the folder."""
        return sorted(_name(entry) for entry in self._entries() or () if self._is(entry, "directory", "isdir"))

    def _is(self, entry: dict[str, Any], kind: str, method: str) -> bool:
        """Return whether an entry of a folder, or what it links to, is of a kind."""
        if entry["type"] not in ("link", "other"):
            return bool(entry["type"] == kind)
        with _translate_errors():
            if entry.get("islink") and not self._files.exists(entry["name"]):
                return kind == "file"  # so that it is reported
            return bool(getattr(self._files, method)(entry["name"]))

    def size(self) -> int | None:
        """Return the size of the file as it is stored, or None when it is unknown."""
        with _translate_errors():
            size: int | None = self._files.info(self._path).get("size")
            return size

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file to read. What goes wrong while it is read is an OSError as well."""
        with _translate_errors():
            file: BinaryIO = self._files.open(self._path, "rb")
        with file, _translate_errors():
            yield file

    def write(self, content: bytes) -> None:
        """Write the file, or replace it. No reader sees a part of it."""
        with _translate_errors():
            self._files.makedirs(self._path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(self._path, content)

    def remove(self) -> None:
        """Delete the file if it exists."""
        with _translate_errors():
            if self._files.exists(self._path):
                self._files.rm_file(self._path)

    def _entries(self) -> list[dict[str, Any]] | None:
        with _translate_errors():
            self._files.invalidate_cache()
            return self._files.ls(self._path, detail=True) if self._files.isdir(self._path) else None


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
