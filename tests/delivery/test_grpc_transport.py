"""Delivery over OTLP/gRPC against real grpcio servers."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from runspan.delivery import GRPC, Batch, ExporterConfig, ExportReport, OtlpExporter, RetryPolicy
from runspan.delivery.grpc_transport import GrpcTransport
from runspan.delivery.transport import Retryable
from runspan.errors import ConfigError
from runspan.http.client import TlsConfig
from support.receivers import (
    OK,
    Answer,
    Failure,
    FakeTime,
    Post,
    Receiver,
    batch_of,
    certificate,
    grpc_receiver,
    http_receiver,
    partial,
    run_of,
)

POLICY = RetryPolicy(max_time=60.0, first_delay=0.5, max_delay=30.0)
RETRYABLE = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")


def config_for(receiver: Receiver, **other: object) -> ExporterConfig:
    plain = {"protocol": GRPC, "compression": "none", "insecure": True}
    return ExporterConfig(f"127.0.0.1:{receiver.port}", **{**plain, **other})  # type: ignore[arg-type]


def deliver(config: ExporterConfig, *batches: Batch, time: FakeTime | None = None) -> ExportReport:
    """Send batches on a clock that advances only by sleeping, and check that every run is in exactly one count."""
    time = time or FakeTime()
    delivery = OtlpExporter(GrpcTransport(config), workers=1, retry=POLICY, clock=time.clock, sleep=time.sleep)
    runs = 0
    for batch in batches:
        delivery.submit(batch)
        runs += len(batch.runs)
    report = delivery.close()
    assert report.runs_pending == 0
    assert report.runs_accepted + report.runs_rejected + report.runs_not_sent == runs
    return report


def fail_once(failure: Failure) -> Callable[[Post], Answer]:
    return lambda post: failure if post.number == 1 else OK


def test_a_server_of_http_is_named_as_such() -> None:
    """A receiver of OTLP/HTTP can never accept gRPC; the reason says which variable to set."""
    with http_receiver() as receiver:
        transport = GrpcTransport(config_for(receiver))
        result = transport.send(b"")
        transport.close()
    assert isinstance(result, Retryable)
    assert "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in result.reason


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_arrive_complete_with_headers_as_metadata(compression: str) -> None:
    """The body passes through gRPC unchanged, with the headers as metadata."""
    with grpc_receiver() as receiver:
        config = config_for(receiver, headers=(("x-api-key", "wfk_1"),), compression=compression)
        report = deliver(config, batch_of("a", "b"))
    (post,) = receiver.posts
    assert post.headers["x-api-key"] == "wfk_1"
    assert "runspan/" in post.headers["user-agent"]
    assert post.message.SerializeToString() == batch_of("a", "b").body()
    assert (report.runs_accepted, report.spans_accepted) == (2, 6)
    assert report.complete


@pytest.mark.parametrize("code", RETRYABLE)
def test_a_retryable_code_leads_to_another_attempt(code: str) -> None:
    """The six codes that OTLP calls retryable are retried after a delay within the bounds of the backoff."""
    time = FakeTime()
    with grpc_receiver(fail_once(Failure(code=grpc.StatusCode[code], message="later"))) as receiver:
        report = deliver(config_for(receiver), batch_of("a"), time=time)
    assert report.complete
    assert report.retries == 1
    assert len(time.slept) == 1
    assert 0 <= time.slept[0] <= 0.5


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_the_delay_of_retry_info_is_honoured(code: str) -> None:
    """RetryInfo says how long to wait, and makes RESOURCE_EXHAUSTED retryable."""
    time = FakeTime()
    with grpc_receiver(fail_once(Failure(code=grpc.StatusCode[code], message="busy", retry=2.5))) as receiver:
        report = deliver(config_for(receiver), batch_of("a"), time=time)
    assert report.complete
    assert time.slept == [2.5]


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "NOT_FOUND", "FAILED_PRECONDITION"])
def test_other_codes_are_rejections(code: str) -> None:
    """They reject the run by name and are not retried; RESOURCE_EXHAUSTED without RetryInfo is one of them."""
    with grpc_receiver(lambda post: Failure(code=grpc.StatusCode[code], message="no")) as receiver:
        report = deliver(config_for(receiver), batch_of("a"))
    assert len(receiver.posts) == 1
    assert [(each.what, each.reason) for each in report.rejections] == [("a", f"gRPC {code}: no")]


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"])
def test_a_code_that_applies_to_every_request_stops_the_export(code: str) -> None:
    """A wrong key is reported once, without the key that the receiver echoes."""
    secret = "wfk_0123456789abcdef"
    with grpc_receiver(lambda post: Failure(code=grpc.StatusCode[code], message=f"bad {secret}")) as receiver:
        config = config_for(receiver, headers=(("x-api-key", secret),))
        report = deliver(config, *[batch_of(f"r{n}") for n in range(10)])
    assert len(receiver.posts) == 1
    assert (report.runs_not_sent, report.runs_rejected) == (10, 0)
    assert f"gRPC {code}: bad ***" in report.stopped
    assert secret not in repr(config) + str(report.to_dict())


def test_one_bad_run_costs_only_itself() -> None:
    """INVALID_ARGUMENT halves the batch down to the bad run; the others arrive, each once."""

    def answer(post: Post) -> Answer:
        invalid = Failure(code=grpc.StatusCode.INVALID_ARGUMENT, message="odd attribute")
        return invalid if "bad" in post.runs else OK

    with grpc_receiver(answer) as receiver:
        report = deliver(config_for(receiver), batch_of("a", "b", "bad", "c", "d"))
    assert receiver.taken_runs == ["a", "b", "c", "d"]
    assert len(receiver.taken) == 12
    assert [(each.what, each.reason) for each in report.rejections] == [("bad", "gRPC INVALID_ARGUMENT: odd attribute")]


def test_a_run_over_the_servers_message_limit_is_sent_in_parts() -> None:
    """gRPC itself rejects a large message with RESOURCE_EXHAUSTED; the run goes in parts, its run span last."""
    with grpc_receiver(max_bytes=4000) as receiver:
        report = deliver(config_for(receiver), batch_of("a", run_of("large", spans=10, padding=1000), "b"))
    assert report.complete
    assert receiver.taken_runs == ["a", "b", "large"]
    assert [span.span_id[-1] for span in receiver.taken if span.name == "large"] == list(range(1, 11))


def test_a_partial_success_is_counted_and_not_retried() -> None:
    """Rejected spans are reported with the receiver's message."""
    with grpc_receiver(lambda post: partial(1, "no room")) as receiver:
        report = deliver(config_for(receiver), batch_of("a"))
    assert len(receiver.posts) == 1
    assert (report.runs_rejected, report.spans_accepted, report.spans_rejected) == (1, 0, 3)
    assert "no room" in report.rejections[0].reason


