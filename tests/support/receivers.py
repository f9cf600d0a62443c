"""Small real OTLP receivers on loopback: they parse each request and respond as the test says."""

from __future__ import annotations

import gzip
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from runspan.codec.fields import SCOPE_STEP
from runspan.delivery import Batch, RunSpans
from runspan.otlp.protobuf_writer import Resource

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Post:
    """A request as the receiver saw it. number: Counts from 1. connection: The client's port."""

    number: int
    message: ExportTraceServiceRequest
    size: int
    headers: Mapping[str, str]
    path: str = ""
    connection: int = 0

    @property
    def spans(self) -> list[Span]:
        return [
            span for resource in self.message.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]

    @property
    def runs(self) -> set[str]:
        """The names of the spans that ``batch_of`` made, which are run ids."""
        return {span.name for span in self.spans}


@dataclass(frozen=True)
class Answer:
    """A response. status: Of HTTP, 0 to close the connection without a response."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = PROTOBUF


OK = Answer(body=b"\x0a\x00")
CLOSE = Answer(status=0)


def partial(rejected: int, message: str) -> Answer:
    """Return a success that rejects some spans."""
    success = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return Answer(body=ExportTraceServiceResponse(partial_success=success).SerializeToString())


@dataclass
class Receiver:
    """What a receiver got. accepted: The requests to which it responded with success. taken: Their spans."""

    answer: Callable[[Post], Answer]
    port: int = 0
    posts: list[Post] = field(default_factory=list)
    accepted: list[Post] = field(default_factory=list)
    taken: list[Span] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    @property
    def taken_runs(self) -> list[str]:
        return sorted({span.name for span in self.taken})

    def receive(self, body: bytes, **seen: Any) -> tuple[Post, Answer]:
        message = ExportTraceServiceRequest.FromString(body)
        with self.lock:
            post = Post(len(self.posts) + 1, message, len(body), **seen)
            self.posts.append(post)
        answer = self.answer(post)
        if answer.status == 200:
            with self.lock:
                self.accepted.append(post)
                self.taken.extend(post.spans)
        return post, answer


@contextmanager
def http_receiver(
    answer: Callable[[Post], Answer] = lambda post: OK, *, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """An OTLP/HTTP receiver."""
    receiver = Receiver(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one segment

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {key.lower(): value for key, value in self.headers.items()}
            _, answer = receiver.receive(body, headers=headers, path=self.path, connection=self.client_address[1])
            if not answer.status:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in {"content-type": answer.content_type, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on purpose
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Failure(Answer):
    """A gRPC failure. retry: the delay of a RetryInfo in seconds, None for no RetryInfo."""

    status: int = -1
    code: Any = None
    message: str = ""
    retry: float | None = None


@contextmanager
def grpc_receiver(
    answer: Callable[[Post], Answer] = lambda post: OK,
    *,
    credentials: Any = None,
    max_bytes: int = -1,
) -> Iterator[Receiver]:
    """An OTLP/gRPC receiver."""
    receiver = Receiver(answer)

    def handle(body: bytes, context: Any) -> bytes:
        _, answer = receiver.receive(body, headers=dict(context.invocation_metadata()))
        if not isinstance(answer, Failure):
            return answer.body
        if answer.retry is not None:
            seconds = int(answer.retry)
            info = RetryInfo(retry_delay=Duration(seconds=seconds, nanos=round((answer.retry - seconds) * 1e9)))
            status = Status(code=answer.code.value[0], message=answer.message)
            status.details.add().Pack(info)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(answer.code, answer.message)
        raise AssertionError("abort raises")

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(handle)},
    )
    server = grpc.server(
        ThreadPoolExecutor(4), handlers=[handler], options=[("grpc.max_receive_message_length", max_bytes)]
    )
    if credentials is None:
        receiver.port = server.add_insecure_port("127.0.0.1:0")
    else:
        receiver.port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


class FakeTime:
    """A clock that advances with each sleep, and by a microsecond when it is read. slept: All sleeps, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.lock = threading.Lock()

    def clock(self) -> float:
        with self.lock:
            self.now += 1e-6
            return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.slept.append(seconds)
            self.now += seconds


def run_of(run_id: str, spans: int = 3, padding: int = 0) -> RunSpans:
    """Return a run whose spans are named after it; the run span, the last one, has kind SERVER."""
    parts = []
    for number in range(1, spans + 1):
        span = Span(
            trace_id=run_id.encode().ljust(16, b"-")[:16],
            span_id=number.to_bytes(8, "big"),
            name=run_id,
            kind=Span.SPAN_KIND_SERVER if number == spans else Span.SPAN_KIND_INTERNAL,
        )
        span.status.message = "x" * padding
        content = ExportTraceServiceRequest()
        content.resource_spans.add().scope_spans.add().spans.append(span)
        parts.append(_field(content.resource_spans[0].scope_spans[0].SerializeToString()))
    return RunSpans.of(run_id, [(SCOPE_STEP, part, 1) for part in parts])


def _field(scope_spans: bytes) -> bytes:
    """Return the field of a span with its tag, which is all that a ScopeSpans of one span contains."""
    assert scope_spans[0] == 0x12
    return scope_spans


def batch_of(*runs: str | RunSpans) -> Batch:
    """Return a batch of runs, given by their ids or ready."""
    ready = tuple(run_of(run) if isinstance(run, str) else run for run in runs)
    return Batch(Resource(), ready)


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Create a self-signed certificate for 127.0.0.1 and a name, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", f"subjectAltName=IP:127.0.0.1,DNS:{name}", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
