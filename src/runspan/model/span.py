"""The span model shared by the codec and every wire format; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Raw, Struct

Value = str | int | float | bool | bytes | list[Any] | dict[str, Any] | Raw | None
"""The value of an attribute.

``Raw`` is JSON text that becomes a string attribute. list and dict are OTLP's array and kvlist. None is an attribute
that was sent without a value.
"""

INTERNAL: Final = 1
SERVER: Final = 2
UNSET: Final = 0
ERROR: Final = 2


class Attributes:
    """Attributes shared by many spans. Immutable, except that a writer caches their OTLP bytes in ``wire``."""

    __slots__ = ("pairs", "wire")

    def __init__(self, pairs: Sequence[tuple[str, Value]]) -> None:
        self.pairs: tuple[tuple[str, Value], ...] = tuple(pairs)
        self.wire: bytes | None = None


class Event(Struct, frozen=True, gc=False):
    """A span event. ``time`` is in nanoseconds since 1970."""

    name: str
    time: int
    attributes: tuple[tuple[str, Value], ...] = ()


class Link(Struct, frozen=True, gc=False):
    """A link to a span of another trace."""

    trace_id: bytes
    span_id: bytes
    attributes: tuple[tuple[str, Value], ...] = ()


class Span(Struct, frozen=True, gc=False):
    """One span. Its attributes are ``shared`` and ``own``; a key is in one of them only."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty for a root span."""
    name: str
    kind: int
    start: int
    """Nanoseconds since 1970."""
    end: int
    """Nanoseconds since 1970."""
    status: int
    message: str
    """The description of the status."""
    shared: tuple[Attributes, ...]
    own: Sequence[tuple[str, Value]]
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    scope: str = ""
    """The name of the instrumentation scope."""

    def pairs(self) -> Iterator[tuple[str, Value]]:
        """Yield all attributes in order, JSON text as ``Raw``."""
        for group in self.shared:
            yield from group.pairs
        yield from self.own

    def attributes(self) -> dict[str, Value]:
        """Return all attributes, JSON text as ``str``."""
        if not self.shared:
            attributes = dict(self.own)
            for key, value in attributes.items():
                if type(value) is Raw:
                    attributes[key] = to_plain(value)
            return attributes
        return {key: to_plain(value) for key, value in self.pairs()}


def to_plain(value: Value) -> Value:
    """Return the value with ``Raw`` decoded to ``str``."""
    return bytes(value).decode() if type(value) is Raw else value
