"""The span model shared by the codec and every wire format, and the ids of traces and spans; no I/O.

Ids are SHA-256 over a domain tag and length-prefixed parts (as RFC 9162 hashes its leaves), so that run ``1`` attempt
``23`` and run ``12`` attempt ``3`` have different ids. Steps are many, so their ids are XXH3 with a seed derived in the
same way. An id is never all zero, which OpenTelemetry declares invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from msgspec import Raw, Struct
from xxhash import xxh3_64_digest

Value = str | int | float | bool | bytes | list[Any] | dict[str, Any] | Raw | None
"""The value of an attribute.

``Raw`` is JSON text that becomes a string attribute. list and dict are OTLP's array and kvlist. None is an attribute
that was sent without a value.
"""

Pairs = list[tuple[str, Value]]
"""Attributes while they are collected."""

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


DOMAIN = b"runspan/1"
_ZERO = bytes(8)


class RunIds(NamedTuple):
    """The ids derived from a run's identity alone."""

    trace_id: bytes
    """16 bytes."""
    root_id: bytes
    """The span id of the run span, 8 bytes."""
    seed: int
    """64 bits, for the ids of the step spans."""


def _length_prefixed(role: bytes, *parts: bytes) -> bytes:
    encoded = [DOMAIN]
    for part in (role, *parts):
        encoded.append(len(part).to_bytes(8, "big"))
        encoded.append(part)
    return b"".join(encoded)


def _digest(role: bytes, *parts: bytes) -> bytes:
    return sha256(_length_prefixed(role, *parts)).digest()


def _nonzero(value: bytes) -> bytes:
    return value if value.strip(b"\0") else b"\x01" + value[1:]


def run_ids(run_id: str, tenant: str = "") -> RunIds:
    """Return the ids of a tenant's run."""
    text = run_id.encode()
    digest = sha256(run_ids_prefix(tenant) + len(text).to_bytes(8, "big") + text).digest()
    return RunIds(_nonzero(digest[:16]), _nonzero(digest[16:24]), int.from_bytes(digest[24:], "big"))


@lru_cache(maxsize=1024)
def run_ids_prefix(tenant: str) -> bytes:
    """Return what comes before the length and the text of a run id in the digest that has its ids."""
    return _length_prefixed(b"run", tenant.encode())


@lru_cache(maxsize=1024)
def summary_prefix(tenant: str) -> bytes:
    """Return what comes before revision, position and summary in the digest of a summary."""
    return _length_prefixed(b"summary", tenant.encode())


def hash_parts(*parts: bytes) -> int:
    """Return 64 bits of a digest of the parts, to be mixed into a run's step seed."""
    return int.from_bytes(_digest(b"salt", *parts)[:8], "big")


def step_span_id(text: bytes, seed: int, used_ids: dict[bytes, bytes]) -> bytes:
    """Return the id of a finished step's span: a seeded digest of the step's canonical text.

    The same content has the same id and a changed step has another one. Equal steps of a run are numbered. XXH3 is
    enough: 64 bits of any digest prevent accidental collisions only, and the run's SHA-256 digest proves the document.

    - ``seed``: 64 bits derived from everything else that the span carries.
    - ``used_ids``: the ids of the run so far, each with the last id issued for the same content. Updated in place.
    """
    first = step_digest(text, seed)
    span_id = used_ids.get(first, first)
    while span_id in used_ids or span_id == _ZERO:
        span_id = child_span_id(seed.to_bytes(8, "big") + span_id, "again", 1)
    used_ids[first] = used_ids[span_id] = span_id
    return span_id


step_digest: Callable[[bytes, int], bytes] = xxh3_64_digest
"""Return the 8 bytes that ``step_span_id`` returns for a text that no other step of the run has."""


def revision_span_id(trace_id: bytes, text: bytes, revision: int, context: bytes) -> bytes:
    """Return the id of the revision span of a document at a revision."""
    return _nonzero(_digest(b"revision", trace_id, text, str(revision).encode(), context)[:8])


def child_span_id(parent_id: bytes, role: str, number: int) -> bytes:
    """Return the id of a span below a step, for example that of attempt 2."""
    return _nonzero(_digest(role.encode(), parent_id, str(number).encode())[:8])


def live_span_id(trace_id: bytes, role: str, *parts: bytes) -> bytes:
    """Return the id of a span without length that is written while its run is unfinished, from all that it carries."""
    return _nonzero(_digest(role.encode(), trace_id, *parts)[:8])


def summary_digest(summary: bytes, label_sets: Iterable[str], tenant: str, revision: int, position: int) -> str:
    """Return the digest of what a list shows of a run, sorts and filters by, 32 hex digits.

    ``label_sets``: the texts of ``fields.LABEL_SETS``.
    """
    context = (revision % (1 << 64)).to_bytes(8, "big") + (position % (1 << 64)).to_bytes(8, "big")
    texts = "".join([f"\n{text}" for text in label_sets]).encode()
    return sha256(summary_prefix(tenant) + context + summary + texts).hexdigest()[:32]
