"""The neutral span: what encode makes, what decode reads, what every wire format is written from; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Raw, Struct

Value = str | int | float | bool | bytes | list[Any] | dict[str, Any] | Raw | None
"""An attribute's value. ``Raw`` is JSON text that becomes a string attribute; list and dict are OTLP's array and
kvlist; None is a value that was sent without one."""

INTERNAL: Final = 1
SERVER: Final = 2
UNSET: Final = 0
ERROR: Final = 2


class Attributes:
    """Attributes that many spans share. Immutable; ``wire`` holds their OTLP bytes once a writer has made them."""

    __slots__ = ("pairs", "wire")

    def __init__(self, pairs: Sequence[tuple[str, Value]]) -> None:
        self.pairs: tuple[tuple[str, Value], ...] = tuple(pairs)
        self.wire: bytes | None = None


class Event(Struct, frozen=True, gc=False):
    """A span event: time in nanoseconds since 1970."""

    name: str
    time: int
    attributes: tuple[tuple[str, Value], ...] = ()


class Link(Struct, frozen=True, gc=False):
    """A link to a span of another trace."""

    trace_id: bytes
    span_id: bytes
    attributes: tuple[tuple[str, Value], ...] = ()


class Span(Struct, frozen=True, gc=False):
    """One span. start and end are nanoseconds since 1970; parent_id is empty for a root.

    shared and own together are its attributes; a key stands in one of them only.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    kind: int
    start: int
    end: int
    status: int
    message: str
    shared: tuple[Attributes, ...]
    own: Sequence[tuple[str, Value]]
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()

    def pairs(self) -> Iterator[tuple[str, Value]]:
        """All attributes in order, JSON text as ``Raw``."""
        for group in self.shared:
            yield from group.pairs
        yield from self.own

    def attributes(self) -> dict[str, Value]:
        """All attributes as plain values, JSON text as ``str``."""
        if not self.shared:
            attributes = dict(self.own)
            for key, value in attributes.items():
                if type(value) is Raw:
                    attributes[key] = to_plain(value)
            return attributes
        return {key: to_plain(value) for key, value in self.pairs()}


def to_plain(value: Value) -> Value:
    """The value as a reader of the span sees it."""
    return bytes(value).decode() if type(value) is Raw else value
