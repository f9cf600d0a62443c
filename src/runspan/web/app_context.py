"""``AppContext``: what the routes of one application share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flask import current_app

from runspan.contracts import TraceReader, TraceWriter, WriteResult
from runspan.otlp.protobuf_reader import ParsedRequest
from runspan.web.api_keys import ApiKeyStore
from runspan.web.auth import Authenticator, RateLimiter
from runspan.web.config import WebConfig
from runspan.web.links import PublicUrl, TraceLinks
from runspan.web.metrics import Metrics
from runspan.web.sessions import SessionCookie


class Store(TraceWriter, Protocol):
    """A writer that also stores spans as they arrive: in any order, one run over several requests."""

    def write(self, received: ParsedRequest, tenant: str = "") -> WriteResult:
        """Store the spans of a request; they are durable when the method returns.

        Spans of runs of any other tenant than ``tenant`` are rejected. The result covers the complete request,
        including ``received.rejected``.
        """
        ...


@dataclass(frozen=True, slots=True)
class AppContext:
    """The components of an application, as ``create_app`` assembled them."""

    reader: TraceReader
    writer: Store | None
    """None if the backend is only read."""
    authenticator: Authenticator
    config: WebConfig
    metrics: Metrics
    trace_links: TraceLinks
    public_url: PublicUrl
    api_keys: ApiKeyStore | None
    """None if the application never requires a key."""
    session_cookie: SessionCookie | None
    """None if browsers cannot log in."""
    failed_logins: RateLimiter
    """Counts wrong keys by client address."""
    clock: Callable[[], int]
    """The current time in nanoseconds since 1970."""


def current_context() -> AppContext:
    """Return the context of the application that handles the current request."""
    context: AppContext = current_app.extensions["runspan"]
    return context
