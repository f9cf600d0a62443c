"""The HTTP client of every outgoing request: one deadline, a bounded body, TLS, and errors as text.

httpx applies a timeout to each read, so a response that arrives byte by byte, in its headers or its body, never ends.
``DeadlineTransport`` gives every read the time that remains until one deadline, from the connection to the last byte.
"""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

import httpcore
import httpx
import zstandard

from runspan._version import __version__
from runspan.errors import BackendRefused, BackendTimeout, BackendUnreachable, ConfigError, QueryError
from runspan.http.urls import sanitize_message

_WRITE_BYTES: Final = 16 << 10
"""Bytes passed to the system at once: a server that reads them one by one must not extend the deadline."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_WINDOWS: Final = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}
"""Content encoding → window of zlib."""
_ZSTD_WINDOW: Final = 8 << 20
"""Bytes. RFC 9659 allows no larger window in HTTP."""
_ZSTD_SLICE: Final = 128
"""Bytes that are decoded at once: a block of 4 can become 128 KiB."""

_KEEPALIVE_SECONDS: Final = 5.0


class DeadlineTransport(httpx.BaseTransport):
    """A transport whose requests have one deadline each: the shortest of the request's four httpx timeouts.

    It reads no proxies from the environment: they would be configuration that no caller passed in.

    url: The server's URL. TLS is set up unless its scheme is ``http``.
    tls: None: trust the certificate authorities in ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, without either httpx's own.
    connections: The most connections at once, all of which are kept alive.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, connections: int = 100) -> None:
        # Reading the authorities takes longer than sending hundreds of runs, and plain HTTP has no use for them.
        if tls is None and not url.lower().startswith("http://"):
            tls = httpx.create_ssl_context()
        self._backend = _Backend()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=self._backend,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see ``httpx.BaseTransport``. The deadline also holds while the body is read."""
        url = request.url
        outgoing = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, "timeout": _current_deadline(request.extensions.get("timeout", {}))},
        )
        with _as_httpx():
            response = self._pool.handle_request(outgoing)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response.stream), extensions=response.extensions
        )

    def exchange(self, request: httpx.Request, max_bytes: int) -> tuple[httpx.Response, bytes]:
        """Send a request and return the response with its decoded body, longer than ``max_bytes`` if it was cut there.

        A client around the transport would add redirects, cookies and a log line with the URL's query, and cost more
        than the request.
        """
        response = self.handle_request(request)
        try:
            return response, _read_body(response, max_bytes)
        finally:
            response.close()

    def close(self) -> None:
        """Close the connections, also those of requests under way, which fail. Idempotent."""
        self._pool.close()
        self._backend.close()


def _read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the decoded body. httpx would decode each chunk of it without a bound, and encodings that nobody asked
    for: 64 KiB of zstd can become 2 GiB."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    decode = None if encoding in ("", "identity") else _decoder(encoding)
    chunks: list[bytes] = []
    size = 0
    for raw in response.iter_raw():
        chunk = raw if decode is None else decode(raw, max_bytes + 1 - size)
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            return b"".join(chunks)
    if decode is not None and not decode.is_complete:
        raise httpx.DecodingError("the body ends inside its content encoding")
    return b"".join(chunks)


def _decoder(encoding: str) -> _ZlibDecoder | _ZstdDecoder:
    if encoding == "zstd":
        return _ZstdDecoder()
    if encoding in _WINDOWS:
        return _ZlibDecoder(encoding)
    raise httpx.DecodingError(f"content encoding {encoding[:40]!r}, which the request does not accept")


class _ZstdDecoder:
    """Decodes zstd, of which several frames may follow each other."""

    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        self._is_between = True
        """Whether no frame has begun since the last one ended."""

    @property
    def is_complete(self) -> bool:
        return self._is_between

    def __call__(self, data: bytes, most: int) -> bytes:
        """Return what the data becomes, or the beginning of it, which is longer than ``most`` bytes then."""
        chunks: list[bytes] = []
        size = start = 0
        try:
            while start < len(data) and size <= most:
                if self._decoder.eof:
                    self._decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
                piece = data[start : start + _ZSTD_SLICE]
                chunks.append(self._decoder.decompress(piece))
                start += len(piece) - len(self._decoder.unused_data)
                size += len(chunks[-1])
                self._is_between = self._decoder.eof
        except zstandard.ZstdError as error:
            raise httpx.DecodingError(str(error)) from None
        return b"".join(chunks)


class _ZlibDecoder:
    """Decodes gzip or deflate."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._decoder = zlib.decompressobj(_WINDOWS[encoding])
        self._has_begun = False

    @property
    def is_complete(self) -> bool:
        return self._decoder.eof or not self._has_begun

    def __call__(self, data: bytes, most: int) -> bytes:
        """Return what the data becomes, ``most`` bytes of it at most."""
        is_first, self._has_begun = not self._has_begun, self._has_begun or bool(data)
        try:
            return self._decoder.decompress(data, most)
        except zlib.error as error:
            if not (is_first and self._encoding == "deflate"):
                raise httpx.DecodingError(str(error)) from None
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)  # as some servers send it, against the RFC
        return self(data, most)


