"""The OTLP receiver on a real server: stock exporters, both encodings, and everything that must be refused."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Rejection, WriteResult
from runspan.errors import StoreError
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_reader import ParsedRequest
from runspan.otlp.protobuf_writer import Resource
from runspan.web.app import create_app
from runspan.web.config import MIB, WebConfig
from runspan.web.request import inflate
from support.web import JSON, PROTOBUF, document, otlp, raw, serving, spans_of, zipped

GZIP = {"Content-Encoding": "gzip"}


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store, config=WebConfig(max_body=MIB)), max_body=MIB) as client:
        yield client


def send(client: httpx.Client, content: bytes, **headers: str) -> httpx.Response:
    return client.post("/v1/traces", content=content, headers=headers)


def status_of(response: httpx.Response, status: int) -> Any:
    """Return the google.rpc.Status of a response, in the encoding of its content type."""
    assert response.status_code == status, response.text
    if response.headers["content-type"] == PROTOBUF["Content-Type"]:
        return Status.FromString(response.content)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"code", "message"}
    return Status(**body)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_a_run_sent_as_spans_is_a_run_document(client: httpx.Client, form: str, compressed: bool) -> None:
    """Either encoding, plain or gzip; the response is an empty success in the same encoding."""
    content, headers = (
        (otlp(document()), PROTOBUF) if form == "protobuf" else (write_json(spans_of(document()), Resource()), JSON)
    )
    response = send(client, zipped(content) if compressed else content, **headers, **(GZIP if compressed else {}))
    assert response.status_code == 200
    assert response.headers["content-type"] == headers["Content-Type"]
    assert response.content == (b"" if form == "protobuf" else b"{}")
    assert client.get("/api/v1/runs/run_1").json()["data"] == document()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_the_stock_exporter_delivers(client: httpx.Client, store: SqliteStore, compression: Compression) -> None:
    """Spans of the OpenTelemetry SDK arrive as a trace; deflate is refused, and the exporter says so."""
    exporter = OTLPSpanExporter(endpoint=f"{client.base_url}/v1/traces", compression=compression)
    results: list[SpanExportResult] = []
    export = exporter.export
    exporter.export = lambda spans: results.append(export(spans)) or results[-1]  # type: ignore[func-returns-value,method-assign]
    provider = TracerProvider(resource=SdkResource.create({"service.name": "stock"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("call", kind=SpanKind.CLIENT) as span:
        span.set_attribute("http.request.method", "GET")
    provider.shutdown()
    if compression is Compression.Deflate:
        assert results == [SpanExportResult.FAILURE]
        return
    assert results == [SpanExportResult.SUCCESS]
    (stored,) = store.spans(span.get_span_context().trace_id.to_bytes(16, "big"))
    assert (stored.name, stored.kind) == ("call", 3)
    assert stored.attributes()["http.request.method"] == "GET"


@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_rejected_spans_are_counted_and_explained(client: httpx.Client, form: str) -> None:
    """The others are stored: 200 with partial_success in the request's encoding."""
    request = ExportTraceServiceRequest.FromString(otlp(document(), document("run_2")))
    spans = request.resource_spans[0].scope_spans[0].spans
    for _ in range(7):
        spans.add(trace_id=bytes(16), span_id=bytes(8), name="lost")
    if form == "protobuf":
        response = send(client, request.SerializeToString(), **PROTOBUF)
        result = ExportTraceServiceResponse.FromString(response.content)
    else:
        found = MessageToDict(request)
        for span in [span for scope in found["resourceSpans"][0]["scopeSpans"] for span in scope["spans"]]:
            for name in ("traceId", "spanId", "parentSpanId"):
                if name in span:
                    span[name] = base64.b64decode(span[name]).hex()
        response = send(client, json.dumps(found).encode(), **JSON)
        result = ExportTraceServiceResponse()
        body = response.json()["partialSuccess"]
        assert body["rejectedSpans"] == "7"
        result.partial_success.rejected_spans = int(body["rejectedSpans"])
        result.partial_success.error_message = body["errorMessage"]
    assert response.status_code == 200
    assert result.partial_success.rejected_spans == 7
    assert "trace id" in result.partial_success.error_message
    assert result.partial_success.error_message.endswith("and 2 more")
    assert client.get("/api/v1/runs/run_2").status_code == 200
    assert "runspan_spans_rejected_total 7.0" in client.get("/metrics").text


def test_many_rejected_spans_are_counted_exactly(client: httpx.Client) -> None:
    """The response describes only some of them, but it and the metrics count all."""
    request = {"resourceSpans": [{"scopeSpans": [{"spans": [{}] * 5000}]}]}
    success = send(client, json.dumps(request).encode(), **JSON).json()["partialSuccess"]
    assert success["rejectedSpans"] == "5000"
    assert success["errorMessage"].endswith("and 4995 more")
    metrics = client.get("/metrics").text
    assert "runspan_spans_rejected_total 5000.0" in metrics
    assert "runspan_spans_received_total 5000.0" in metrics


@pytest.mark.parametrize("content", [b"\x0a\x00" * 200_000, b"\x1b\x1c" * 200_000], ids=["containers", "groups"])
def test_a_request_of_too_many_spans_is_refused(client: httpx.Client, content: bytes) -> None:
    """413 for a small body of empty messages, which would become large in memory; the error says what to do."""
    status = status_of(send(client, zipped(content), **PROTOBUF, **GZIP), 413)
    assert status.code == 8
    assert "send smaller requests" in status.message


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0a\x05abc", otlp(document())[:-2]])
def test_invalid_bodies_are_errors_of_the_client(client: httpx.Client, content: bytes) -> None:
    """400 with a status in the request's encoding, which exporters do not retry."""
    status = status_of(send(client, content, **PROTOBUF), 400)
    assert status.code == 3
    assert "protobuf" in status.message
    status = status_of(send(client, content, **JSON), 400)
    assert status.code == 3
    assert "JSON" in status.message


