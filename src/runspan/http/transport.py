"""``DeadlineTransport``: HTTP whose timeout bounds a complete attempt, from the connection to the last byte.

httpx applies a timeout to each read, so a response that arrives byte by byte, in its headers or its body, never ends.
Here every read gets the time that remains until one deadline.
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

_WRITE_BYTES: Final = 16 << 10
"""Bytes passed to the system at once: a server that reads them one by one must not extend the deadline."""

_KEEPALIVE_SECONDS: Final = 5.0


class DeadlineTransport(httpx.BaseTransport):
    """A transport whose requests have one deadline each: the shortest of the request's four httpx timeouts.

    It reads no environment: proxies and certificates there would be configuration that no caller passed in.

    url: The server's URL. TLS is set up unless its scheme is ``http``.
    tls: None: trust httpx's own certificate authorities.
    connections: The most connections at once, all of which are kept alive.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, connections: int = 100) -> None:
        # Reading the authorities takes longer than sending hundreds of runs, and plain HTTP has no use for them.
        if tls is None and not url.lower().startswith("http://"):
            tls = httpx.create_ssl_context(trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEEPALIVE_SECONDS,
            network_backend=_Backend(),
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

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


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


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

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
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, seconds))

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
        """Try the host's addresses in turn, each for its share of the time; httpcore would give all of it to each."""
        addresses = _addresses(host, port)
        for index, address in enumerate(addresses):
            seconds = _remaining(timeout, httpcore.ConnectTimeout)
            share = None if seconds is None else seconds / (len(addresses) - index)
            try:
                return _Stream(self._inner.connect_tcp(address, port, share, local_address, socket_options))
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
