"""Files and folders by their path or URL: what is there, how large it is, and its bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from runspan.sources.chunks import CHUNK
from runspan.sources.objects import Objects, is_url, join

SUFFIXES: Final = tuple(f".{name}{packed}" for packed in ("", ".gz", ".zst") for name in ("json", "ndjson", "jsonl"))
"""The names that are taken from a folder. A file that is named itself may be called anything."""


def sizes(path: str) -> dict[str, int | None] | None:
    """The files directly in a folder by name, with their sizes; None when path is no folder. OSError otherwise.

    A link to nothing is among them, so that it is told and not passed over.
    """
    if is_url(path):
        return Objects(path).sizes(path)
    if not os.path.isdir(path):
        return None
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))]
        return {entry.name: entry.stat(follow_symlinks=entry.is_file()).st_size for entry in found}


def folders(path: str) -> list[str]:
    """The names of the folders directly in a folder, sorted."""
    if is_url(path):
        return Objects(path).folders(path)
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def inside(folder: str, name: str) -> str:
    """The path or URL of a name in a folder."""
    return join(folder, name) if is_url(folder) else os.path.join(folder, name)


def is_document_name(name: str) -> bool:
    """Whether a folder's file of this name is taken."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def require_file(path: str) -> None:
    """OSError unless the file can be opened."""
    if is_url(path):
        Objects(path).size(path)
    elif not os.access(path, os.R_OK):
        os.stat(path)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def size_of(url: str) -> int | None:
    """The bytes of a file behind a URL, as they are stored."""
    return Objects(url).size(url)


def chunks(path: str, on_bytes: Callable[[int], object] | None = None) -> Iterator[bytes]:
    """The bytes of a file. on_bytes: called with the number of those just read."""
    if is_url(path):
        with Objects(path).open(path) as file:
            yield from reported(file.read, on_bytes)
        return
    with open(path, "rb", buffering=0) as file:
        yield from reported(file.read, on_bytes)


def reported(read: Callable[[int], bytes | None], on_bytes: Callable[[int], object] | None) -> Iterator[bytes]:
    """What a reader gives until its end."""
    while chunk := read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def whole(path: str) -> bytes:
    """All of a small file."""
    return b"".join(chunks(path))
