"""``runspan export`` to receivers that misbehave: each run is accepted, or kept with the reason and delivered later."""

from __future__ import annotations

import gzip
import re
import resource
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import zstandard
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from tenacity import wait_random_exponential

from runspan import Run
from runspan.sources import documents
from support.cli import generated, runspan, write_ndjson
from support.faults import FaultLine
from support.receivers import certificate
from support.sync import make_directory
from support.wire import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    RST_STREAM,
    Fault,
    Wire,
    call,
    close,
    drip,
    frame,
    grpc_headers,
    grpc_message,
    grpc_status,
    grpc_trailers,
    raw,
    reset,
    respond,
    silence,
    wire_receiver,
)

pytestmark = pytest.mark.timeout(60)

FOREVER = float("inf")
TEXTS = generated(6, seed=11)
DELIVERED, REFUSED, STOPPED = "delivered", "refused", "stopped"
MEMORY = 400 << 20
"""Bytes that reading an answer may take, at most, above what the process has."""


def partial(rejected: int, message: str = "odd") -> bytes:
    success = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return ExportTraceServiceResponse(partial_success=success).SerializeToString()


def status_body(message: str) -> bytes:
    body: bytes = Status(code=3, message=message).SerializeToString()
    return body


def retry_info(seconds: int) -> tuple[str, str]:
    status = Status(code=14, message="later")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    return "grpc-status-details-bin", b64encode(status.SerializeToString()).decode().rstrip("=")


@dataclass(frozen=True)
class Case:
    """A fault, and what has to come of the export."""

    name: str
    fault: Fault | None
    outcome: str
    """``DELIVERED``: after another attempt. ``REFUSED``: each run is named with the reason. ``STOPPED``: no other
    request is sent, since the reason is not in the runs."""
    says: str = ""
    """What the report says."""
    times: float = 2
    early: str = ""
    seconds: float = 0.0
    """How long it takes at least."""
    env: dict[str, str] = field(default_factory=dict)


def transient(name: str, fault: Fault, early: str = "", **options: Any) -> Case:
    """A fault of two requests, after which the same request is accepted."""
    return Case(name, fault, DELIVERED, "sent again", early=early, **options)


def lasting(name: str, fault: Fault, outcome: str, says: str, **options: Any) -> Case:
    """A fault of every request."""
    return Case(name, fault, outcome, says, times=FOREVER, **options)


LATER = "HTTP/1.1 503 Service Unavailable"
NOT_OTLP = "not OTLP"
GZIP_BOMB = gzip.compress(b"\0" * (256 << 20))
ZSTD_BOMB = zstandard.compress(b"\0" * (1 << 30), 19)
IN_TIME = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.4"}
DEEP = b'{"partialSuccess":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def _unsolicited(wire: Wire) -> None:
    """Confirm two requests where there was one."""
    wire.send(b"HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n" + OK)


def _reset_within(data: bytes) -> Fault:
    def answer(wire: Wire) -> None:
        wire.send(data)
        time.sleep(0.02)
        wire.reset()

    return answer


