"""What the routes need of the application and of a request: the shared context and the body, read within a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

from flask import Request, current_app
from isal import isal_zlib

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import TraceReader
from runspan.errors import PayloadError, PayloadTooLarge, PayloadUnsupported
from runspan.forward import Forwarder
from runspan.model.timestamps import SECOND
from runspan.web.api_keys import ApiKeyStore
from runspan.web.auth import Authenticator, OriginGuard, RateLimiter
from runspan.web.config import WebConfig
from runspan.web.links import PublicUrl, check_trace_links
from runspan.web.metrics import Metrics
from runspan.web.sessions import SessionCookie, SessionStore
from runspan.web.usage import UsageStore
from runspan.web.windows import LocalWindows, Windows

LARGE_BODY = 256 << 10
"""Bytes from which a request takes long enough that the tenant's others wait for it."""


class AppContext:
    """The components of an application; see ``create_app`` for what they are made of."""

    def __init__(
        self,
        reader: TraceReader,
        writer: SqliteStore | Forwarder | None,
        config: WebConfig,
        keys: ApiKeyStore | None,
        sessions: SessionStore | None,
        windows: Windows | None,
        clock: Callable[[], int],
        usage: UsageStore | None = None,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.config = config
        self.api_keys = keys
        self.clock = clock
        check_trace_links(config)
        self.public_url = PublicUrl(config.public_url)
        self.session_cookie: SessionCookie | None = None
        """None if browsers cannot log in."""
        if keys is not None and config.pages:
            self.session_cookie = SessionCookie(sessions or SessionStore(None, keys, clock=clock), self.public_url)
        origin_guard = OriginGuard(config.allowed_hosts, self.public_url.origin)
        windows = windows or LocalWindows()
        self.authenticator = Authenticator(keys, config, origin_guard, windows, self.session_cookie)
        self.failed_logins = RateLimiter("failed logins", config.logins_per_minute, windows)
        """Counts wrong keys by client address."""
        self._usage = usage
        self.metrics = Metrics(
            reader,
            windows,
            clock,
            usage=usage if config.tenant_usage else None,
            stuck_after=int(config.stuck_after * SECOND),
            stuck_max_age=int(config.stuck_max_age * SECOND),
        )
        self._turns: dict[str, threading.Lock] = {}

    def charged(self, tenant: str, trace_ids: Collection[bytes], size: int) -> AbstractContextManager[object]:
        """Return what to hold while a request is written that counts towards a tenant's quotas; see ``UsageStore``."""
        return nullcontext() if self._usage is None else self._usage.charged(tenant, trace_ids, size)

    def turn(self, tenant: str, size: int = LARGE_BODY) -> AbstractContextManager[object]:
        """Return what to hold while a request of so many bytes is parsed and stored.

        A tenant's large requests take turns. That is as fast, since Python computes in one thread at a time, and the
        requests of other tenants compete with one thread, not with all that the tenant keeps busy.
        """
        return nullcontext() if size < LARGE_BODY else self._turns.setdefault(tenant, threading.Lock())


def current_context() -> AppContext:
    """Return the context of the application that handles the current request."""
    context: AppContext = current_app.extensions["runspan"]
    return context


_GZIP_WBITS = 31
_MAX_MEMBERS = 16
"""Members of a gzip body, several of which may follow each other; limited because each costs a copy of the rest."""


def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request, decompressed if it is gzip.

    ``max_bytes`` limits the decompressed content, and Flask's ``MAX_CONTENT_LENGTH`` the body as sent. Raises
    PayloadError, PayloadTooLarge, PayloadUnsupported or werkzeug's RequestEntityTooLarge.
    """
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise PayloadUnsupported(where="Content-Encoding", expected="gzip or none", got=repr(encoding[:60]))
    body = request.get_data(cache=False)
    return inflate(body, max_bytes) if "gzip" in encoding else body


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Return the content of a gzip stream, never holding more than ``max_bytes`` of it.

    Raises PayloadError if the data is not gzip, is truncated or has trailing bytes, and PayloadTooLarge over the limit.
    """
    parts: list[bytes] = []
    remaining = max_bytes
    for _ in range(_MAX_MEMBERS):
        stream = isal_zlib.decompressobj(wbits=_GZIP_WBITS)
        try:
            part = stream.decompress(data, remaining + 1)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise PayloadError(where="body", expected="gzip", got=str(error), hint="see Content-Encoding") from None
        if len(part) > remaining:
            raise body_too_large(max_bytes, "more, once decompressed")
        if not stream.eof:
            raise PayloadError(where="body", expected="a complete gzip stream", got=f"{len(data)} truncated bytes")
        parts.append(part)
        remaining -= len(part)
        data = stream.unused_data
        if not data:
            return b"".join(parts)
    raise PayloadError(where="body", expected=f"at most {_MAX_MEMBERS} gzip streams", got="more")


def body_too_large(max_bytes: int | None, got: str) -> PayloadTooLarge:
    """Return the error about a body that exceeds the limit, as sent or once decompressed."""
    return PayloadTooLarge(
        "request body too large",
        expected=f"at most {max_bytes} bytes",
        got=got,
        hint="send it in parts, or raise the server's limit",
    )