def test_a_response_that_is_not_otlp_is_not_a_success() -> None:
    """A body that cannot be parsed rejects the run."""
    with grpc_receiver(lambda post: Answer(body=b"\xff\xff")) as receiver:
        report = deliver(config_for(receiver), batch_of("a"))
    assert report.runs_accepted == 0
    assert not report.complete


def test_a_server_that_does_not_respond_in_time_is_retried() -> None:
    """The deadline of one attempt is the timeout."""
    done = threading.Event()

    def hang_once(post: Post) -> Answer:
        if post.number == 1:
            done.wait(30)
        return OK

    with grpc_receiver(hang_once) as receiver:
        report = deliver(config_for(receiver, timeout=0.3), batch_of("a"))
        done.set()
    assert report.complete
    assert report.retries >= 1


def test_an_unreachable_endpoint_stops_the_export_after_its_retry_time() -> None:
    """The retry time is spent once, and what was not sent is counted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    time = FakeTime()
    config = ExporterConfig(f"127.0.0.1:{port}", protocol=GRPC, insecure=True, compression="none")
    report = deliver(config, *[batch_of(f"r{n}") for n in range(10)], time=time)
    assert report.runs_not_sent == 10
    assert time.now == pytest.approx(POLICY.max_time, abs=0.1)
    assert "gRPC UNAVAILABLE" in report.stopped


def test_nothing_is_lost_over_a_server_that_often_fails() -> None:
    """With several workers and a failure in every third response, every run arrives."""

    def flaky(post: Post) -> Answer:
        return Failure(code=grpc.StatusCode.UNAVAILABLE, message="full") if post.number % 3 == 0 else OK

    time = FakeTime()
    with grpc_receiver(flaky) as receiver:
        transport = GrpcTransport(config_for(receiver))
        with OtlpExporter(transport, workers=4, retry=POLICY, clock=time.clock, sleep=time.sleep) as delivery:
            for number in range(120):
                assert delivery.submit(batch_of(f"r{number:03}"))
        report = delivery.report()
    assert receiver.taken_runs == [f"r{number:03}" for number in range(120)]
    assert report.complete
    assert report.requests == len(receiver.posts)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_with_the_given_authority_and_client_certificate(tmp_path: Path) -> None:
    """With certificate and client key the spans arrive; with the default authorities nothing does."""
    cert, key = certificate(tmp_path)
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], root_certificates=cert.read_bytes(), require_client_auth=True
    )
    tls = TlsConfig(str(cert), client_certificate=str(cert), client_key=str(key))
    with grpc_receiver(credentials=credentials) as receiver:
        trusted = deliver(config_for(receiver, insecure=False, tls=tls), batch_of("a"))
        untrusted = deliver(config_for(receiver, insecure=False), batch_of("b"))
    assert trusted.complete
    assert receiver.taken_runs == ["a"]
    assert untrusted.runs_not_sent == 1


def test_a_missing_certificate_file_is_a_config_error() -> None:
    """The error names the file."""
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        GrpcTransport(ExporterConfig("127.0.0.1:1", protocol=GRPC, tls=TlsConfig("nowhere.pem")))
