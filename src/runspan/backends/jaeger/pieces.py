"""An answer of Jaeger's API v3 in pieces, one for each resource, each read once: lists repeat themselves."""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_intdigest

from runspan.backends.jaeger.answers import Found, Unreadable, find_traces, read_resource

_BOUND: Final = 16 * 2**20
"""Bytes of pieces remembered. What was read of them takes about as much again."""
_LONG: Final = _BOUND // 64
"""Bytes from which on a piece is not remembered."""
_SEEN: Final = 4096
"""How many pieces at the ends of answers are known to have been seen."""

_BEGIN: Final = b'{"result":{"resourceSpans":['
_END: Final = b"]}}"
_PIECE: Final = b'{"resource":'
"""How a piece begins. In JSON no string holds it, since the quotes in it would have backslashes before them."""
_NEXT: Final = b"," + _PIECE


class Pieces:
    """Reads answers as ``find_traces`` does, and remembers what pieces told. May be used from several threads.

    A piece is known when all its bytes are those of an earlier one; its digest only says where to look. An answer that
    neither begins nor ends like an earlier one is read whole and not kept: lists that are asked for once cost nothing
    and drive nothing out.
    """

    def __init__(self) -> None:
        self.clear()

    def find(self, content: bytes) -> list[Found]:
        """The spans of all traces in an answer, in its order. Unreadable when it is none."""
        inner = _inner(content)
        if inner is None or not self._familiar(inner):
            return find_traces(content)
        found: list[Found] = []
        try:
            # That each object is whole is seen when it is read: objects with commas between them are the list.
            for piece in inner.split(_NEXT):
                found += self._read(piece)
        except Unreadable:
            return find_traces(content)  # Not cut as Jaeger cuts it, or really unreadable.
        return found

    def clear(self) -> None:
        """Forgets everything."""
        self._known: dict[int, tuple[bytes, list[Found]]] = {}
        self._bytes = 0
        self._seen: set[int] = set()

    def _familiar(self, inner: bytes) -> bool:
        """Whether the first or the last piece was seen before, in such a place."""
        first, last = inner.find(_NEXT), inner.rfind(_NEXT)
        if first < 0:
            return False
        ends = {xxh3_64_intdigest(inner[:first]), xxh3_64_intdigest(inner[last:])}
        if not ends.isdisjoint(self._seen):
            return True
        if len(self._seen) >= _SEEN:
            self._seen = set()
        self._seen |= ends
        return False

    def _read(self, piece: bytes) -> list[Found]:
        """piece: without its beginning."""
        digest = xxh3_64_intdigest(piece)
        known = self._known.get(digest)
        if known is not None and known[0] == piece:
            return known[1]
        found = read_resource(_PIECE + piece)
        if len(piece) < _LONG:
            if self._bytes > _BOUND:
                self._known, self._bytes = {}, 0
            self._known[digest] = piece, found
            self._bytes += len(piece)
        return found


def _inner(content: bytes) -> bytes | None:
    """The list of the answer without the beginning of its first piece; None when Jaeger's gateway writes otherwise."""
    content = content.rstrip()
    if not (content.startswith(_BEGIN + _PIECE) and content.endswith(_END)):
        return None
    return content[len(_BEGIN) + len(_PIECE) : -len(_END)]
