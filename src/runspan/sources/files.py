"""Run documents from files, folders, archives and standard input: reading, and telling what cannot be read."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, cast

from runspan.errors import ConfigError, DocumentError
from runspan.model.run import Run
from runspan.sources.archive_manifest import MANIFEST, ArchivePart, Manifest, is_part_name
from runspan.sources.archive_reader import archives_in, manifest_of, verified_runs
from runspan.sources.decompress import decompress
from runspan.sources.filesystem import (
    SUFFIXES,
    chunks,
    display_path,
    is_document_name,
    is_url,
    list_files,
    path_inside,
    require_file,
    size_of,
    with_progress,
)
from runspan.sources.splitter import MAX_DOCUMENT, RawDocument, split

STDIN: Final = "-"


class Input(Protocol):
    """What is needed of standard input: a read that returns what is there instead of waiting for a full chunk."""

    def read1(self, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _File:
    """A file to read. size: as it is stored, None when that is unknown. archive: the folder whose part it is."""

    path: str
    size: int | None = None
    archive: str = ""
    manifest: Manifest | None = None
    part: ArchivePart | None = None


def documents(
    path: str,
    *,
    max_document: int = MAX_DOCUMENT,
    on_bytes: Callable[[int], object] | None = None,
    stdin: Input | None = None,
) -> Iterator[Run | DocumentError]:
    """The runs of a file, of the files of a folder, of an archive, or of standard input when path is ``-``.

    path may be a URL that fsspec knows. Of an archive every document is proved by its manifest before it is handed
    out; see ``archived.proved``. DocumentError, at once, when the manifest itself is damaged.

    What is wrong with one document is yielded in its place, and the others go on. ConfigError, at once, when there is
    nothing to read at path.
    on_bytes: called with the number of bytes just read, as they are stored, so that they add up to ``total_bytes``.
    """
    found = pieces(path, max_document=max_document, on_bytes=on_bytes, stdin=stdin)
    return runs(found)


def runs(found: Iterable[RawDocument]) -> Iterator[Run | DocumentError]:
    """The run of each piece, or what is wrong with it."""
    parse = Run.from_json
    for piece in found:
        if piece.error is not None:
            yield piece.error
            continue
        try:
            run = parse(piece.data, where=piece.where)
        except DocumentError as refusal:
            yield refusal
        else:
            yield run


def pieces(
    path: str,
    *,
    max_document: int = MAX_DOCUMENT,
    on_bytes: Callable[[int], object] | None = None,
    stdin: Input | None = None,
) -> Iterator[RawDocument]:
    """The unparsed documents, for callers that need to know where in the stream each one ends."""
    found = _files(path)
    return (
        piece for file in found for piece in _pieces_of(file, max_document=max_document, on_bytes=on_bytes, stdin=stdin)
    )


def files(path: str) -> list[str]:
    """The files that path stands for: itself, or those of a folder, sorted by name. ConfigError when there is none.

    An archive stands for its files, and a folder of nothing but archives for theirs.
    """
    return [file.path for file in _files(path)]


def tenants(path: str) -> set[str]:
    """Whose runs the archives are that path stands for; empty when it is none."""
    return {file.manifest.tenant for file in _files(path) if file.manifest is not None}


def total_bytes(path: str, *, stdin: Input | None = None) -> int | None:
    """How many bytes there are to read, as they are stored; None when that is unknown, as for a pipe."""
    total = 0
    for file in _files(path):
        size = _size(file, stdin)
        if size is None:
            return None
        total += size
    return total


def _size(file: _File, stdin: Input | None) -> int | None:
    if file.part is not None:
        return file.part.bytes
    try:
        if is_url(file.path):
            return size_of(file.path) if file.size is None else file.size
        status = os.fstat(_stdin(stdin).fileno()) if file.path == STDIN else os.stat(file.path)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _files(path: str) -> list[_File]:
    if path == STDIN:
        return [_File(path)]
    try:
        found = list_files(path)
        if found is None:
            require_file(path)
            return _part_of_archive(path) or [_File(path)]
        manifest = manifest_of(path)
        if manifest is not None:
            return _of_archive(path, manifest)
        names = sorted(filter(is_document_name, found))
        if not names and (archives := archives_in(path)):
            return [file for archive in archives for file in _files(archive)]
    except (OSError, ValueError) as error:
        raise ConfigError(
            where=display_path(path),
            expected="a file or folder that can be read",
            got=_reason(error),
            hint="check the path; - reads standard input",
        ) from None
    if not names:
        raise ConfigError(
            where=display_path(path),
            expected=f"files named *{', *'.join(SUFFIXES[:3])}, or *.gz or *.zst of them",
            got="a folder without any",
            hint="name the files themselves if they are called otherwise; folders inside it are not searched",
        )
    return [_File(path_inside(path, name), found[name]) for name in names]


def _part_of_archive(path: str) -> list[_File]:
    """A file of an archive that is named itself: what the manifest beside it says of it counts too."""
    folder, name = os.path.split(path)
    if not is_part_name(name) or MANIFEST not in (list_files(folder or os.curdir) or ()):
        return []
    manifest = manifest_of(folder or os.curdir)
    return [] if manifest is None else [file for file in _of_archive(folder, manifest) if file.path == path]


def _of_archive(folder: str, manifest: Manifest) -> list[_File]:
    return [_File(path_inside(folder, part.name), part.bytes, folder, manifest, part) for part in manifest.files]


def _pieces_of(
    file: _File, *, max_document: int, on_bytes: Callable[[int], object] | None, stdin: Input | None
) -> Iterator[RawDocument]:
    """The pieces of one file. What keeps it from being read to its end comes as the last of them."""
    if file.part is not None:
        yield from verified_runs(file.archive, file.part, on_bytes=on_bytes)
        return
    name = "stdin" if file.path == STDIN else display_path(file.path)
    read = with_progress(_stdin(stdin).read1, on_bytes) if file.path == STDIN else chunks(file.path, on_bytes)
    end_offset = 0
    try:
        for piece in split(decompress(read, name=name), name=name, max_document=max_document):
            end_offset = piece.end_offset
            yield piece
    except DocumentError as damage:
        yield RawDocument(b"", name, end_offset, damage)
    except OSError as error:
        hint = "documents after this place were not read" if end_offset else "check the file and its permissions"
        refusal = DocumentError(where=name, expected="a file that can be read", got=_reason(error), hint=hint)
        refusal.__cause__ = error
        yield RawDocument(b"", name, end_offset, refusal)


def _stdin(stdin: Input | None) -> Input:
    if stdin is not None:
        return stdin
    if sys.stdin is None:
        raise ConfigError(where=STDIN, expected="standard input", got="none", hint="name a file instead")
    return cast("Input", sys.stdin.buffer)


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
