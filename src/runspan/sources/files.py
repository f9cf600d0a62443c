"""Read the run documents of files, folders, archives and standard input, and report what cannot be read."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Final, cast

from runspan.errors import ConfigError, DocumentError
from runspan.model.document import Run
from runspan.sources import filesystem
from runspan.sources.archive import (
    MANIFEST,
    PART_PREFIX,
    PART_SUFFIXES,
    ArchivePart,
    Manifest,
    archives_in,
    manifest_of,
    verified_runs,
)
from runspan.sources.splitter import RawDocument, split

STDIN: Final = "-"
_PART_SUFFIXES: Final = tuple(PART_SUFFIXES.values())


@dataclass(frozen=True, slots=True)
class _File:
    """A file to read."""

    path: str
    size: int | None = None
    """As it is stored; None when it is unknown."""
    manifest: Manifest | None = None
    """Of the archive that it is a part of."""
    part: ArchivePart | None = None


def documents(path: str, *, on_bytes: Callable[[int], object] | None = None) -> Iterator[Run | DocumentError]:
    """Yield the runs of a file, of the files of a folder, of an archive, or of standard input when ``path`` is ``-``.

    ``path`` may be a URL that fsspec knows. A document that cannot be read, or is larger than ``MAX_DOCUMENT``, is
    yielded as an error in its place. Each document of an archive is verified against its manifest. ``on_bytes`` is
    called with the number of stored bytes that were just read; they add up to ``total_bytes``.

    Raise ConfigError at once when there is nothing to read at the path, and DocumentError when a manifest is damaged.
    """
    return map(parse, pieces(path, on_bytes=on_bytes))


def parse(piece: RawDocument) -> Run | DocumentError:
    """Return the run of a piece, or its error."""
    if piece.error is not None:
        return piece.error
    try:
        return Run.from_json(piece.data, where=piece.where)
    except DocumentError as error:
        return error


def pieces(path: str, *, on_bytes: Callable[[int], object] | None = None) -> Iterator[RawDocument]:
    """Yield the unparsed documents, for callers that need the offset at which each one ends. See ``documents``."""
    found = _files(path)
    return (piece for file in found for piece in _pieces_of(file, on_bytes))


def tenants(path: str) -> set[str]:
    """Return the tenants of the archives at a path; empty when there is none."""
    return {file.manifest.tenant for file in _files(path) if file.manifest is not None}


def total_bytes(path: str) -> int | None:
    """Return how many bytes there are to read, as they are stored; None when that is unknown, as for a pipe."""
    sizes = [_size(file) for file in _files(path)]
    return None if None in sizes else sum(filter(None, sizes))


def _size(file: _File) -> int | None:
    if file.size is not None:
        return file.size
    try:
        if filesystem.is_url(file.path):
            return filesystem.ObjectPath(file.path).size()
        status = os.fstat(_stdin().fileno()) if file.path == STDIN else os.stat(file.path)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _files(path: str) -> list[_File]:
    if path == STDIN:
        return [_File(path)]
    try:
        found = filesystem.list_files(path)
        if found is None:
            filesystem.require_file(path)
            return _part_of_archive(path) or [_File(path)]
        manifest = manifest_of(path)
        if manifest is not None:
            return _parts(path, manifest)
        names = sorted(filter(filesystem.is_document_name, found))
        if not names and (archives := archives_in(path)):
            return [file for archive in archives for file in _files(archive)]
    except (OSError, ValueError) as error:
        raise ConfigError(
            where=filesystem.display_path(path),
            expected="a file or folder that can be read",
            got=_reason(error),
            hint="check the path; - reads standard input",
        ) from None
    if not names:
        raise ConfigError(
            where=filesystem.display_path(path),
            expected=f"files named *{', *'.join(filesystem.SUFFIXES[:3])}, or *.gz or *.zst of them",
            got="a folder without any",
            hint="name files with other suffixes one by one; folders in the folder are not searched",
        )
    return [_File(filesystem.path_inside(path, name), found[name]) for name in names]


def _part_of_archive(path: str) -> list[_File]:
    """Return a single file of an archive with its entry in the manifest; nothing for any other file."""
    folder, name = os.path.split(path)
    if not (name.startswith(PART_PREFIX) and name.endswith(_PART_SUFFIXES)) or MANIFEST not in (
        filesystem.list_files(folder or os.curdir) or ()
    ):
        return []
    manifest = manifest_of(folder or os.curdir)
    return [] if manifest is None else [file for file in _parts(folder, manifest) if file.path == path]


def _parts(folder: str, manifest: Manifest) -> list[_File]:
    return [_File(filesystem.path_inside(folder, part.name), part.bytes, manifest, part) for part in manifest.files]


def _pieces_of(file: _File, on_bytes: Callable[[int], object] | None) -> Iterator[RawDocument]:
    """Yield the pieces of one file. If it cannot be read to its end, the last piece is the error."""
    if file.part is not None:
        yield from verified_runs(os.path.dirname(file.path), file.part, on_bytes=on_bytes)
        return
    name = "stdin" if file.path == STDIN else filesystem.display_path(file.path)
    # read1 returns what is there, instead of waiting for a full chunk.
    read = (
        filesystem.with_progress(_stdin().read1, on_bytes)
        if file.path == STDIN
        else filesystem.chunks(file.path, on_bytes)
    )
    end_offset = 0
    try:
        for piece in split(filesystem.decompress(read, name=name), name=name):
            end_offset = piece.end_offset
            yield piece
    except DocumentError as error:
        yield RawDocument(b"", name, end_offset, error)
    except OSError as error:
        hint = "documents after this place were not read" if end_offset else "check the file and its permissions"
        unreadable = DocumentError(where=name, expected="a file that can be read", got=_reason(error), hint=hint)
        unreadable.__cause__ = error
        yield RawDocument(b"", name, end_offset, unreadable)


def _stdin() -> BufferedReader:
    if sys.stdin is None:
        raise ConfigError(where=STDIN, expected="standard input", got="none", hint="name a file instead")
    return cast("BufferedReader", sys.stdin.buffer)


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