HTTP = [
    transient("reset after the connection", reset, "accept"),
    transient("closed after the connection", close, "accept"),
    transient("reset after the head of the request", reset, "head"),
    transient("reset within the body of the request", reset, "body"),
    transient("reset after the request", reset),
    transient("closed without an answer", close),
    transient("reset within the status line", _reset_within(b"HTTP/1.1 20")),
    transient("closed within the headers", raw(b"HTTP/1.1 200 OK\r\ncontent-type: appl")),
    transient("closed within the body", raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")),
    transient("closed within a chunk", raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab")),
    transient("a status line over several lines", raw(b"HTTP/1.1 200\r\n OK\r\n\r\n")),
    transient("an answer that is no HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")),
    transient(
        "two different lengths", raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 7\r\n\r\n1234567")
    ),
    transient("a negative length", raw(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n")),
    transient("endless headers", raw(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * (2 << 20))),
    transient("a status of six digits", raw(b"HTTP/1.1 200200 OK\r\ncontent-length: 0\r\n\r\n")),
    transient("a second answer that nobody asked for", _unsolicited),
    transient("silence beyond the deadline", silence, env=IN_TIME),
    transient("an answer that drips beyond the deadline", drip(OK), env=IN_TIME),
    *(transient(f"HTTP {code}", respond(f"{code} Later")) for code in (429, 502, 503, 504)),
    transient("HTTP 429 with Retry-After", respond("429 Later", b"", "retry-after: 1"), seconds=1.0),
    transient("HTTP 503 with a date", respond("503 Later", b"", f"retry-after: {formatdate(usegmt=True)}")),
    transient("HTTP 503 with an odd Retry-After", respond("503 Later", b"", "retry-after: -1, soon")),
    transient("HTTP 503 with a page", respond("503 Later", b"<html>" * 400_000, content_type="text/html")),
    lasting("a Retry-After of years", respond("503 Later", b"", "retry-after: 99999999"), STOPPED, "asks to wait"),
    lasting(
        "HTTP 503 for ever",
        respond("503 Later", b"down", content_type="text/plain"),
        STOPPED,
        "took nothing for 1 s: HTTP 503: down",
    ),
    lasting("resets for ever", reset, STOPPED, "took nothing for 1 s"),
    *(
        lasting(f"HTTP {code}", respond(f"{code} No", b"why", content_type="text/plain"), REFUSED, f"HTTP {code}: why")
        for code in (400, 408, 409, 413, 422, 500, 501, 505)
    ),
    lasting("HTTP 400 with a status", respond("400 No", status_body("odd step")), REFUSED, "HTTP 400: odd step"),
    lasting("HTTP 400 with a body that is no status", respond("400 No", b"\xff\xff\xff"), REFUSED, "HTTP 400"),
    *(
        lasting(f"HTTP {code}", respond(f"{code} No", b"why", content_type="text/plain"), STOPPED, f"HTTP {code}: why")
        for code in (401, 403, 404, 405, 407, 410, 415)
    ),
    *(
        lasting(
            f"a redirect with {code}",
            respond(f"{code} There", b"", "location: http://127.0.0.1:1/"),
            STOPPED,
            "redirect",
        )
        for code in (301, 302, 307, 308)
    ),
    lasting("all rejected in part", respond("200 OK", partial(1)), REFUSED, "spans rejected: odd"),
    lasting("all rejected", respond("200 OK", partial(10_000)), REFUSED, "spans rejected: odd"),
    lasting("more rejected than sent", respond("200 OK", partial(2**63 - 1)), REFUSED, "spans rejected: odd"),
    lasting("a negative number rejected", respond("200 OK", partial(-1)), STOPPED, "-1 rejected spans"),
    lasting("a page for a success", respond("200 OK", b"<html>", content_type="text/html"), STOPPED, NOT_OTLP),
    lasting("a success of another kind", respond("200 OK", b"\xff\xff"), STOPPED, NOT_OTLP),
    lasting("JSON nested deeply", respond("200 OK", DEEP, content_type="application/json"), STOPPED, NOT_OTLP),
    lasting(
        "JSON of another kind",
        respond("200 OK", b'{"partialSuccess":7}', content_type="application/json"),
        STOPPED,
        NOT_OTLP,
    ),
    lasting(
        "JSON with a number beyond 64 bits",
        respond(
            "200 OK", b'{"partialSuccess":{"rejectedSpans":"' + b"9" * 5000 + b'"}}', content_type="application/json"
        ),
        STOPPED,
        NOT_OTLP,
    ),
    lasting("a success that is too large", respond("200 OK", b"\0" * (2 << 20)), STOPPED, NOT_OTLP),
    lasting("a gzip bomb", respond("200 OK", GZIP_BOMB, "content-encoding: gzip"), STOPPED, NOT_OTLP),
    lasting("a zstd bomb", respond("200 OK", ZSTD_BOMB, "content-encoding: zstd"), STOPPED, NOT_OTLP),
    lasting(
        "a body that is not in its encoding", respond("200 OK", b"plain", "content-encoding: gzip"), STOPPED, NOT_OTLP
    ),
]

GRPC_NAMES = {
    1: "CANCELLED",
    4: "DEADLINE_EXCEEDED",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
}

REFUSING = {
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    13: "INTERNAL",
}


def _goaway(code: int) -> Fault:
    return call(lambda _: frame(GOAWAY, 0, 0, (0).to_bytes(4, "big") + code.to_bytes(4, "big")), open_after=False)


def _rst(code: int) -> Fault:
    return call(lambda stream: frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))


GRPC = [
    transient("gRPC reset after the connection", reset, "accept"),
    transient("gRPC closed after the connection", close, "accept"),
    transient("gRPC reset after the head", reset, "head"),
    transient("gRPC reset after the request", reset),
    transient("gRPC silence beyond the deadline", silence, env=IN_TIME),
    transient("GOAWAY", _goaway(0)),
    transient("GOAWAY that asks for calm", _goaway(11)),
    transient("a stream that is refused", _rst(7)),
    transient("a stream that is cancelled", _rst(8)),
    transient("HTTP 503 over gRPC", call(lambda stream: grpc_headers(stream, status="503", flags=END_STREAM))),
    *(transient(f"gRPC {name}", grpc_status(code)) for code, name in GRPC_NAMES.items()),
    transient("gRPC RESOURCE_EXHAUSTED with RetryInfo", grpc_status(8, "full", retry_info(0))),
    transient("gRPC UNAVAILABLE with RetryInfo", grpc_status(14, "later", retry_info(1)), seconds=1.0),
    transient("gRPC UNAVAILABLE with a negative RetryInfo", grpc_status(14, "later", retry_info(-5))),
    transient("gRPC UNAVAILABLE with odd details", grpc_status(14, "later", ("grpc-status-details-bin", "//////8"))),
    lasting("a RetryInfo of years", grpc_status(14, "later", retry_info(10**9)), STOPPED, "asks to wait"),
    lasting(
        "gRPC UNAVAILABLE for ever", grpc_status(14, "down"), STOPPED, "took nothing for 1 s: gRPC UNAVAILABLE: down"
    ),
    *(lasting(f"gRPC {name}", grpc_status(code), REFUSED, f"gRPC {name}: odd") for code, name in REFUSING.items()),
    *(
        lasting(f"gRPC {name}", grpc_status(code), STOPPED, f"gRPC {name}: odd")
        for code, name in ((7, "PERMISSION_DENIED"), (12, "UNIMPLEMENTED"), (16, "UNAUTHENTICATED"))
    ),
    lasting("an unknown gRPC status", grpc_status(99), REFUSED, "gRPC UNKNOWN"),
    lasting(
        "gRPC rejected in part",
        call(grpc_headers, lambda s: grpc_message(s, partial(1)), grpc_trailers),
        REFUSED,
        "rejected: odd",
    ),
    lasting(
        "gRPC more rejected than sent",
        call(grpc_headers, lambda s: grpc_message(s, partial(2**63 - 1)), grpc_trailers),
        REFUSED,
        "rejected: odd",
    ),
    lasting(
        "gRPC a negative number rejected",
        call(grpc_headers, lambda s: grpc_message(s, partial(-1)), grpc_trailers),
        STOPPED,
        "-1 rejected",
    ),
    lasting("no trailers", call(grpc_headers, lambda s: grpc_message(s, flags=END_STREAM)), REFUSED, "gRPC"),
    lasting("no message", call(grpc_headers, grpc_trailers), STOPPED, NOT_OTLP),
    lasting(
        "a message of another kind",
        call(grpc_headers, lambda s: grpc_message(s, b"\xff\xff"), grpc_trailers),
        REFUSED,
        "gRPC",
    ),
    lasting(
        "a message that is cut off",
        call(grpc_headers, lambda s: frame(DATA, 0, s, b"\0\0\0\0\x09abc"), grpc_trailers),
        STOPPED,
        NOT_OTLP,
    ),
    lasting(
        "a message of gigabytes",
        call(grpc_headers, lambda s: frame(DATA, 0, s, b"\0\xff\xff\xff\xff"), grpc_trailers),
        REFUSED,
        "gRPC",
    ),
    lasting(
        "a compression that nobody asked for",
        call(grpc_headers, lambda s: grpc_message(s, b"x", compressed=1), grpc_trailers),
        REFUSED,
        "gRPC",
    ),
    lasting(
        "a page over gRPC",
        call(lambda s: grpc_headers(s, content_type="text/html"), lambda s: frame(DATA, END_STREAM, s, b"<html>")),
        REFUSED,
        "gRPC",
    ),
    lasting(
        "headers that cannot be read",
        call(lambda s: frame(HEADERS, 5, s, b"\xff" * 20), open_after=False),
        REFUSED,
        "gRPC INTERNAL",
    ),
    lasting(
        "HTTP/1 on the port of gRPC", raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), STOPPED, "took nothing", early="accept"
    ),
]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a moment where the receiver does not say when."""
    monkeypatch.setattr("runspan.http.retry.wait_random_exponential", lambda **_: wait_random_exponential(0.02, 0.1))


def cases(found: list[Case]) -> list[object]:
    """Return every sixth case for a test run, and the others for the campaign."""
    marks = [() if number % 6 == 0 else (pytest.mark.campaign,) for number in range(len(found))]
    return [pytest.param(case, id=case.name, marks=mark) for case, mark in zip(found, marks, strict=True)]


@pytest.mark.parametrize("case", cases(HTTP))
def test_http(fault: FaultLine, tmp_path: Path, case: Case) -> None:
    """Over OTLP/HTTP."""
    _export_over(fault, tmp_path, case, http2=False)


@pytest.mark.parametrize("case", cases(GRPC))
def test_grpc(fault: FaultLine, tmp_path: Path, case: Case) -> None:
    """Over OTLP/gRPC."""
    _export_over(fault, tmp_path, case, http2=True)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("early", "found", "says"),
    [
        ("", None, r"CERTIFICATE_VERIFY_FAILED"),
        ("accept", raw(b"plain text"), "took nothing"),
        ("accept", silence, "took nothing"),
    ],
    ids=["a certificate of a stranger", "no TLS", "a handshake without an answer"],
)
def test_tls(fault: FaultLine, tmp_path: Path, protocol: str, early: str, found: Fault | None, says: str) -> None:
    """Nothing is sent to a receiver that does not prove its name, and everything once it does."""
    stranger, known = make_directory(tmp_path / "stranger"), make_directory(tmp_path / "known")
    cert, key = certificate(stranger)
    authority, _ = certificate(known)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    file, left = write_ndjson(tmp_path / "runs.ndjson", TEXTS), tmp_path / "left.ndjson"
    http2 = protocol == "grpc"
    with wire_receiver(found, FOREVER, early=early, http2=http2, tls=context) as receiver:
        args = ("--endpoint", f"https://127.0.0.1:{receiver.port}", "--protocol", protocol, "--dead-letter", left)
        wrong = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority), **IN_TIME}
        result = runspan("export", file, *args, "--retry-max-time", "1s", code=1, **wrong)
        assert re.search("took nothing" if http2 else says, result.stderr), result.stderr
        assert not receiver.confirmed
        fault.refused += len(TEXTS)
        receiver.times, ended = 0, time.monotonic()
        runspan("export", left, *args[:4], OTEL_EXPORTER_OTLP_CERTIFICATE=str(cert))
        fault.recovery = time.monotonic() - ended
        fault.lost += len(TEXTS.keys() - receiver.confirmed)
        fault.acknowledged += len(receiver.confirmed)
        fault.rounds = 1


def _export_over(fault: FaultLine, folder: Path, case: Case, *, http2: bool) -> None:
    file, left = write_ndjson(folder / "runs.ndjson", TEXTS), folder / "left.ndjson"
    protocol = "grpc" if http2 else "http/protobuf"
    with wire_receiver(case.fault, case.times, early=case.early, http2=http2) as receiver:
        args = ("--endpoint", f"http://127.0.0.1:{receiver.port}", "--protocol", protocol)
        began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limit = ("--retry-max-time", "10s" if case.outcome == DELIVERED else "1s")
        result = runspan(
            "export", file, *args, *limit, "--dead-letter", left, code=int(case.outcome != DELIVERED), **case.env
        )
        seconds = time.monotonic() - began
        assert case.says in result.stderr, result.stderr
        assert case.seconds <= seconds < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY >> 10
        kept = {found.id for found in documents(str(left)) if isinstance(found, Run)} if left.exists() else set()
        assert kept == (set() if case.outcome == DELIVERED else set(TEXTS)), result.stderr
        assert ("stopped: " in result.stderr) == (case.outcome == STOPPED), result.stderr
        fault.wrong += len(TEXTS.keys() - kept - receiver.confirmed)  # reported as accepted
        fault.refused += len(kept)
        receiver.times = 0
        ended = time.monotonic()
        if kept:
            runspan("export", left, *args, *limit)
            fault.recovery = time.monotonic() - ended
        fault.lost += len(TEXTS.keys() - receiver.confirmed)
        fault.acknowledged += len(receiver.confirmed)
        fault.rounds = 1
