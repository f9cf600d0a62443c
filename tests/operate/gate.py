"""A relay in front of a server that a test shuts and opens: the server is away, and back with all that it has."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Final

_SIZE: Final = 1 << 16


class Gate:
    """Relays TCP from a port of its own to an address of loopback while it is open. Shut, it refuses connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shut()
        for thread in self._threads:
            thread.join(timeout=10)

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    def open(self) -> None:
        """Takes connections from now on."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        self._start(self._accept, listener)

    def shut(self) -> None:
        """Refuses connections from now on, and cuts those that there are."""
        with self._lock:
            cut, self._open = self._open, set()
            listener, self._listener = self._listener, None
        if listener is not None:
            _cut(listener)
        for connection in cut:
            _cut(connection)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    shut = self._listener is not listener
                    if not shut:
                        self._open |= {client, server}
                if shut:
                    _cut(client)
                    _cut(server)
                    return
                self._start(self._relay, client, server)
                self._start(self._relay, server, client)

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(_SIZE):
                target.sendall(received)
        with self._lock:
            self._open -= {source, target}
        _cut(source)
        _cut(target)

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


def _cut(connection: socket.socket) -> None:
    """``close`` alone would leave a thread that waits in it waiting."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
