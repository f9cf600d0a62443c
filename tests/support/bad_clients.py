"""Clients that use a server badly: they do not read, send slowly, send in part, or only connect."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LARGE: dict[str, object] = {"id": "large", "status": "completed", "output": "x" * 2_000_000, "steps": []}
"""A run whose document fills the buffers of a connection."""

Behaviour = Callable[[socket.socket, threading.Event], None]


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """Return the bytes of a request to a server on this machine."""
    return "\r\n".join((f"{line} HTTP/1.1", "Host: localhost", *headers, "", "")).encode() + body


def read_nothing(connection: socket.socket, stop: threading.Event) -> None:
    """Ask for a large document again and again, and read no response."""
    while not stop.is_set():
        connection.sendall(request("GET /api/v1/runs/large") * 100)


def send_headers_slowly(connection: socket.socket, stop: threading.Event) -> None:
    """Send a byte of a header now and then."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    while not stop.wait(0.1):
        connection.sendall(b"x")


def send_body_slowly(connection: socket.socket, stop: threading.Event) -> None:
    """Announce a large body, and send a byte of it now and then."""
    connection.sendall(request("POST /api/v1/runs", "Content-Type: application/json", "Content-Length: 1000000"))
    while not stop.wait(0.1):
        connection.sendall(b" ")


def send_half(connection: socket.socket, stop: threading.Event) -> None:
    """Send half of a request, and close one direction or both."""
    head = request("POST /api/v1/runs", "Content-Type: application/json", "Content-Length: 100000")
    for part in (head[:30], head + b"{"):
        connection.sendall(part)
        stop.wait(0.02)
    connection.shutdown(socket.SHUT_WR)
    stop.wait(0.02)


def only_connect(connection: socket.socket, stop: threading.Event) -> None:
    """Send nothing."""
    connection.settimeout(0.2)
    while not stop.is_set():
        with suppress(TimeoutError):
            if not connection.recv(1):
                return


BEHAVIOURS: dict[str, Behaviour] = {
    "unread responses": read_nothing,
    "slow headers": send_headers_slowly,
    "slow bodies": send_body_slowly,
    "half requests": send_half,
    "idle connections": only_connect,
}


@dataclass
class BadClients:
    """Clients that come back whenever the server has closed their connection."""

    port: int
    stop: threading.Event = field(default_factory=threading.Event)
    closed: int = 0
    """Connections that the server has ended, or that ended by themselves."""

    def run(self, behave: Behaviour, source: str) -> None:
        while not self.stop.is_set():
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(0.5)
                try:
                    connection.bind((source, 0))
                    connection.connect(("127.0.0.1", self.port))
                    while not self.stop.is_set():
                        with suppress(TimeoutError):  # sent as far as the server reads
                            behave(connection, self.stop)
                            break
                except OSError:
                    self.stop.wait(0.1)
                self.closed += 1


@contextmanager
def bad_clients(port: int, behaviours: list[Behaviour], count: int, sources: int = 1) -> Iterator[BadClients]:
    """Run clients of each behaviour, from so many addresses of this machine, until the block ends."""
    clients = BadClients(port)
    threads = [
        threading.Thread(target=clients.run, args=(behave, f"127.0.0.{1 + at % sources}"), daemon=True)
        for behave in behaviours
        for at in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.stop.set()
        for thread in threads:
            thread.join(10)
