"""OTLP over HTTP: one POST with a protobuf body per request, on kept-alive connections."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Final

import httpx
import msgspec
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from isal import igzip
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.delivery.config import ExporterConfig
from runspan.delivery.transport import (
    ExportResult,
    Rejected,
    RejectionScope,
    Retryable,
    not_otlp,
    result_of,
)
from runspan.errors import PARSE_ERRORS
from runspan.http.client import USER_AGENT, DeadlineTransport, describe_error
from runspan.http.retry import parse_retry_after
from runspan.http.urls import sanitize_message
from runspan.otlp.env import Headers

PROTOBUF: Final = "application/x-protobuf"
RETRYABLE_STATUSES: Final = frozenset({429, 502, 503, 504})
"""The statuses after which OTLP allows a retry; 500 is not one of them."""

MAX_RESPONSE_BYTES = 1 << 20
"""A response has a few bytes; the rest of a larger one is not read."""

_SCOPES: Final = {
    400: RejectionScope.RUNS,
    413: RejectionScope.SIZE,
    422: RejectionScope.RUNS,
    **dict.fromkeys((401, 403, 404, 405, 407, 410, 415), RejectionScope.ENDPOINT),
}


class _PartialSuccess(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    error_message: str = ""


class _JsonResponse(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess | None = None


class HttpTransport:
    """A ``Transport`` that posts to ``config.endpoint``.

    connections: The most connections at once.
    now: Seconds since 1970, for a ``Retry-After`` date in a response without a date.
    """

    def __init__(self, config: ExporterConfig, *, connections: int = 4, now: Callable[[], float] = time.time) -> None:
        self.endpoint = config.display_url
        self._config = config
        self._now = now
        self._gzip = config.compression == "gzip"
        self._url = httpx.URL(config.endpoint)
        self._headers = {
            "content-type": PROTOBUF,
            "accept": PROTOBUF,
            "user-agent": USER_AGENT,
            **dict(config.headers),
            **({"content-encoding": "gzip"} if self._gzip else {}),
        }
        self._extensions = {"timeout": httpx.Timeout(config.timeout).as_dict()}
        self._transport = DeadlineTransport(config.endpoint, tls=config.tls.context(), connections=connections)

    def send(self, body: bytes, headers: Headers = ()) -> ExportResult:
        """Post once and read the response. ``headers``: those of this request besides the config's."""
        content = igzip.compress(body, 1, mtime=0) if self._gzip else body
        all_headers = {**self._headers, **dict(headers)}
        post = httpx.Request("POST", self._url, headers=all_headers, content=content, extensions=self._extensions)
        try:
            return self._result(*self._transport.exchange(post, MAX_RESPONSE_BYTES))
        except httpx.TransportError as error:
            return self._failure(error)
        except httpx.DecodingError:
            return not_otlp("a body that is not in its own content encoding")

    def close(self) -> None:
        self._transport.close()

    def _result(self, response: httpx.Response, body: bytes) -> ExportResult:
        status = response.status_code
        if response.is_success:
            return _success(response.headers.get("content-type", ""), body)
        if response.is_redirect:
            return Rejected(
                f"HTTP {status}: a redirect, which is not followed with secrets in headers", RejectionScope.ENDPOINT
            )
        reason = self._reason(response, body)
        if status in RETRYABLE_STATUSES:
            return Retryable(reason, parse_retry_after(response.headers, self._now()), status)
        scope = _SCOPES.get(status, RejectionScope.REQUEST)
        if status == 400 and "too large" in reason:
            # The Collector reports a too large request with this status.
            scope = RejectionScope.SIZE
        return Rejected(reason, scope)

    def _reason(self, response: httpx.Response, body: bytes) -> str:
        """Return the reason of a failure. OTLP has a google.rpc.Status in its body; gateways respond with text."""
        text = body.decode(errors="replace")
        if response.headers.get("content-type", "").startswith(PROTOBUF):
            try:
                text = Status.FromString(body).message
            except DecodeError:
                text = ""
        message = sanitize_message(text, self._config.secrets)
        return f"HTTP {response.status_code}: {message}" if message else f"HTTP {response.status_code}"

    def _failure(self, error: httpx.TransportError) -> ExportResult:
        reason = describe_error(error, self._config.secrets)
        if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)) or _untrusted(error):
            return Rejected(reason, RejectionScope.ENDPOINT)
        return Retryable(reason, timed_out=isinstance(error, httpx.TimeoutException))


def _success(content_type: str, body: bytes) -> ExportResult:
    kind = content_type.partition(";")[0].strip().lower()
    if len(body) > MAX_RESPONSE_BYTES:
        return not_otlp(f"over {MAX_RESPONSE_BYTES} bytes")
    if not body or kind in ("", PROTOBUF, "application/protobuf", "application/octet-stream"):
        try:
            partial = ExportTraceServiceResponse.FromString(body).partial_success
            return result_of(partial.rejected_spans, partial.error_message)
        except DecodeError:
            return not_otlp("a body that is no ExportTraceServiceResponse")
    if kind != "application/json":
        return not_otlp(f"content type {sanitize_message(kind)!r}")
    try:
        json_partial = msgspec.json.decode(body, type=_JsonResponse).partial_success or _PartialSuccess()
        return result_of(int(json_partial.rejected_spans), json_partial.error_message)
    except PARSE_ERRORS:
        return not_otlp("JSON that is no ExportTraceServiceResponse")


def _untrusted(error: BaseException) -> bool:
    """Return True if the reason is the server's certificate, which will be the same in five minutes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
