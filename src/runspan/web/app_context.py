"""What the routes of one application share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from runspan.contracts import TraceReader, TraceWriter, WriteResult
from runspan.otlp.protobuf_reader import ParsedRequest
from runspan.web.auth import Authenticator
from runspan.web.config import WebConfig
from runspan.web.metrics import Metrics
from runspan.web.trace_links import TraceLinks


class Store(TraceWriter, Protocol):
    """A writer that takes spans as they arrive too, a run's in any order and over several requests."""

    def write(self, received: ParsedRequest, tenant: str = "") -> WriteResult:
        """Stores the spans of a request; they are durable when it returns.

        tenant: whose runs the sender may write; those of others are rejected. The result speaks of the whole
        request, ``received.rejected`` included.
        """
        ...


@dataclass(frozen=True, slots=True)
class AppContext:
    """links: where people look at traces. clock: nanoseconds since 1970."""

    reader: TraceReader
    writer: Store | None
    access: Authenticator
    settings: WebConfig
    metrics: Metrics
    links: TraceLinks
    clock: Callable[[], int]
