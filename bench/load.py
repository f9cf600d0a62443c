"""The load client as a process: persistent connections to several servers, one batch of requests after the other.

Run as ``python -m bench.load OPTIONS``; its last line has, for each contestant, seconds a request in each round, by the
clock and by the server's processor time.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import Any

from bench.figures import take_turns
from bench.machine import cpu_seconds, pin


class Client:
    """Sends requests over its connections, one at a time on each."""

    def __init__(self, port: int, connections: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(each, selectors.EVENT_READ)

    def run(self, requests: list[bytes]) -> None:
        """Send all of them and read every response, which must be a success."""
        waiting = iter(requests)
        left = len(requests)
        buffers: dict[Any, bytearray] = {}
        for each in self._sockets:
            request = next(waiting, None)
            if request is not None:
                each.sendall(request)
                buffers[each] = bytearray()
        while left:
            for key, _ in self._selector.select():
                connection: Any = key.fileobj
                chunk = connection.recv(1 << 18)
                if not chunk:
                    raise RuntimeError("the server hung up")
                buffer = buffers[connection]
                buffer += chunk
                if not _is_complete(buffer):
                    continue
                if not buffer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(bytes(buffer[:300]).decode(errors="replace"))
                buffer.clear()
                left -= 1
                request = next(waiting, None)
                if request is not None:
                    connection.sendall(request)


def _is_complete(buffer: bytearray) -> bool:
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return False
    header = bytes(buffer[:end]).lower()
    start = header.index(b"content-length:") + 15
    return len(buffer) >= end + 4 + int(header[start:].split(b"\r\n", 1)[0])


def main() -> None:
    options = json.loads(sys.argv[1])
    pin(options.get("cpu"))
    slice_size, rounds = options["requests"], options["rounds"]

    def contestant(each: dict[str, Any]) -> Any:
        client = Client(each["port"], options["connections"])
        headers = f"\r\nHost: 127.0.0.1\r\n{each.get('header', '')}\r\n"
        requests = [f"GET {path} HTTP/1.1{headers}".encode() for path in each["paths"]]
        requests = (requests * (slice_size // len(requests) + 1))[:slice_size]
        client.run(requests[: slice_size // 4 + 1])

        def sample(turn: int) -> tuple[float, float]:
            wall, cpu = time.perf_counter(), cpu_seconds(each["pid"])
            client.run(requests)
            return (time.perf_counter() - wall) / slice_size, (cpu_seconds(each["pid"]) - cpu) / slice_size

        return sample

    samples = take_turns({name: contestant(each) for name, each in options["contestants"].items()}, rounds)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
