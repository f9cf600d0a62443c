"""What an OTLP request holds, sorted: runspan's own spans, everybody else's, and what is refused; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from runspan.contracts import Rejection
from runspan.span import Span


@dataclass(frozen=True, slots=True)
class Foreign:
    """A span that is not runspan's, kept as it came.

    otlp: a serialized ``opentelemetry.proto.trace.v1.TracesData`` of this one span with its resource and scope.
    """

    trace_id: bytes
    span_id: bytes
    otlp: bytes


@dataclass(slots=True)
class Received:
    """spans: those with the attribute ``runspan.role``. resources: per trace of theirs, the serialized Resource.

    total: how many spans the request held, rejected ones included.
    """

    spans: list[Span] = field(default_factory=list)
    resources: dict[bytes, bytes] = field(default_factory=dict)
    foreign: list[Foreign] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    total: int = 0
