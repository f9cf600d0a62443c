"""OTLP receivers that misbehave at the wire: each request gets a fault for a while, and then an answer as it should be.

They read requests completely unless a fault says otherwise, and remember which runs they confirmed.
"""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runspan.codec.fields import RUN_ID

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4


@dataclass
class Wire:
    """One connection whose request is to be answered."""

    socket: socket.socket
    stream: int = 0
    """Of HTTP/2."""
    failed: threading.Event = field(default_factory=threading.Event)
    """Set when the receiver ends, so that a fault does not wait for longer."""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Fault = Callable[[Wire], None]
"""Answers a request. The connection is closed afterwards unless the fault is an ``Answered``."""


class Answered(Exception):
    """Raised by a fault after which the connection stays open."""


@dataclass
class WireReceiver:
    """A receiver, and what it confirmed."""

    fault: Fault | None
    times: float
    """How many requests get the fault."""
    early: str = ""
    """When the fault comes: "accept", "head" or "body" for before the request was read so far, "" after it."""
    port: int = 0
    requests: int = 0
    confirmed: set[str] = field(default_factory=set)
    """The ids of the runs whose spans it confirmed."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def take_fault(self, moment: str) -> Fault | None:
        """Count a request at its moment, and return its fault."""
        with self.lock:
            if moment != self.early or self.fault is None:
                return None
            self.requests += 1
            return self.fault if self.requests <= self.times else None

    def confirm(self, body: bytes) -> None:
        """Remember the runs of a request that is confirmed."""
        message = ExportTraceServiceRequest.FromString(body)
        spans = [span for each in message.resource_spans for scope in each.scope_spans for span in scope.spans]
        with self.lock:
            self.confirmed |= {
                pair.value.string_value for each in spans for pair in each.attributes if pair.key == RUN_ID
            }


@contextmanager
def wire_receiver(
    fault: Fault | None, times: float, *, early: str = "", http2: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[WireReceiver]:
    """Serve until the block ends."""
    receiver = WireReceiver(fault, times, early)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    receiver.port = listener.getsockname()[1]
    serve = _serve_http2 if http2 else _serve_http1

    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, ssl.SSLError, ValueError), connection:
            if found := receiver.take_fault("accept"):
                found(Wire(connection, failed=receiver.ended))
                return
            with suppress(Answered):
                if tls is None:
                    serve(receiver, connection)
                else:
                    with tls.wrap_socket(connection, server_side=True) as secured:
                        serve(receiver, secured)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# HTTP/1.1.

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


def _serve_http1(receiver: WireReceiver, connection: socket.socket) -> None:
    file = connection.makefile("rb")
    wire = Wire(connection, failed=receiver.ended)
    while head := _read_head(file):
        if found := receiver.take_fault("head"):
            found(wire)
            return
        size = int(re.findall(rb"(?i)content-length: *(\d+)", head)[0])
        body = file.read(size // 2)
        if found := receiver.take_fault("body"):
            found(wire)
            return
        body += file.read(size - len(body))
        if found := receiver.take_fault(""):
            try:
                found(wire)
            except Answered:
                continue
            return
        receiver.confirm(gzip.decompress(body) if b"gzip" in head.lower() else body)
        connection.sendall(OK)


def _read_head(file: object) -> bytes:
    head = b""
    while line := file.readline():  # type: ignore[attr-defined]
        head += line
        if line == b"\r\n":
            return head
    return b""


def respond(status: str, body: bytes = b"", *headers: str, content_type: str = "application/x-protobuf") -> Fault:
    """Return a complete answer, after which the connection stays open."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(body)}", *headers, "", ""]

    def answer(wire: Wire) -> None:
        wire.send("\r\n".join(lines).encode() + body)
        raise Answered

    return answer


def raw(data: bytes) -> Fault:
    """Return an answer of these bytes, after which the connection is closed."""
    return lambda wire: wire.send(data)


def reset(wire: Wire) -> None:
    """Close the connection with RST."""
    wire.reset()


def close(wire: Wire) -> None:
    """Close the connection without an answer."""


def silence(wire: Wire) -> None:
    """Answer nothing until the client gives up."""
    with suppress(OSError):
        while not wire.failed.is_set() and wire.socket.recv(1 << 16):
            pass


def drip(data: bytes, pause: float = 0.1) -> Fault:
    """Return an answer that comes byte by byte."""

    def answer(wire: Wire) -> None:
        for number in range(len(data)):
            wire.send(data[number : number + 1])
            if wire.failed.wait(pause):
                return

    return answer


# HTTP/2, as far as a unary call of gRPC needs it.


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def fields(*pairs: tuple[str, str]) -> bytes:
    """Return a header block of literal fields."""
    texts = [text.encode() for pair in pairs for text in pair]
    assert all(len(text) < 127 for text in texts)
    parts = [bytes([len(text)]) + text for text in texts]
    return b"".join([b"\0" + name + value for name, value in zip(parts[::2], parts[1::2], strict=True)])


def grpc_headers(stream: int, *, status: str = "200", content_type: str = "application/grpc", flags: int = 0) -> bytes:
    """Return the frame that begins an answer."""
    return frame(HEADERS, END_HEADERS | flags, stream, fields((":status", status), ("content-type", content_type)))


def grpc_message(stream: int, message: bytes = b"", *, flags: int = 0, compressed: int = 0) -> bytes:
    """Return the frame of a message."""
    return frame(DATA, flags, stream, bytes([compressed]) + len(message).to_bytes(4, "big") + message)


def grpc_trailers(stream: int, status: str = "0", *pairs: tuple[str, str]) -> bytes:
    """Return the frame that ends an answer."""
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, fields(("grpc-status", status), *pairs))


def _serve_http2(receiver: WireReceiver, connection: socket.socket) -> None:
    file = connection.makefile("rb")
    if file.read(len(PREFACE)) != PREFACE:
        return
    connection.sendall(frame(SETTINGS, 0, 0))
    bodies: dict[int, bytes] = {}
    while head := file.read(9):
        size, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:9], "big")
        payload = file.read(size)
        wire = Wire(connection, stream, receiver.ended)
        if kind == SETTINGS and not flags & ACK:
            connection.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            connection.sendall(frame(PING, ACK, 0, payload))
        elif kind == HEADERS and (found := receiver.take_fault("head")):
            found(wire)
            return
        elif kind == DATA:
            bodies[stream] = bodies.get(stream, b"") + payload
            if payload:
                more = size.to_bytes(4, "big")
                connection.sendall(frame(WINDOW_UPDATE, 0, 0, more) + frame(WINDOW_UPDATE, 0, stream, more))
            if not flags & END_STREAM:
                continue
            if found := receiver.take_fault(""):
                try:
                    found(wire)
                except Answered:
                    continue
                return
            receiver.confirm(bodies[stream][5:])
            connection.sendall(grpc_headers(stream) + grpc_message(stream) + grpc_trailers(stream))


def call(*frames: Callable[[int], bytes], open_after: bool = True) -> Fault:
    """Return an answer of these frames of the call's stream."""

    def answer(wire: Wire) -> None:
        wire.send(b"".join([make(wire.stream) for make in frames]))
        if open_after:
            raise Answered

    return answer


def grpc_status(code: int, message: str = "odd", *pairs: tuple[str, str]) -> Fault:
    """Return a failure of a call: an answer of trailers only."""
    block = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", str(code))]

    def trailers(stream: int) -> bytes:
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, fields(*block, ("grpc-message", message), *pairs))

    return call(trailers)
