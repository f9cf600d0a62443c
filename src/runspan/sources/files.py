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
    ignore,
    manifest_of,
    verified_runs,
)
from runspan.sources.splitter import RawDocument, RawLines, flatten, split_lines

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
    follow_symlinks: bool = False
    """Whether it may be a symbolic link out of the archive."""


def documents(
    path: str,
    *,
    follow_symlinks: bool = False,
    on_bytes: Callable[[int], object] | None = None,
    on_skipped: Callable[[str], object] = ignore,
) -> Iterator[Run | DocumentError]:
    """Yield the runs of a file, of the files of a folder, of an archive, or of standard input when ``path`` is ``-``.

    ``path`` may be a URL that fsspec knows. A document that cannot be read, or is larger than ``MAX_DOCUMENT``, is
    yielded as an error in its place. Each document of an archive is verified against its manifest. ``on_bytes`` is
    called with the number of stored bytes that were just read; they add up to ``total_bytes``.

    A symbolic link out of a folder is skipped unless ``follow_symlinks`` is set; ``on_skipped`` is called with its
    path. A link out of an archive is an error. A file that is named itself may be a link.

    Raise ConfigError at once when there is nothing to read at the path, and DocumentError when a manifest is damaged.
    """
    found = pieces(path, follow_symlinks=follow_symlinks, on_bytes=on_bytes, on_skipped=on_skipped)
    return map(parse, found)


def parse(piece: RawDocument) -> Run | DocumentError:
    """Return the run of a piece, or its error."""
    if piece.error is not None:
        return piece.error
    try:
        return Run.from_json(piece.data, where=piece.where)
    except DocumentError as error:
        return error


def pieces(
    path: str,
    *,
    follow_symlinks: bool = False,
    on_bytes: Callable[[int], object] | None = None,
    on_skipped: Callable[[str], object] = ignore,
) -> Iterator[RawDocument]:
    """Yield the unparsed documents, for callers that need the offset at which each one ends. See ``documents``."""
    return flatten(lines(path, follow_symlinks=follow_symlinks, on_bytes=on_bytes, on_skipped=on_skipped))


def lines(
    path: str,
    *,
    follow_symlinks: bool = False,
    on_bytes: Callable[[int], object] | None = None,
    on_skipped: Callable[[str], object] = ignore,
) -> Iterator[RawDocument | RawLines]:
    """Yield what ``pieces`` does, but lines that are a document each together."""
    found = _files(path, follow_symlinks, on_skipped)
    return (piece for file in found for piece in _pieces_of(file, on_bytes))


def tenants(path: str, *, follow_symlinks: bool = False) -> set[str]:
    """Return the tenants of the archives at a path; empty when there is none."""
    return {file.manifest.tenant for file in _files(path, follow_symlinks) if file.manifest is not None}


def total_bytes(path: str, *, follow_symlinks: bool = False) -> int | None:
    """Return how many bytes there are to read, as they are stored; None when that is unknown, as for a pipe."""
    sizes = [_size(file) for file in _files(path, follow_symlinks)]
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


def _files(path: str, follow_symlinks: bool = False, on_skipped: Callable[[str], object] = ignore) -> list[_File]:
    if path == STDIN:
        return [_File(path)]
    links: list[str] = []
    try:
        found = filesystem.list_files(path)
        if found is None:
            filesystem.require_file(path)
            return _part_of_archive(path, follow_symlinks) or [_File(path)]
        manifest = manifest_of(path, follow_symlinks=follow_symlinks)
        if manifest is not None:
            return _parts(path, manifest, follow_symlinks)
        names = sorted(filter(filesystem.is_document_name, found))
        if not follow_symlinks:
            links = [name for name in names if filesystem.leads_out(path, name)]
            names = [name for name in names if name not in links]
        if not (names or links):
            archives = archives_in(path, follow_symlinks=follow_symlinks, on_skipped=on_skipped)
            if archives:
                return [file for each in archives for file in _files(each, follow_symlinks)]
    except (OSError, ValueError) as error:
        raise ConfigError(
            where=filesystem.display_path(path),
            expected="a file or folder that can be read",
            got=_reason(error),
            hint="check the path; - reads standard input",
        ) from None
    if links and not names:
        raise ConfigError(
            where=filesystem.display_path(path),
            expected="files of run documents",
            got="only symbolic links out of the folder",
            hint="to read what they lead to, use --follow-symlinks",
        )
    for name in links:
        on_skipped(filesystem.display_path(filesystem.path_inside(path, name)))
    if not names:
        raise ConfigError(
            where=filesystem.display_path(path),
            expected=f"files named *{', *'.join(filesystem.SUFFIXES[:3])}, or *.gz or *.zst of them",
            got="a folder without any",
            hint="name files with other suffixes one by one; folders in the folder are not searched",
        )
    return [_File(filesystem.path_inside(path, name), found[name]) for name in names]


def _part_of_archive(path: str, follow_symlinks: bool) -> list[_File]:
    """Return a single file of an archive with its entry in the manifest; nothing for any other file."""
    folder, name = os.path.split(path)
    if not (name.startswith(PART_PREFIX) and name.endswith(_PART_SUFFIXES)) or MANIFEST not in (
        filesystem.list_files(folder or os.curdir) or ()
    ):
        return []
    manifest = manifest_of(folder or os.curdir, follow_symlinks=follow_symlinks)
    if manifest is None:
        return []
    return [file for file in _parts(folder, manifest, follow_symlinks) if file.path == path]


def _parts(folder: str, manifest: Manifest, follow_symlinks: bool) -> list[_File]:
    return [
        _File(filesystem.path_inside(folder, part.name), part.bytes, manifest, part, follow_symlinks)
        for part in manifest.files
    ]


def _pieces_of(file: _File, on_bytes: Callable[[int], object] | None) -> Iterator[RawDocument | RawLines]:
    """Yield the pieces of one file. If it cannot be read to its end, the last piece is the error."""
    if file.part is not None:
        folder = os.path.dirname(file.path)
        yield from verified_runs(folder, file.part, follow_symlinks=file.follow_symlinks, on_bytes=on_bytes)
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
        for piece in split_lines(filesystem.decompress(read, name=name), name=name):
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
