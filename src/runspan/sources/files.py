"""Run documents from files, folders and standard input: opening, reading, and telling what cannot be read."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, cast

from runspan.errors import DocumentError, SettingError
from runspan.run import Run
from runspan.sources.chunks import CHUNK, plain
from runspan.sources.split import MAX_DOCUMENT, Piece, split

STDIN: Final = "-"
SUFFIXES: Final = (".json", ".ndjson", ".jsonl", ".json.gz", ".ndjson.gz", ".jsonl.gz")
"""The names that are taken from a folder. A file that is named itself may be called anything."""


class Input(Protocol):
    """What is needed of standard input: a read that returns what is there instead of waiting for a full chunk."""

    def read1(self, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...


def documents(
    path: str,
    *,
    max_document: int = MAX_DOCUMENT,
    on_bytes: Callable[[int], object] | None = None,
    stdin: Input | None = None,
) -> Iterator[Run | DocumentError]:
    """The runs of a file, of the files of a folder, or of standard input when path is ``-``.

    What is wrong with one document is yielded in its place, and the others go on. SettingError, at once, when there is
    nothing to read at path.
    on_bytes: called with the number of bytes just read, as they are stored, so that they add up to ``total_bytes``.
    """
    found = pieces(path, max_document=max_document, on_bytes=on_bytes, stdin=stdin)
    return runs(found)


def runs(found: Iterable[Piece]) -> Iterator[Run | DocumentError]:
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
) -> Iterator[Piece]:
    """The unparsed documents, for callers that need to know where in the stream each one ends."""
    paths = files(path)
    return (
        piece for file in paths for piece in _pieces_of(file, max_document=max_document, on_bytes=on_bytes, stdin=stdin)
    )


def files(path: str) -> list[str]:
    """The files that path stands for: itself, or those of a folder, sorted by name. SettingError when there is none."""
    if path == STDIN:
        return [path]
    try:
        if not os.path.isdir(path):
            if not os.access(path, os.R_OK):
                os.stat(path)
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return [path]
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if _is_document_file(entry))
    except (OSError, ValueError) as error:
        raise SettingError(
            where=path,
            expected="a file or folder that can be read",
            got=_reason(error),
            hint="check the path; - reads standard input",
        ) from None
    if not names:
        raise SettingError(
            where=path,
            expected=f"files named *{', *'.join(SUFFIXES[:3])} or *.gz of them",
            got="a folder without any",
            hint="name the files themselves if they are called otherwise; folders inside it are not searched",
        )
    return [os.path.join(path, name) for name in names]


def total_bytes(path: str, *, stdin: Input | None = None) -> int | None:
    """How many bytes there are to read, as they are stored; None when that is unknown, as for a pipe."""
    total = 0
    for file in files(path):
        try:
            status = os.fstat(_stdin(stdin).fileno()) if file == STDIN else os.stat(file)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


def _pieces_of(
    path: str, *, max_document: int, on_bytes: Callable[[int], object] | None, stdin: Input | None
) -> Iterator[Piece]:
    """The pieces of one file. What keeps it from being read to its end comes as the last of them."""
    name = "stdin" if path == STDIN else path
    end_offset = 0
    try:
        for piece in split(plain(_read(path, on_bytes, stdin), name=name), name=name, max_document=max_document):
            end_offset = piece.end_offset
            yield piece
    except DocumentError as damage:
        yield Piece(b"", name, end_offset, damage)
    except OSError as error:
        hint = "documents after this place were not read" if end_offset else "check the file and its permissions"
        refusal = DocumentError(where=name, expected="a file that can be read", got=_reason(error), hint=hint)
        yield Piece(b"", name, end_offset, refusal)


def _read(path: str, on_bytes: Callable[[int], object] | None, stdin: Input | None) -> Iterator[bytes]:
    if path == STDIN:
        yield from _reported(_stdin(stdin).read1, on_bytes)
        return
    with open(path, "rb", buffering=0) as file:
        yield from _reported(file.read, on_bytes)


def _reported(read: Callable[[int], bytes | None], on_bytes: Callable[[int], object] | None) -> Iterator[bytes]:
    while chunk := read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def _stdin(stdin: Input | None) -> Input:
    if stdin is not None:
        return stdin
    if sys.stdin is None:
        raise SettingError(where=STDIN, expected="standard input", got="none", hint="name a file instead")
    return cast("Input", sys.stdin.buffer)


def _is_document_file(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is taken. A link to nothing is, so that it is told and not passed over."""
    if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
        return False
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
