"""``WebServer``: runs the application on waitress and shuts it down gracefully; prints nothing."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore  # type: ignore[import-untyped]
from waitress.adjustments import Adjustments  # type: ignore[import-untyped]
from waitress.server import TcpWSGIServer  # type: ignore[import-untyped]

from runspan.errors import ConfigError
from runspan.system import most_open_files
from runspan.web.config import MIB, WebConfig
from runspan.web.connection import BodyBudget, Connection
from runspan.web.dispatcher import Dispatcher
from runspan.web.limits import ServerLimits

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger("runspan.server")

_SWEEP_EVERY: Final = 0.5
"""Seconds between two looks at what takes too long."""
_ACCEPTED_AT_ONCE: Final = 8
_IDLE_AT_LEAST: Final = 0.25
"""Seconds for which a connection has been idle that may be closed for another one: its request may be on its way."""
_OTHER_FILES: Final = 256
"""File descriptors that are kept for the store, spooled bodies and connections to a backend."""
_FILES_FREED: Final = 16
"""Connections that are closed when the process has no file descriptor left."""
_FILES_PAUSE: Final = 10.0
"""Seconds for which no more connections are open than after that."""
_READING_GRACE: Final = 3.0
"""Seconds for which a stopping server reads requests that have arrived in part."""


class WebServer:
    """An application that listens as soon as it is created. ``run`` serves until ``stop`` is called."""

    def __init__(
        self,
        app: WSGIApplication,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: ServerLimits | None = None,
        max_body: int = 0,
        trusted_proxy: str = "",
    ) -> None:
        """Listen for connections. Raises ConfigError if that is not possible.

        - ``host`` and ``port`` are the address; port 0 means a free one.
        - ``max_body`` is the application's limit, in bytes. The application refuses a larger body by its
          Content-Length; a body without one is read up to the limit, and then refused.
        - ``trusted_proxy`` is the address of a proxy whose ``X-Forwarded-For`` is believed: its last entry, which the
          proxy wrote, is the client's address. Without one the header is ignored, since any client can send it. The
          proxy's connections are not limited as those of a single client are.
        """
        proxy = _parse_address(trusted_proxy) if trusted_proxy else ""
        self._stopping = threading.Event()
        self._ending = threading.RLock()  # a signal may call ``stop`` while ``run`` holds it
        self._ended = False
        self._map: dict[int, Any] = {}
        self._socket = _listen(host, port)
        self.host: str = self._socket.getsockname()[0]
        self.port: int = self._socket.getsockname()[1]
        self._server = _Listener(
            app,
            self._socket,
            self._map,
            limits or ServerLimits(),
            max_body or WebConfig().max_body,
            proxy,
        )

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def run(self, grace: float = 5.0) -> None:
        """Serve until stopped; then accept no new connections, answer the requests that were read, and close.

        ``grace`` is the number of seconds that running requests have to finish. It returns a second later at most.
        """
        while not self._stopping.is_set():
            self._server.turn(_SWEEP_EVERY)
        self._server.stop()
        self._socket.close()
        end = time.monotonic() + grace
        reading_end = time.monotonic() + min(grace, _READING_GRACE)
        while (now := time.monotonic()) < end:
            if not any(each.is_busy or (each.is_reading and now < reading_end) for each in self._server.connections):
                break
            self._server.turn(0.05)
        self._server.task_dispatcher.shutdown(timeout=min(1.0, max(0.1, end + 1.0 - time.monotonic())))
        for connection in self._server.connections:
            connection.handle_close()
        with self._ending:
            self._ended = True
            if not self._server.task_dispatcher.threads:  # those that still work may pull it
                self._server.trigger.close()
        self._server.selector.close()

    def stop(self) -> None:
        """Make ``run`` return soon. May be called from any thread, from a signal handler, and twice."""
        self._stopping.set()
        with self._ending:
            if not self._ended:
                self._server.pull_trigger()


class _Listener(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """Accepts connections, and keeps their number, their times and their unread responses within the limits.

    It watches each file descriptor for what was wanted last, so that an idle connection costs nothing, and that of a
    request that is being handled is seldom touched. (The loop of waitress asks every connection in each turn.)
    """

    channel_class = Connection

    def __init__(
        self,
        app: WSGIApplication,
        listening: socket.socket,
        map: dict[int, Any],
        limits: ServerLimits,
        max_body: int,
        trusted_proxy: str,
    ) -> None:
        self.limits = limits
        self.max_body = max_body
        self.bodies = BodyBudget(max(limits.bodies, 2 * max_body))
        self.trusted_proxy = trusted_proxy
        self.stopping = False
        self.has_unsent = False
        """Whether a response was handed over that could not be sent at once."""
        self.selector = DefaultSelector()
        self.returned: deque[Connection] = deque()
        """Connections that threads of the dispatcher have given back."""
        self._clients: Counter[str] = Counter()
        self._most = self._usual_most = _most_connections(limits.connections)
        self._most_until = 0.0
        self._accept_after = 0.0
        self._next_sweep = 0.0
        self._logged: dict[str, float] = {}
        super().__init__(
            app,
            map,
            _sock=listening,
            dispatcher=Dispatcher(limits.concurrency, limits.queue_time),
            adj=Adjustments(
                ident="runspan",
                max_request_header_size=limits.header_bytes,
                max_request_body_size=1 << 62,  # the application refuses a body that is too large
                inbuf_overflow=4 * MIB,
                outbuf_overflow=1 << 62,  # bounded by ``limits.unsent``
                log_socket_errors=False,
                clear_untrusted_proxy_headers=False,
                cleanup_interval=1 << 62,
            ),
            sockinfo=(listening.family, listening.type, listening.proto, listening.getsockname()),
            bind_socket=False,
        )
        self.selector.register(self._fileno, EVENT_READ)
        self.selector.register(self.trigger._fileno, EVENT_READ)

    @property
    def connections(self) -> list[Connection]:
        return list(self.active_channels.values())

    def stop(self) -> None:
        """Accept no further connections, and close those that are idle."""
        self.stopping = True
        self.accepting = False
        if not self._accept_after:
            self.selector.unregister(self._fileno)
        self.del_channel()
        for connection in self.connections:
            if not connection.is_busy and not connection.is_reading:
                connection.handle_close()

    def turn(self, timeout: float) -> None:
        """Do what can be done without waiting, after waiting so many seconds for the first of it."""
        for key, events in self.selector.select(timeout):
            item = self._map.get(key.fd)
            if isinstance(item, Connection):
                with self._closing_on_error(item):
                    _act(item, events)
            elif item is not None:  # it may have been closed for another one
                wasyncore.read(item)
        for _ in range(len(self.returned)):
            connection = self.returned.popleft()
            with self._closing_on_error(connection):
                connection.watch()
        self._sweep()

    @contextmanager
    def _closing_on_error(self, connection: Connection) -> Iterator[None]:
        """Close a connection after an unexpected error, so that the others go on."""
        try:
            yield
        except Exception:
            connection.handle_error()

    def _sweep(self) -> None:
        if self.has_unsent:
            self.has_unsent = False
            self._bound_unsent()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_EVERY
            self.task_dispatcher.refuse_expired()
            for connection in self.connections:
                with self._closing_on_error(connection):
                    connection.enforce_times(now)
            if now >= self._most_until:
                self._most = self._usual_most
        if self._accept_after and now >= self._accept_after and self.accepting:
            self._accept_after = 0.0
            self.selector.register(self._fileno, EVENT_READ)

    def _pause(self, seconds: float) -> None:
        """Accept no connections for a while."""
        self._accept_after = time.monotonic() + seconds
        self.selector.unregister(self._fileno)

    def handle_accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._make_room():
                self._pause(_IDLE_AT_LEAST / 4)
                return
            try:
                accepted, address = self.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._free_files(error)
                return
            client = self._client_of(address[0])
            if not self._make_room_of(client):
                accepted.close()
                continue
            try:
                self.set_socket_options(accepted)
                connection = self.channel_class(self, accepted, address, self.adj, map=self._map)
            except OSError:  # the client has closed it already
                accepted.close()
                continue
            connection.client = client
            self._clients[client] += 1
            connection.watch()

    def forget(self, connection: Connection) -> None:
        """Count a connection no longer."""
        self._clients[connection.client] -= 1
        if self._clients[connection.client] <= 0:
            del self._clients[connection.client]

    def _client_of(self, address: str) -> str:
        if address == self.trusted_proxy:
            return ""
        return str(ip_network((address.partition("%")[0], 64), strict=False)) if ":" in address else address

    def _make_room(self) -> bool:
        """Whether there is room for another connection, if need be that of an idle one."""
        if len(self.active_channels) < self._most:
            return True
        self._log("total", f"{len(self.active_channels)} connections are open: the oldest idle one is closed")
        return self._close_idle(1)

    def _make_room_of(self, client: str) -> bool:
        """Whether there is room for another connection of a client, if need be that of an idle one."""
        if not client or self._clients[client] < self.limits.client_connections:
            return True
        self._log("client", f"{client} has {self._clients[client]} connections: its oldest idle one is closed")
        return self._close_idle(1, client)

    def _close_idle(self, count: int, client: str | None = None, *, at_least: float = _IDLE_AT_LEAST) -> bool:
        """Close the connections, of a client or of all, that have been without a request at work for longest."""
        before = time.monotonic() - at_least
        idle = [
            each
            for each in self.connections
            if not each.requests and each.since < before and client in (None, each.client)
        ]
        for connection in sorted(idle, key=lambda each: each.since)[:count]:
            connection.handle_close()
        return bool(idle)

    def _free_files(self, error: OSError) -> None:
        """Give up connections for a while after the system refused a file descriptor, so that others have some."""
        self._most = max(1, min(self._most, len(self.active_channels)) - _FILES_FREED)
        self._most_until = time.monotonic() + _FILES_PAUSE
        self._log("files", f"cannot accept connections: {error}; at most {self._most} for {_FILES_PAUSE:g} s")
        if not self._close_idle(max(1, len(self.active_channels) - self._most), at_least=0):
            self._pause(_SWEEP_EVERY)

    def _bound_unsent(self) -> None:
        unread = [each for each in self.connections if not each.requests and each.total_outbufs_len]
        total = sum(each.total_outbufs_len for each in unread)
        for connection in sorted(unread, key=lambda each: each.since):
            if total <= self.limits.unsent:
                return
            total -= connection.total_outbufs_len
            self._log("unsent", f"closing connections with unread responses, such as of {connection.addr[0]}")
            connection.handle_close()

    def _log(self, kind: str, message: str) -> None:
        """Log a warning, one of each kind a minute."""
        now = time.monotonic()
        if now >= self._logged.get(kind, 0.0):
            self._logged[kind] = now + 60.0
            logger.warning("%s", message)


def _act(connection: Connection, events: int) -> None:
    """Read and write as far as a connection can."""
    if events & EVENT_READ:
        if connection.readable():
            wasyncore.read(connection)
        else:
            connection.unwatch()
    if events & EVENT_WRITE and connection.connected:
        wasyncore.write(connection)
    connection.watch()


def _most_connections(wanted: int) -> int:
    """Return how many connections the system allows beside the other files of the process."""
    files = most_open_files()
    return wanted if math.isinf(files) else max(1, min(wanted, int(max(files - _OTHER_FILES, files // 2))))


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
            got=repr(text[:100]),
        ) from None
