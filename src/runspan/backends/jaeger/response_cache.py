"""``ResourceSpanCache``: parts of earlier responses of Jaeger, decoded once, since lists are requested repeatedly."""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_intdigest

from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_traces, read_resource

_MAX_BYTES: Final = 16 * 2**20
"""Bytes of the JSON objects in the cache. The decoded spans take about as much again."""
_MAX_OBJECT_BYTES: Final = _MAX_BYTES // 64
"""Larger objects are not cached."""
_MAX_SEEN: Final = 4096
"""How many first and last objects of responses are remembered as seen."""

_RESPONSE_START: Final = b'{"result":{"resourceSpans":['
_RESPONSE_END: Final = b"]}}"
_OBJECT_START: Final = b'{"resource":'
"""How an object of ``resourceSpans`` begins. No JSON string contains it: its quotes would have backslashes."""
_SEPARATOR: Final = b"," + _OBJECT_START


class ResourceSpanCache:
    """Decodes responses as ``find_traces`` does. May be used from several threads.

    An object is cached when all its bytes are those of an earlier one; its digest is only the key. A response is split
    into objects only when it begins or ends like an earlier one; any other is decoded at once and not cached, so lists
    that are requested once cost nothing and evict nothing.
    """

    def __init__(self) -> None:
        self._objects: dict[int, tuple[bytes, list[FoundSpan]]] = {}
        self._bytes = 0
        self._seen: set[int] = set()

    def find(self, content: bytes) -> list[FoundSpan]:
        """Return the spans of all traces in a response, in its order. Raise MalformedResponse when it is none."""
        objects = _joined_objects(content)
        if objects is None or not self._seen_before(objects):
            return find_traces(content)
        found: list[FoundSpan] = []
        try:
            # Decoding each object shows that it is complete, and complete objects with commas between are the list.
            for part in objects.split(_SEPARATOR):
                found += self._decode(part)
        except MalformedResponse:
            return find_traces(content)  # written in another form, or really malformed
        return found

    def _seen_before(self, objects: bytes) -> bool:
        """Return whether a response had this first or this last object before."""
        first, last = objects.find(_SEPARATOR), objects.rfind(_SEPARATOR)
        if first < 0:
            return False
        ends = {xxh3_64_intdigest(objects[:first]), xxh3_64_intdigest(objects[last:])}
        if not ends.isdisjoint(self._seen):
            return True
        if len(self._seen) >= _MAX_SEEN:
            self._seen = set()
        self._seen |= ends
        return False

    def _decode(self, part: bytes) -> list[FoundSpan]:
        """Return the spans of an object, given without ``_OBJECT_START``."""
        digest = xxh3_64_intdigest(part)
        cached = self._objects.get(digest)
        if cached is not None and cached[0] == part:
            return cached[1]
        found = read_resource(_OBJECT_START + part)
        if len(part) < _MAX_OBJECT_BYTES:
            if self._bytes > _MAX_BYTES:
                self._objects, self._bytes = {}, 0
            self._objects[digest] = part, found
            self._bytes += len(part)
        return found


def _joined_objects(content: bytes) -> bytes | None:
    """Return the list of a response without the start of its first object; None when Jaeger wrote another form."""
    content = content.rstrip()
    if not (content.startswith(_RESPONSE_START + _OBJECT_START) and content.endswith(_RESPONSE_END)):
        return None
    return content[len(_RESPONSE_START) + len(_OBJECT_START) : -len(_RESPONSE_END)]
