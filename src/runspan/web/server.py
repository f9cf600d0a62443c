"""``WebServer``: runs the application on waitress and shuts it down gracefully; prints nothing."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from waitress import create_server, wasyncore  # type: ignore[import-untyped]
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.task import ErrorTask  # type: ignore[import-untyped]

from runspan.errors import ConfigError
from runspan.web.config import MIB, WebConfig
from runspan.web.errors import JSON, error_body
from runspan.web.middleware import SECURITY_HEADERS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_CODES = {413: "PAYLOAD_TOO_LARGE", 500: "INTERNAL_ERROR"}


class WebServer:
    """An application that listens as soon as it is created. ``run`` serves until ``stop`` is called."""

    def __init__(
        self,
        app: WSGIApplication,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        threads: int = 8,
        max_body: int = 0,
        trusted_proxy: str = "",
    ) -> None:
        """Listen for connections. Raises ConfigError if that is not possible.

        - ``host`` and ``port`` are the address; port 0 means a free one.
        - ``threads`` is the number of requests that are handled at once.
        - ``max_body`` is the application's limit, in bytes. A body of up to twice this size is read, so that the
          application can refuse it in the form that the client reads; a larger one is refused while it arrives.
        - ``trusted_proxy`` is the address of a proxy whose ``X-Forwarded-For`` is believed: its last entry, which the
          proxy wrote, is the client's address. Without one the header is ignored, since any client can send it.
        """
        proxy_options: dict[str, Any] = {}
        if trusted_proxy:
            proxy_options = {
                "trusted_proxy": _parse_address(trusted_proxy),
                "trusted_proxy_headers": {"x-forwarded-for"},
            }
        self._stopping = threading.Event()
        self._map: dict[int, Any] = {}
        self._socket = _listen(host, port)
        self.host: str = self._socket.getsockname()[0]
        self.port: int = self._socket.getsockname()[1]
        self._server: Any = create_server(
            app,
            map=self._map,
            sockets=[self._socket],
            threads=threads,
            ident="runspan",
            max_request_body_size=2 * (max_body or WebConfig().max_body) + MIB,
            inbuf_overflow=4 * MIB,
            connection_limit=1000,
            asyncore_use_poll=True,
            **proxy_options,
        )
        self._server.channel_class = _Channel
        # It logs a warning for each request that waits for a thread.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self, grace: float = 30.0) -> None:
        """Serve until stopped; then accept no new connections, answer the requests that were read, and close.

        ``grace`` is the number of seconds that running requests have to finish.
        """
        while not self._stopping.is_set():
            wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
        self._server.accepting = False
        self._server.del_channel()
        self._socket.close()
        deadline = time.monotonic() + grace
        while any(map(_is_busy, self._channels())) and time.monotonic() < deadline:
            wasyncore.loop(timeout=0.05, use_poll=True, map=self._map, count=1)
        self._server.task_dispatcher.shutdown(timeout=1)
        for channel in self._channels():
            channel.handle_close()
        wasyncore.close_all(self._map, ignore_all=True)

    def stop(self) -> None:
        """Make ``run`` return soon. May be called from any thread, from a signal handler, and twice."""
        self._stopping.set()
        with suppress(OSError):  # it may be closed already
            self._server.pull_trigger()

    def _channels(self) -> list[Any]:
        return [item for item in self._map.values() if isinstance(item, HTTPChannel)]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "cannot listen", where=f"{host}:{port}", got=str(error), hint="choose another host or port"
        ) from error


def _parse_address(text: str) -> str:
    """Return an address in the form in which the system reports peers."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        raise ConfigError(
            where="trusted proxy",
            expected="the address that the proxy's connections come from, such as 127.0.0.1",
            got=repr(text),
        ) from None


def _is_busy(channel: Any) -> bool:
    """Whether a request is being read or handled, or a response is being sent."""
    return bool(channel.requests or channel.request or channel.total_outbufs_len)


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Makes waitress refuse requests, such as those with too large a body, in the form of the application's errors."""

    def execute(self) -> None:
        error = self.request.error
        body = error_body(_CODES.get(error.code, "VALIDATION_ERROR"), f"{error.reason}: {error.body}").encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend([("Content-Type", JSON), *SECURITY_HEADERS.items()])
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    error_task_class = _ErrorTask
