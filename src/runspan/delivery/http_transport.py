"""OTLP over HTTP: one POST of a protobuf body a request, on kept-alive connections."""

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

from runspan._version import __version__
from runspan.delivery.batch import Request
from runspan.delivery.config import ExporterConfig
from runspan.delivery.result import ExportResult, Rejected, RejectionScope, Retryable, counted, not_otlp, read_response
from runspan.errors import SettingError
from runspan.http.retry import parse_retry_after
from runspan.http.transport import DeadlineTransport
from runspan.http.urls import sanitize_message

PROTOBUF: Final = "application/x-protobuf"
RETRIED: Final = frozenset({429, 502, 503, 504})
"""The statuses that OTLP allows to send again after; 500 is not among them."""

MAX_RESPONSE_BYTES = 1 << 20
"""An answer is a few bytes; a larger one is not read to its end."""

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
    """Posts to ``settings.endpoint``. now: seconds since 1970, for a Retry-After date in an answer without a Date."""

    def __init__(self, settings: ExporterConfig, *, connections: int = 4, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._gzip = settings.compression == "gzip"
        self._url = httpx.URL(settings.endpoint)
        self._headers = {
            "content-type": PROTOBUF,
            "accept": PROTOBUF,
            "user-agent": f"runspan/{__version__}",
            **dict(settings.headers),
            **({"content-encoding": "gzip"} if self._gzip else {}),
        }
        self._extensions = {"timeout": httpx.Timeout(settings.timeout).as_dict()}
        # A client around it would add redirects, cookies and a log line with the URL's query, and double the cost.
        self._transport = DeadlineTransport(settings.endpoint, tls=_tls(settings), connections=connections)

    @property
    def endpoint(self) -> str:
        return self._settings.display_url

    def send(self, request: Request) -> ExportResult:
        """Posts once and reads the answer."""
        body = igzip.compress(request.body, 1, mtime=0) if self._gzip else request.body
        post = httpx.Request("POST", self._url, headers=self._headers, content=body, extensions=self._extensions)
        try:
            response = self._transport.handle_request(post)
            try:
                return self._result(response, _read(response))
            finally:
                response.close()
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
        if status in RETRIED:
            return Retryable(reason, parse_retry_after(response.headers, self._now()))
        scope = _SCOPES.get(status, RejectionScope.REQUEST)
        if status == 400 and "too large" in reason:
            # The Collector says it with this status.
            scope = RejectionScope.SIZE
        return Rejected(reason, scope)

    def _reason(self, response: httpx.Response, body: bytes) -> str:
        """OTLP wants a google.rpc.Status in the body of a failure; gateways answer with text."""
        text = body.decode(errors="replace")
        if response.headers.get("content-type", "").startswith(PROTOBUF):
            try:
                text = Status.FromString(body).message
            except DecodeError:
                text = ""
        words = sanitize_message(text, self._settings.secrets)
        return f"HTTP {response.status_code}: {words}" if words else f"HTTP {response.status_code}"

    def _failure(self, error: httpx.TransportError) -> ExportResult:
        words = sanitize_message(str(error), self._settings.secrets)
        reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
        if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)) or _untrusted(error):
            return Rejected(reason, RejectionScope.ENDPOINT)
        return Retryable(reason)


def _tls(settings: ExporterConfig) -> ssl.SSLContext | None:
    """The TLS context; None when no file is named."""
    if not (settings.certificate or settings.client_certificate):
        return None
    try:
        if settings.certificate:
            context = ssl.create_default_context(cafile=settings.certificate)
        else:
            context = httpx.create_ssl_context(trust_env=False)
        if settings.client_certificate:
            context.load_cert_chain(settings.client_certificate, settings.client_key)
    except OSError as error:
        files = ", ".join(filter(None, (settings.certificate, settings.client_certificate, settings.client_key)))
        raise SettingError(where="OTLP TLS files", expected="readable PEM files", got=f"{error} in {files}") from None
    return context


def _read(response: httpx.Response) -> bytes:
    pieces, size = [], 0
    for piece in response.iter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > MAX_RESPONSE_BYTES:
            break
    return b"".join(pieces)


def _success(content_type: str, body: bytes) -> ExportResult:
    kind = content_type.partition(";")[0].strip().lower()
    if len(body) > MAX_RESPONSE_BYTES:
        return not_otlp(f"over {MAX_RESPONSE_BYTES} bytes")
    if not body or kind in ("", PROTOBUF, "application/protobuf", "application/octet-stream"):
        return read_response(body)
    if kind != "application/json":
        return not_otlp(f"content type {sanitize_message(kind)!r}")
    try:
        partial = msgspec.json.decode(body, type=_JsonResponse).partial_success
        return counted(int(partial.rejected_spans), partial.error_message) if partial else counted(0, "")
    except ValueError:
        return not_otlp("JSON that is no ExportTraceServiceResponse")


def _untrusted(error: BaseException) -> bool:
    """Whether the server's certificate is the reason: it will be the same in five minutes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
