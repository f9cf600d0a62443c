"""Decompress a file that may be gzip or zstd, recognised by its first bytes; no I/O.

Damage is raised as a DocumentError, after everything before it was yielded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import zstandard

from runspan.errors import DocumentError

CHUNK: Final = 256 << 10
"""Bytes that are read or decompressed at a time: much more than a line, and less than the processor's cache."""

_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_CUT: Final = "the end of the file inside the data"
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
        yield from _decompress_gzip(content, name)
        return
    if first.startswith(_ZSTD) or first[1:4] == _ZSTD_SKIPPABLE:
        yield from _decompress_zstd(content, name)
        return
    for magic, (got, hint) in _FOREIGN.items():
        if first.startswith(magic):
            raise DocumentError(where=name, expected="JSON text, plain, gzip or zstd", got=got, hint=hint)
    yield from content


def _decompress_gzip(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the content of every member of a gzip file. Zero bytes after a member are padding.

    This uses zlib and not isal, which is faster but cannot be copied: after an error the copy returns what the failed
    call had already decompressed.
    """
    member = None
    read = 0
    for chunk in chunks:
        read += len(chunk)
        rest = chunk
        while rest:
            if member is None:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                member = zlib.decompressobj(_GZIP_WINDOW)
            before = member.copy()
            try:
                data = member.decompress(rest, CHUNK)
            except zlib.error as error:
                data, index = _recover_prefix(before, rest)
                yield data
                raise _damaged(f"{name} compressed byte {read - len(rest) + index}", str(error)) from None
            yield data
            if member.eof:
                rest, member = member.unused_data, None
            else:
                rest = member.unconsumed_tail
    if member is not None:
        while data := member.decompress(b"", CHUNK):
            yield data
        raise _damaged(f"{name} compressed byte {read}", _CUT)


def _decompress_zstd(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the content of every frame of a zstd file."""
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    read = 0
    for chunk in chunks:
        at, parts, size = 0, [], 0
        while at < len(chunk):
            frame = frame or decompressor.decompressobj()
            piece = chunk[at : at + _ZSTD_SLICE]
            try:
                parts.append(frame.decompress(piece))
            except zstandard.ZstdError as error:
                yield b"".join(parts)
                got = str(error).removeprefix("zstd decompressor error: ")
                raise _damaged(f"{name} compressed byte {read + at}", got, "zstd") from None
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
        raise _damaged(f"{name} compressed byte {read}", _CUT, "zstd")


def _recover_prefix(member: zlib._Decompress, chunk: bytes) -> tuple[bytes, int]:
    """Return what can be decompressed before the byte that fails, and the index of that byte."""
    parts = []
    for index in range(len(chunk)):
        try:
            parts.append(member.decompress(chunk[index : index + 1]))
        except zlib.error:
            return b"".join(parts), index
    return b"".join(parts), len(chunk)


def _damaged(where: str, got: str, kind: str = "gzip") -> DocumentError:
    return DocumentError(
        where=where,
        expected=f"complete {kind} data",
        got=got,
        hint="documents after this place are missing: fetch or pack the file again",
    )