class _Deadline(float):
    """A timeout in seconds, as httpcore passes it to each read and write, with the time at which it ends."""

    __slots__ = ("ends",)

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds


def _current_deadline(timeouts: dict[str, float | None]) -> dict[str, float]:
    given = [seconds for seconds in timeouts.values() if seconds is not None]
    return dict.fromkeys(("connect", "read", "write", "pool"), _Deadline(min(given))) if given else {}


def _remaining(timeout: float | None, expired: type[Exception]) -> float | None:
    """Return the seconds that remain of a timeout; raise ``expired`` if there are none."""
    if not isinstance(timeout, _Deadline):
        return timeout
    seconds = timeout.ends - time.monotonic()
    if seconds <= 0:
        raise expired("timed out")
    return seconds


class _Streams:
    """The open streams. httpcore forgets a connection that is closed before it is established."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: WeakSet[_Stream] = WeakSet()
        self._is_closed = False

    def add(self, inner: httpcore.NetworkStream) -> _Stream:
        """Return the stream to use. ConnectError after ``close``."""
        stream = _Stream(inner, self)
        with self._lock:
            if not self._is_closed:
                self._open.add(stream)
                return stream
        stream.close()
        raise httpcore.ConnectError("the client is closed")

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            left = list(self._open)
        for stream in left:
            stream.close()


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, streams: _Streams) -> None:
        self._inner = inner
        self._streams = streams

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._inner.write(buffer[start : start + _WRITE_BYTES], _remaining(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = _remaining(timeout, httpcore.ConnectTimeout)
        return self._streams.add(self._inner.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self._streams = _Streams()

    def close(self) -> None:
        self._streams.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in turn, each for its share of the time; httpcore would give all of it to each."""
        addresses = _addresses(host, port)
        for index, address in enumerate(addresses):
            seconds = _remaining(timeout, httpcore.ConnectTimeout)
            share = None if seconds is None else seconds / (len(addresses) - index)
            try:
                inner = self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(addresses) - 1:
                    raise
            else:
                return self._streams.add(inner)
        raise httpcore.ConnectError(f"{host} has no address")


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise httpcore.ConnectError(str(error)) from error
    return [str(address[0]) for _, _, _, _, address in found]


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._inner

    def close(self) -> None:
        self._inner.close()


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise httpcore's errors as httpx's errors of the same names, which callers handle."""
    try:
        yield
    except Exception as error:
        kind = getattr(httpx, type(error).__name__, None) if isinstance(error, _ERRORS) else None
        if kind is None:
            raise
        raise kind(str(error)) from error


_ERRORS: Final = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


USER_AGENT: Final = f"runspan/{__version__}"

_ACCEPT_ENCODING: Final = "zstd, gzip"

_HUNG_UP: Final = (httpx.RemoteProtocolError, httpx.ReadError)
_INTERRUPTED_SECONDS: Final = 5
"""A server that is not there hangs up sooner."""
_TEXT_BYTES: Final = 64 << 10
"""Of a response that are searched for secrets before its text is cut, so that no secret is cut in two and missed."""


class ResponseTooLarge(BackendRefused):
    """The body of a response exceeds the bound; the same request again would cost as much."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Paths of the PEM files for TLS; None where the default applies."""

    certificate: str | None = None
    """The certificate authorities to trust."""

    client_certificate: str | None = None
    client_key: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the context of these files, None if there are none. ConfigError if one cannot be loaded."""
        if not (self.certificate or self.client_certificate):
            return None
        try:
            if self.certificate:
                context = ssl.create_default_context(cafile=self.certificate)
            else:
                context = httpx.create_ssl_context()
            if self.client_certificate:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except OSError as error:
            raise self._unreadable(error) from None
        return context

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the bytes of the three files in the order of the fields. ConfigError if one cannot be read."""
        try:
            return _read(self.certificate), _read(self.client_certificate), _read(self.client_key)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> ConfigError:
        files = ", ".join(filter(None, (self.certificate, self.client_certificate, self.client_key)))
        got = error.strerror or str(error)
        return ConfigError(where=f"TLS files {files}", expected="readable PEM files", got=got)


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response."""

    status: int
    content: bytes
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What the server may echo and no message may contain."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def text(self) -> str:
        """Return the beginning of the content on one line, without secrets."""
        return sanitize_message(self.content[:_TEXT_BYTES].decode("utf-8", "replace"), self.secrets)


@dataclass(frozen=True, slots=True)
class ErrorHints:
    """What to do next after each failure of a request."""

    unreachable: str = ""
    timeout: str = ""
    too_large: str = ""
    interrupted: str = ""
    """Instead of ``unreachable``, where the server has worked for a while before it hung up."""


NO_HINTS: Final = ErrorHints()


class HttpClient:
    """Send GET requests to one server, bounded in time and size, and turn failures into errors. Thread-safe.

    Redirects are not followed, because they would carry secrets elsewhere. Proxies and logins of the environment are
    ignored, because no caller passed them in.

    base: The URL to which paths are appended.
    name: The server in errors; the base by default.
    max_bytes: Of a decoded body.
    """

    def __init__(
        self,
        base: str,
        *,
        name: str = "",
        headers: Mapping[str, str],
        tls: TlsConfig | None = None,
        connections: int,
        max_bytes: int,
        hints: ErrorHints,
    ) -> None:
        self._base = base
        self._name = name or base
        self._max_bytes = max_bytes
        self._hints = hints
        self._headers = {"user-agent": USER_AGENT, "accept-encoding": _ACCEPT_ENCODING, **headers}
        self._transport = DeadlineTransport(base, tls=tls.context() if tls else None, connections=connections)

    def get(
        self,
        path: str,
        parameters: Mapping[str, str | int] | None,
        *,
        headers: Mapping[str, str],
        timeout: float,
        secrets: tuple[str, ...] = (),
    ) -> Response:
        """Return the response to one request, whatever its status.

        timeout: Seconds, from the connection to the last byte.
        secrets: What no message may contain.

        Raises BackendUnreachable, BackendTimeout, ResponseTooLarge, or QueryError for parameters too long for a URL.
        """
        began = time.monotonic()
        try:
            request = httpx.Request(
                "GET",
                self._base + path,
                params=dict(parameters or {}) or None,
                headers={**self._headers, **headers},
                extensions={"timeout": {"read": timeout}},
            )
            response, body = self._transport.exchange(request, self._max_bytes)
        except httpx.InvalidURL:
            # httpx allows 64 KiB, and encodes everything else.
            raise QueryError(
                where=self._name,
                expected="filters, ids and a tenant that fit into a URL",
                got="more than 64 KiB of them",
                hint="use shorter ones",
            ) from None
        except httpx.TimeoutException as error:
            raise BackendTimeout(
                where=self._name,
                expected=f"a complete response within {timeout:.3g} seconds",
                got=type(error).__name__,
                hint=self._hints.timeout,
            ) from None
        except httpx.HTTPError as error:
            got, hint = describe_error(error, secrets), self._hints.unreachable
            seconds = time.monotonic() - began
            if isinstance(error, _HUNG_UP) and seconds > _INTERRUPTED_SECONDS:
                got, hint = f"{got} after {seconds:.0f} seconds", self._hints.interrupted or hint
            raise BackendUnreachable(where=self._name, expected="a response", got=got, hint=hint) from None
        if len(body) > self._max_bytes:
            raise ResponseTooLarge(
                where=self._name,
                expected=f"a response of at most {self._max_bytes} bytes",
                got="a larger one",
                hint=self._hints.too_large,
            )
        return Response(response.status_code, body, response.headers, secrets)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._transport.close()


def describe_error(error: Exception, secrets: Iterable[str] = ()) -> str:
    """Return an error of httpx as text: its class, and its message without secrets."""
    message = sanitize_message(str(error), secrets)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
