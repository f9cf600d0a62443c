"""``DeadlineTransport``: HTTP in which the timeout bounds an attempt as a whole, from the connection to the last byte.

httpx bounds each wait for bytes, so an answer that comes byte by byte, in its headers or its body, has no end. Here
every wait gets what is left until one moment.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpcore
import httpx

SLICE: Final = 16 << 10
"""Bytes handed to the system at once: a reader that takes them one by one must not stretch the time."""

_KEPT_ALIVE: Final = 5.0


class DeadlineTransport(httpx.BaseTransport):
    """A transport for one server, or a client's. A request's timeout, the shortest of its four, bounds all of it.

    url: what will be asked, which tells whether TLS is needed. tls: None: the authorities that httpx brings along.
    Reads no environment: proxies and certificates in it would be settings that nobody passed in.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, connections: int = 100) -> None:
        # Reading the authorities takes longer than sending hundreds of runs, and plain HTTP has no use for them.
        if tls is None and not url.lower().startswith("http://"):
            tls = httpx.create_ssl_context(trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEPT_ALIVE,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx.BaseTransport``. The deadline goes on to hold while the body is read."""
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, "timeout": _current_deadline(request.extensions.get("timeout", {}))},
        )
        with _as_httpx():
            answer = self._pool.handle_request(asked)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    def close(self) -> None:
        """Closes the connections."""
        self._pool.close()


class _Deadline(float):
    """Seconds, as httpcore hands them on to each wait, that know when they began."""

    __slots__ = ("moment",)

    def __init__(self, seconds: float) -> None:
        self.moment = time.monotonic() + seconds


def _current_deadline(timeouts: dict[str, float | None]) -> dict[str, float]:
    given = [seconds for seconds in timeouts.values() if seconds is not None]
    return dict.fromkeys(("connect", "read", "write", "pool"), _Deadline(min(given))) if given else {}


def _remaining(timeout: float | None, late: type[Exception]) -> float | None:
    """What is left of a timeout now; raises ``late`` when that is nothing."""
    if not isinstance(timeout, _Deadline):
        return timeout
    seconds = timeout.moment - time.monotonic()
    if seconds <= 0:
        raise late("timed out")
    return seconds


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), SLICE):
            self._inner.write(buffer[start : start + SLICE], _remaining(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _remaining(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Tries the host's addresses in turn, each for its part of what is left; the library would give all to each."""
        addresses = _addresses(host, port)
        for index, address in enumerate(addresses):
            left = _remaining(timeout, httpcore.ConnectTimeout)
            part = None if left is None else left / (len(addresses) - index)
            try:
                return _Stream(self._inner.connect_tcp(address, port, part, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(addresses) - 1:
                    raise
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
    """httpcore's errors as httpx's of the same names, which callers know."""
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
