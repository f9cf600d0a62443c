"""A run as a row of the table ``runs``, and a span as a fragment, both ways; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from runspan.codec.fields import observed_time
from runspan.model.document import LIVE_RUN_STATUSES, TERMINAL_RUN_STATUSES, Envelope, sort_time, str_or_none
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.model.span import Event, Link, Span, to_plain
from runspan.model.timestamps import parse_ns


class Row(NamedTuple):
    """The columns of a run, in the order in which statements name them. Text is UTF-8, so it sorts by code point.

    time: see ``contracts.RunQuery``. ended: when retention begins to count. document: the canonical text, compressed.
    digest: the first half of its SHA-256, to tell a changed document from the same.
    step_ids: only where ``encode`` would give the step spans other ids than they came with: ``Known.packed_names``.
    incomplete: only where a newer revision is known and not proved: what is missing of it, one line each.
    observed_at: of a run that is pending or running, when it was last seen so; else None.
    superseded: the digests of documents that had this very revision before, the latest last.
    """

    trace_id: bytes
    tenant: bytes
    run_id: bytes
    workflow_id: bytes | None
    status: bytes | None
    time: int
    ended: int
    revision: int
    digest: bytes
    summary: bytes
    document: bytes
    step_ids: bytes | None
    incomplete: bytes | None
    written_at: int
    resource_id: int | None
    observed_at: int | None
    superseded: bytes | None

    def at(self, revision: int) -> Row:
        """The same at another revision."""
        observed_at = None if self.observed_at is None else observed_time(revision)
        return self._replace(revision=revision, observed_at=observed_at)


_DIGEST_BYTES: Final = 16
_MAX_SUPERSEDED: Final = 32


def split_digests(superseded: bytes | None) -> list[bytes]:
    """The digests of the column ``superseded``."""
    content = superseded or b""
    return [content[at : at + _DIGEST_BYTES] for at in range(0, len(content), _DIGEST_BYTES)]


def with_digest(superseded: bytes | None, digest: bytes) -> bytes:
    """The column ``superseded`` with one more digest; only the latest are kept."""
    return b"".join([*[found for found in split_digests(superseded) if found != digest], digest][-_MAX_SUPERSEDED:])


def end_time(envelope: Envelope, written_at: int) -> int:
    """When retention begins to count: at the end of a run that has ended, else when it was written.

    A run may wait for an approval longer than retention lasts, and must not be gone when it goes on.
    """
    if str_or_none(envelope.status) not in TERMINAL_RUN_STATUSES:
        return written_at
    completed = str_or_none(envelope.completed_at)
    return (completed and parse_ns(completed)) or sort_time(envelope) or written_at


def row_of(
    run: Run,
    tenant: str,
    revision: int,
    document: bytes,
    *,
    written_at: int,
    step_ids: bytes | None = None,
    incomplete: tuple[str, ...] = (),
    resource_id: int | None = None,
) -> Row:
    """The row of a run. document: its text, compressed. step_ids: see ``Row``."""
    envelope = run.envelope
    workflow_id, status = str_or_none(envelope.workflow_id), str_or_none(envelope.status)
    return Row(
        run_ids(envelope.id, tenant).trace_id,
        tenant.encode(),
        envelope.id.encode(),
        None if workflow_id is None else workflow_id.encode(),
        None if status is None else status.encode(),
        sort_time(envelope),
        end_time(envelope, written_at),
        revision,
        sha256(run.text).digest()[:16],
        run.summary(),
        document,
        step_ids,
        lines_to_bytes(incomplete),
        written_at,
        resource_id,
        observed_time(revision) if status in LIVE_RUN_STATUSES else None,
        None,
    )


def lines_to_bytes(lines: tuple[str, ...]) -> bytes | None:
    return "\n".join(line.replace("\n", " ") for line in lines).encode() if lines else None


def bytes_to_lines(content: bytes | None) -> tuple[str, ...]:
    return tuple(content.decode().split("\n")) if content else ()


_EXACT: Final = "runspan."
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def fingerprint(span: Span) -> bytes:
    """What the decoder sees of a span, as 16 bytes: a Collector that adds attributes does not change it."""
    exact = [(key, to_plain(value)) for key, value in span.pairs() if key.startswith(_EXACT)]
    pairs = sorted(exact, key=lambda pair: (pair[0], repr(pair[1])))
    return sha256(_pack((span.span_id, span.start, span.end, pairs))).digest()[:16]


def pack_span(span: Span) -> bytes:
    """A span as bytes, for the table of fragments."""
    return _pack(
        (
            span.trace_id,
            span.span_id,
            span.parent_id,
            span.name,
            span.kind,
            span.start,
            span.end,
            span.status,
            span.message,
            [(key, to_plain(value)) for key, value in span.pairs()],
            [(event.name, event.time, _plain_pairs(event.attributes)) for event in span.events],
            [(link.trace_id, link.span_id, _plain_pairs(link.attributes)) for link in span.links],
        )
    )


def unpack_span(content: bytes) -> Span:
    """The span that ``pack_span`` wrote."""
    trace_id, span_id, parent_id, name, kind, start, end, status, message, own, events, links = _unpack(content)
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        name=name,
        kind=kind,
        start=start,
        end=end,
        status=status,
        message=message,
        shared=(),
        own=_pairs(own),
        events=tuple([Event(name, time, _pairs(attributes)) for name, time, attributes in events]),
        links=tuple([Link(trace_id, span_id, _pairs(attributes)) for trace_id, span_id, attributes in links]),
    )


def _plain_pairs(pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(key, to_plain(value)) for key, value in pairs]


def _pairs(pairs: list[list[Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple([(key, value) for key, value in pairs])
