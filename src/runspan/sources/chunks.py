"""Plain bytes of a file that may be gzip, told by its first bytes; no I/O.

Damage comes as a DocumentError, raised after everything that could be read before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from runspan.errors import DocumentError

CHUNK: Final = 256 << 10
"""How many bytes are read or inflated at a time: large against a line, small against the processor's cache."""

_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_FOREIGN: Final = {
    b"\x28\xb5\x2f\xfd": ("zstd data", "unpack it: zstd -dc FILE | runspan export -"),
    b"\xfd7zXZ": ("xz data", "unpack it: xz -dc FILE | runspan export -"),
    b"BZh": ("bzip2 data", "unpack it: bzip2 -dc FILE | runspan export -"),
    b"PK\x03\x04": ("a zip archive", "unpack it: unzip -p FILE | runspan export -"),
}


def plain(chunks: Iterable[bytes], *, name: str) -> Iterator[bytes]:
    """The chunks as they are, or inflated when they begin like gzip."""
    stream = iter(chunks)
    head = b""
    for chunk in stream:
        head += chunk
        if len(head) >= max(map(len, _FOREIGN)):
            break
    whole = chain((head,), stream)
    if head.startswith(_GZIP):
        yield from _inflate(whole, name)
        return
    for magic, (got, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise DocumentError(where=name, expected="JSON text, plain or gzip", got=got, hint=hint)
    yield from whole


def _inflate(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Every member of a gzip file. Zero bytes after a member are padding.

    zlib and not isal, which is faster but cannot be copied: after an error the copy gives back what the failed call
    had already inflated.
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
                data, index = _salvage(before, rest)
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
        raise _damaged(f"{name} compressed byte {read}", "the end of the file inside the data")


def _salvage(member: zlib._Decompress, chunk: bytes) -> tuple[bytes, int]:
    """What can be inflated before the byte that fails, and the index of that byte."""
    parts = []
    for index in range(len(chunk)):
        try:
            parts.append(member.decompress(chunk[index : index + 1]))
        except zlib.error:
            return b"".join(parts), index
    return b"".join(parts), len(chunk)


def _damaged(where: str, got: str) -> DocumentError:
    return DocumentError(
        where=where,
        expected="whole gzip data",
        got=got,
        hint="documents after this place are missing: fetch or pack the file again",
    )
