"""A minimal OTLP/HTTP receiver as a process: it responds at once, and counts requests only when asked.

Run as ``python -m bench.sink '{"delay": 0, "count_now": false, "cpu": null}'``; it ends with its standard input.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import threading
import time

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.machine import pin

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 2\r\n\r\n\x0a\x00"


class Sink:
    """delay: Seconds before each response. count_now: Count on arrival and keep nothing, to save memory."""

    def __init__(self, delay: float, count_now: bool) -> None:
        self.delay = delay
        self.count_now = count_now
        self.kept: list[tuple[bytes, bool]] = []
        self.spans = self.bytes = self.requests = 0
        self.lock = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb", buffering=1 << 18) as stream:
            while (line := stream.readline()) not in (b"", b"\r\n"):
                length, zipped = 0, False
                while (header := stream.readline()) not in (b"", b"\r\n"):
                    name, _, value = header.lower().partition(b":")
                    if name == b"content-length":
                        length = int(value)
                    elif name == b"content-encoding":
                        zipped = b"gzip" in value
                if line.startswith(b"GET"):
                    text = json.dumps(self.counts()).encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
                    continue
                body = stream.read(length)
                if self.delay:
                    time.sleep(self.delay)
                if self.count_now:
                    self.count(body, zipped)
                else:
                    self.kept.append((body, zipped))
                connection.sendall(_ANSWER)

    def counts(self) -> dict[str, int]:
        """Return what was received since the last call."""
        kept, self.kept = self.kept, []
        for body, zipped in kept:
            self.count(body, zipped)
        with self.lock:
            found = {"spans": self.spans, "bytes": self.bytes, "requests": self.requests}
            self.spans = self.bytes = self.requests = 0
        return found

    def count(self, body: bytes, zipped: bool) -> None:
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if zipped else body)
        spans = sum(len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans)
        with self.lock:
            self.spans += spans
            self.bytes += len(body)
            self.requests += 1


def main() -> None:
    options = json.loads(sys.argv[1])
    pin(options.get("cpu"))
    sink = Sink(options.get("delay", 0.0), options.get("count_now", False))
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=sink.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": server.getsockname()[1]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