@pytest.mark.parametrize(
    "content",
    [
        zipped(otlp(document()))[:-1],
        zipped(otlp(document()))[:20],
        b"",
        b"no gzip at all",
        zipped(otlp(document())) + b"more",
        zipped(b"x" * 100)[:-8] + bytes(8),
        zlib.compress(otlp(document())),
        zipped(b"") * 17,
    ],
)
def test_damaged_gzip_is_an_error_of_the_client(client: httpx.Client, content: bytes) -> None:
    """Truncated, foreign, followed by something else or with a wrong checksum."""
    status = status_of(send(client, content, **PROTOBUF, **GZIP), 400)
    assert status.code == 3
    assert "gzip" in status.message


def test_several_gzip_streams_are_one_body(client: httpx.Client) -> None:
    """RFC 1952 allows them in a row."""
    body = otlp(document())
    response = send(client, zipped(body[:100]) + zipped(body[100:]), **PROTOBUF, **GZIP)
    assert response.status_code == 200
    assert client.get("/api/v1/runs/run_1").status_code == 200


@pytest.mark.parametrize("headers", [PROTOBUF, JSON])
def test_a_body_over_the_limit_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    """Both as sent and decompressed: decompression of a gzip bomb stops at the limit."""
    for content, encoding in ((b"\x0a" * (MIB + 1), {}), (zipped(bytes(MIB + 1)), GZIP), (bomb(), GZIP)):
        status = status_of(send(client, content, **headers, **encoding), 413)
        assert status.code == 8
        assert str(MIB) in status.message


def bomb() -> bytes:
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    stream = zlib.compressobj(9, wbits=31)
    block = bytes(16 * MIB)
    content = b"".join(stream.compress(block) for _ in range(16)) + stream.flush()
    assert len(content) <= MIB
    return content


def test_a_body_over_the_limit_is_refused_before_it_arrives(client: httpx.Client) -> None:
    """The server responds to the header, in the form that the sender reads."""
    kind = f"Content-Type: {PROTOBUF['Content-Type']}\r\n"
    head = f"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {100 * MIB}\r\n\r\n".encode()
    assert status_of(raw(client, head), 413).code == 8


def test_a_chunked_body_is_limited_too(client: httpx.Client) -> None:
    """A sender that announces no length gets the same response."""
    response = client.post("/v1/traces", content=iter([bytes(MIB), bytes(1)]), headers=PROTOBUF)
    assert status_of(response, 413).code == 8


def test_decompression_stops_at_the_limit() -> None:
    """The limit also covers several streams together, and a body of exactly that size is allowed."""
    assert inflate(zipped(b"x" * 100), 100) == b"x" * 100
    assert inflate(zipped(b"x" * 60) + zipped(b"y" * 40), 100) == b"x" * 60 + b"y" * 40
    for content in (zipped(b"x" * 101), zipped(b"x" * 60) + zipped(b"y" * 41)):
        with pytest.raises(Exception, match="too large"):
            inflate(content, 100)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(client: httpx.Client, kind: str) -> None:
    """415 as JSON, since the sender's encoding is not known."""
    status = status_of(send(client, otlp(document()), **({"Content-Type": kind} if kind else {})), 415)
    assert "application/x-protobuf" in status.message


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
def test_another_content_encoding_is_refused(client: httpx.Client, encoding: str) -> None:
    """415 names the supported encodings."""
    status = status_of(send(client, otlp(document()), **PROTOBUF, **{"Content-Encoding": encoding}), 415)
    assert "gzip" in status.message


def test_the_receiver_does_not_support_get(client: httpx.Client) -> None:
    """405 with the allowed method."""
    response = client.get("/v1/traces")
    assert status_of(response, 405).code == 12
    assert "POST" in response.headers["allow"]


def test_an_empty_request_is_a_success(client: httpx.Client) -> None:
    """Senders use one as a probe."""
    assert send(client, b"", **PROTOBUF).content == b""
    assert send(client, b"{}", **JSON).json() == {}


class Broken:
    """A store whose disk is full."""

    def put(self, run: object, *, tenant: str = "", observed_at: int) -> WriteResult:
        raise StoreError("the disk is full")

    def write(self, received: ParsedRequest, tenant: str = "") -> WriteResult:
        raise StoreError("the disk is full")


def test_a_store_that_cannot_write_asks_the_sender_to_retry(store: SqliteStore) -> None:
    """503, which exporters retry: on a 500 they would drop the spans."""
    with serving(create_app(store, Broken())) as client:
        assert status_of(send(client, otlp(document()), **PROTOBUF), 503).code == 14


def test_rejections_of_the_store_are_reported(store: SqliteStore) -> None:
    """The response counts the spans that the writer rejects."""

    class Picky(Broken):
        def write(self, received: ParsedRequest, tenant: str = "") -> WriteResult:
            return WriteResult(0, (Rejection("run run_1", "past retention", 3),))

    with serving(create_app(store, Picky())) as client:
        result = ExportTraceServiceResponse.FromString(send(client, otlp(document()), **PROTOBUF).content)
    assert result.partial_success.rejected_spans == 3
    assert result.partial_success.error_message == "run run_1: past retention"
