"""A balancer for tests: TCP connections of clients, in turn to the servers behind it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit


class Balancer:
    """Listens on a free port of loopback. A connection goes to the next server that takes it.

    url: Its address. No connection is moved to another server once it has one.
    """

    def __init__(self, servers: list[str]) -> None:
        self._servers = list(servers)
        self._lock = threading.Lock()
        self._next = 0
        self._routes: dict[int, str] = {}
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def replace(self, old: str, new: str) -> None:
        """Put a server in the place of another."""
        with self._lock:
            self._servers[self._servers.index(old)] = new

    def route(self, port: int) -> str:
        """Return the server of the connection that came from this port of a client; empty if it has none yet."""
        with self._lock:
            return self._routes.get(port, "")

    def _accept(self) -> None:
        while True:
            try:
                client, (_, port) = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, port), daemon=True).start()

    def _serve(self, client: socket.socket, port: int) -> None:
        with self._lock:
            first, servers = self._next, self._servers
            self._next += 1
            order = [servers[(first + number) % len(servers)] for number in range(len(servers))]
            self._routes.pop(port, None)
        with client:
            for url in order:
                parts = urlsplit(url)
                try:
                    server = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
                except OSError:
                    continue
                server.settimeout(None)
                with self._lock:
                    self._routes[port] = url
                with server:
                    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                    back.start()
                    _copy(client, server)
                    back.join()
                return


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on all bytes, and the end."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
