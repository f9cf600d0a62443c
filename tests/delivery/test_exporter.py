"""Delivery over OTLP/HTTP against real receivers: what is sent, what is sent again, and what is reported."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from runspan.delivery import Batch, ExporterConfig, ExportReport, HttpTransport, OtlpExporter, RetryPolicy, connect
from runspan.delivery.transport import ExportResult
from runspan.errors import ConfigError
from runspan.http.client import TlsConfig
from support.receivers import (
    CLOSE,
    OK,
    Answer,
    FakeTime,
    Post,
    batch_of,
    certificate,
    http_receiver,
    partial,
    run_of,
)

POLICY = RetryPolicy(max_time=60.0, first_delay=0.5, max_delay=30.0)


def deliver(
    config: ExporterConfig | str,
    *batches: Batch,
    workers: int = 1,
    time: FakeTime | None = None,
    retry: RetryPolicy = POLICY,
) -> ExportReport:
    """Send batches on a clock that advances only by sleeping, and check that every run is in exactly one count."""
    time = time or FakeTime()
    if isinstance(config, str):
        config = ExporterConfig(config)
    delivery = OtlpExporter(HttpTransport(config), workers=workers, retry=retry, clock=time.clock, sleep=time.sleep)
    runs = spans = 0
    for batch in batches:
        delivery.submit(batch)
        runs += len(batch.runs)
        spans += batch.spans
    report = delivery.close()
    assert report.runs_pending == report.spans_pending == 0
    assert report.runs_accepted + report.runs_rejected + report.runs_not_sent == runs
    assert report.spans_accepted + report.spans_rejected + report.spans_not_sent == spans
    return report


def first_then_ok(*answers: Answer) -> Callable[[Post], Answer]:
    return lambda post: answers[post.number - 1] if post.number <= len(answers) else OK


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def refuse_bad(status: int) -> Callable[[Post], Answer]:
    return lambda post: Answer(status, b"attribute too odd", content_type="text/plain") if "bad" in post.runs else OK


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_spans_arrive_complete_with_the_headers_that_otlp_wants(compression: str) -> None:
    """Every span of every run arrives, in one protobuf POST, compressed or not, with the headers that were set."""
    with http_receiver() as receiver:
        config = ExporterConfig(receiver.url, headers=(("x-api-key", "wfk_1"),), compression=compression)
        report = deliver(config, batch_of("a", "b"))
    (post,) = receiver.posts
    assert post.path == "/v1/traces"
    assert post.headers["content-type"] == "application/x-protobuf"
    assert post.headers.get("content-encoding") == (None if compression == "none" else "gzip")
    assert post.headers["x-api-key"] == "wfk_1"
    assert [(span.name, span.span_id[-1]) for span in post.spans] == [(r, n) for r in "ab" for n in (1, 2, 3)]
    assert (report.runs_accepted, report.spans_accepted, report.requests, report.retries) == (2, 6, 1, 0)
    assert report.bytes == post.size
    assert report.complete


def test_requests_share_a_connection() -> None:
    """One worker sends all its requests over one kept-alive connection."""
    with http_receiver() as receiver:
        deliver(receiver.url, *[batch_of(f"r{n}") for n in range(5)])
    assert len(receiver.posts) == 5
    assert len({post.connection for post in receiver.posts}) == 1


def test_a_defect_of_the_transport_costs_the_run_that_causes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are sent; without any that is, it ends the export as an endpoint does that accepts nothing."""
    real = HttpTransport.send

    def failing(self: HttpTransport, body: bytes) -> ExportResult:
        if b"bad" in body:
            raise ZeroDivisionError
        return real(self, body)

    monkeypatch.setattr(HttpTransport, "send", failing)
    with http_receiver() as receiver:
        report = deliver(receiver.url, batch_of("a", "bad", "b"), batch_of("c"))
        assert (receiver.taken_runs, report.runs_accepted) == (["a", "b", "c"], 3)
        (rejection,) = report.rejections
        assert rejection.what == "bad"
        assert re.fullmatch(r"gave up: internal error at test_exporter\.py:\d+: ZeroDivisionError", rejection.reason)
        report = deliver(receiver.url, batch_of("bad"))
        assert re.search(r"took nothing for 60 s: internal error at \S+: ZeroDivisionError$", report.stopped)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_retryable_status_leads_to_another_attempt(status: int) -> None:
    """The same body is sent again, after delays within the bounds of the backoff."""
    time = FakeTime()
    with http_receiver(first_then_ok(*[Answer(status)] * 4)) as receiver:
        report = deliver(receiver.url, batch_of("a"), time=time)
    assert (report.runs_accepted, report.requests, report.retries) == (1, 5, 4)
    assert len({post.message.SerializeToString() for post in receiver.posts}) == 1
    assert len(time.slept) == 4
    assert all(0 <= wait <= bound for wait, bound in zip(time.slept, (0.5, 1, 2, 4), strict=True))


def test_retry_after_in_seconds_is_honoured() -> None:
    """The delay is the one that the receiver asks for."""
    time = FakeTime()
    with http_receiver(first_then_ok(Answer(429, headers={"Retry-After": "7"}))) as receiver:
        report = deliver(receiver.url, batch_of("a"), time=time)
    assert time.slept == [7.0]
    assert report.complete


def test_retry_after_as_a_date_counts_from_the_receivers_clock() -> None:
    """A date is compared with the Date of the response, so that a wrong local clock does not matter."""
    time = FakeTime()
    dates = {"Date": formatdate(1_000_000, usegmt=True), "Retry-After": formatdate(1_000_012, usegmt=True)}
    with http_receiver(first_then_ok(Answer(503, headers=dates))) as receiver:
        assert deliver(receiver.url, batch_of("a"), time=time).complete
    assert time.slept == [12.0]


def test_retry_after_as_a_date_counts_from_our_clock_without_a_date_header() -> None:
    """Without a Date in the response, the local clock is used."""
    later = {"Retry-After": formatdate(1_000_012, usegmt=True)}
    with http_receiver(first_then_ok(Answer(503, headers=later))) as receiver:
        transport = HttpTransport(ExporterConfig(receiver.url), now=lambda: 1_000_002.0)
        outcome = transport.send(batch_of("a").body())
        transport.close()
    assert getattr(outcome, "delay", None) == 10.0


def test_a_retry_after_beyond_the_retry_time_ends_the_export_at_once() -> None:
    """With a retry time of a minute an hour is not waited for: the export stops and reports the delay."""
    time = FakeTime()
    with http_receiver(lambda post: Answer(429, headers={"Retry-After": "86400"})) as receiver:
        report = deliver(receiver.url, batch_of("a"), time=time)
    assert time.slept == []
    assert (report.runs_not_sent, report.requests) == (1, 1)
    reason = "took nothing and is not waited for longer than 60 s: HTTP 429, asks to wait 86400 s"
    assert report.stopped == f"{receiver.url} {reason}"


def test_a_retry_after_is_waited_for_up_to_an_hour() -> None:
    """However long the retry time is, the receiver is asked now and then."""
    time = FakeTime()
    with http_receiver(first_then_ok(Answer(429, headers={"Retry-After": "86400"}))) as receiver:
        report = deliver(receiver.url, batch_of("a"), time=time, retry=RetryPolicy(max_time=90_000.0))
    assert (time.slept, report.complete) == ([3600.0], True)


@pytest.mark.parametrize("status", [400, 413, 422, 500, 501, 505])
def test_a_rejection_is_never_retried(status: int) -> None:
    """A status that OTLP does not call retryable rejects the run by name, with the receiver's message."""
    with http_receiver(lambda post: Answer(status, b"no\x1b[31m thanks", content_type="text/plain")) as receiver:
        report = deliver(receiver.url, batch_of(run_of("a", spans=1)))
    assert len(receiver.posts) == 1
    assert [(each.what, each.reason) for each in report.rejections] == [("a", f"HTTP {status}: no [31m thanks")]
    assert not report.complete


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405])
def test_a_response_that_applies_to_every_request_stops_the_export(status: int) -> None:
    """A wrong key or path is reported once; the runs are not rejected, they are not sent."""
    with http_receiver(lambda post: Answer(status, headers={"Location": "/x"})) as receiver:
        report = deliver(receiver.url, *[batch_of(f"r{n}") for n in range(20)])
    assert len(receiver.posts) == 1
    assert (report.runs_not_sent, report.runs_rejected) == (20, 0)
    assert f"HTTP {status}" in report.stopped


def test_a_closed_connection_is_retried() -> None:
    """A receiver that closes the connection without a response has not accepted the request."""
    with http_receiver(first_then_ok(CLOSE, CLOSE)) as receiver:
        report = deliver(receiver.url, batch_of("a"))
    assert report.complete
    assert report.retries == 2


def test_a_receiver_that_does_not_respond_in_time_is_retried() -> None:
    """A timeout is retryable."""
    done = threading.Event()

    def hang_once(post: Post) -> Answer:
        if post.number == 1:
            done.wait(30)
        return OK

    with http_receiver(hang_once) as receiver:
        report = deliver(ExporterConfig(receiver.url, timeout=0.2), batch_of("a"))
        done.set()
    assert report.complete
    assert report.retries >= 1


def test_a_partial_success_of_one_run_names_it_and_is_not_retried() -> None:
    """The run is rejected with the receiver's message, because a part of it is of no use."""
    with http_receiver(lambda post: partial(2, "no room")) as receiver:
        report = deliver(receiver.url, batch_of("a"))
    assert len(receiver.posts) == 1
    assert (report.runs_rejected, report.spans_accepted, report.spans_rejected) == (1, 0, 3)
    (rejection,) = report.rejections
    assert (rejection.what, rejection.reason) == ("a", "2 of 3 spans rejected: no room")


@pytest.mark.parametrize("rejected", [1, 3, 2**62], ids=["one span", "all spans", "more than were sent"])
def test_a_partial_success_of_many_runs_leaves_none_in_doubt(rejected: int) -> None:
    """The receiver does not say which run it rejects spans of: the others are accepted, and only that one is not."""
    runs = [f"run{number}" for number in range(100)]

    def answer(post: Post) -> Answer:
        return partial(rejected, "a step of run 42 is odd") if "run42" in post.runs else OK

    with http_receiver(answer) as receiver:
        report = deliver(receiver.url, batch_of(*runs))
    assert (report.runs_accepted, report.runs_rejected, report.runs_not_sent) == (99, 1, 0)
    (rejection,) = report.rejections
    assert (rejection.what, rejection.reason) == (
        "run42",
        f"{min(rejected, 3)} of 3 spans rejected: a step of run 42 is odd",
    )
    assert len(receiver.posts) < 20


def test_a_negative_number_of_rejected_spans_is_no_success() -> None:
    """A receiver that counts wrongly is none whose confirmation means anything."""
    with http_receiver(lambda post: partial(-1, "")) as receiver:
        report = deliver(receiver.url, batch_of("a", "b"))
    assert (report.runs_accepted, report.runs_not_sent) == (0, 2)
    assert "-1 rejected spans" in report.stopped


def test_a_warning_in_a_full_success_is_passed_on() -> None:
    """Zero rejected spans with a message is a warning, and the runs are accepted."""
    with http_receiver(lambda post: partial(0, "old clock")) as receiver:
        report = deliver(receiver.url, batch_of("a"))
    assert report.complete
    assert report.warnings == ("old clock",)


@pytest.mark.parametrize("status", [400, 413])
def test_one_bad_run_costs_only_itself(status: int) -> None:
    """A rejected batch is halved down to the bad run; the others arrive, each once."""
    runs = [*(f"good{n}" for n in range(7)), "bad", *(f"good{n}" for n in range(7, 12))]
    with http_receiver(refuse_bad(status)) as receiver:
        report = deliver(receiver.url, batch_of(*[run_of(run, spans=1) for run in runs]))
    assert receiver.taken_runs == sorted(set(runs) - {"bad"})
    assert len(receiver.taken) == 12
    assert [each.what for each in report.rejections] == ["bad"]
    assert (report.runs_accepted, report.runs_rejected, report.retries) == (12, 1, 0)


def test_a_receiver_that_rejects_everything_ends_the_export() -> None:
    """After a thousand rejected runs and none accepted, the reason is not in the runs."""
    with http_receiver(lambda post: Answer(400)) as receiver:
        report = deliver(receiver.url, *[batch_of(*[run_of(f"{b}.{n}", 1) for n in range(50)]) for b in range(40)])
    assert "refused the first" in report.stopped
    assert 1000 <= report.runs_rejected < 1200
    assert report.runs_rejected + report.runs_not_sent == 2000
    assert len(report.rejections) == 100
    assert report.summary_lines()[1:3] == [
        f"{report.runs_rejected:,} runs rejected, {report.spans_rejected:,} spans:",
        f"  100 times: {', '.join(each.what for each in report.rejections[:5])}, … 95 more: HTTP 400",
    ]


def test_a_run_over_the_receivers_limit_is_sent_in_parts_with_its_run_span_last() -> None:
    """A run that is too large alone goes in several requests, so that its run span never arrives without its steps."""
    limit = 4000

    def bounded(post: Post) -> Answer:
        return Answer(413) if post.size > limit else OK

    with http_receiver(bounded) as receiver:
        report = deliver(receiver.url, batch_of(run_of("large", spans=10, padding=1000)))
    assert report.complete
    assert report.spans_accepted == 10
    assert [span.span_id[-1] for span in receiver.taken] == list(range(1, 11))


def test_a_run_over_our_own_limit_is_sent_in_parts_at_once() -> None:
    """Some collectors silently drop a request that is too large, so none exceeds the bound."""
    time = FakeTime()
    with http_receiver() as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url)), max_request_bytes=4000, clock=time.clock)
        delivery.submit(batch_of(run_of("large", spans=10, padding=1000)))
        report = delivery.close()
    assert report.runs_accepted == 1
    assert max(post.size for post in receiver.posts) < 4200
    assert receiver.taken[-1].kind == 2


def test_a_run_whose_steps_are_rejected_gets_no_run_span() -> None:
    """When a part is rejected, the rest of the run is not sent, and the run counts as rejected."""
    limit = 4000

    def bounded(post: Post) -> Answer:
        return Answer(413) if post.size > limit else Answer(400, b"odd step", content_type="text/plain")

    with http_receiver(bounded) as receiver:
        report = deliver(receiver.url, batch_of(run_of("large", spans=8, padding=1000)))
    assert receiver.taken == []
    assert not any(span.kind == 2 for post in receiver.posts if post.size <= limit for span in post.spans)
    assert [(each.what, each.reason) for each in report.rejections] == [("large", "HTTP 400: odd step")]


def test_an_unreachable_endpoint_stops_the_export_after_its_retry_time() -> None:
    """The retry time is spent once, not once per request, and what was not sent is counted."""
    time = FakeTime()
    report = deliver(f"http://127.0.0.1:{unused_port()}/v1/traces", *[batch_of(f"r{n}") for n in range(20)], time=time)
    assert report.runs_not_sent == 20
    assert time.now == pytest.approx(POLICY.max_time, abs=0.1)
    assert "took nothing for 60 s" in report.stopped
    assert "ConnectError" in report.stopped
    assert any("20 runs not sent" in line for line in report.summary_lines())


def test_a_poisoned_batch_does_not_stop_a_receiver_that_accepts_others() -> None:
    """A batch that is never accepted while others are is sent in parts, and only the bad run is named."""
    others = threading.Event()

    def answer(post: Post) -> Answer:
        if "bad" in post.runs:
            return Answer(503)
        if "other" in post.runs:
            others.set()
        return OK

    class Patient(FakeTime):
        def sleep(self, seconds: float) -> None:
            assert others.wait(30)
            super().sleep(seconds)

    with http_receiver(answer) as receiver:
        report = deliver(receiver.url, batch_of("a", "bad", "b"), batch_of("other"), workers=2, time=Patient())
    assert receiver.taken_runs == ["a", "b", "other"]
    assert [(each.what, each.reason) for each in report.rejections] == [("bad", "gave up: HTTP 503")]
    assert report.stopped == ""


def test_a_run_that_is_never_accepted_costs_only_itself_though_nothing_else_is_under_way() -> None:
    """A run that was accepted before is sent again, the smallest of its batch, to see that the endpoint accepts any."""
    first = batch_of(run_of("large", padding=1000), run_of("small"), run_of("medium", padding=500))
    with http_receiver(lambda post: Answer(503) if "bad" in post.runs else OK) as receiver:
        report = deliver(receiver.url, first, batch_of("bad"), batch_of("last"))
    assert [(each.what, each.reason) for each in report.rejections] == [("bad", "gave up: HTTP 503")]
    assert (report.runs_accepted, report.runs_not_sent, report.stopped) == (4, 0, "")
    others = [post.runs for post in receiver.posts if "bad" not in post.runs]
    assert others == [{"large", "small", "medium"}, {"small"}, {"last"}]


def test_an_endpoint_that_accepts_no_more_stops_the_export() -> None:
    """What it accepted earlier does not count: after its retry time a run is not rejected, but not sent."""
    with http_receiver(lambda post: OK if post.number == 1 else Answer(503)) as receiver:
        report = deliver(receiver.url, batch_of("a"), batch_of("b"), batch_of("c"))
    assert (report.runs_accepted, report.runs_rejected, report.runs_not_sent) == (1, 0, 2)
    assert "took nothing for 60 s: HTTP 503" in report.stopped


def test_a_run_gets_another_attempt_when_its_endpoint_accepts_again() -> None:
    """An outage that ends just after the retry time costs nothing."""
    sent_again = threading.Event()

    def answer(post: Post) -> Answer:
        if post.number > 1 and "a" in post.runs:
            sent_again.set()
        return OK if post.number == 1 or sent_again.is_set() else Answer(503)

    with http_receiver(answer) as receiver:
        report = deliver(receiver.url, batch_of("a"), batch_of("b"))
    assert report.complete
    assert report.runs_accepted == 2


def test_nothing_is_lost_over_a_receiver_that_often_fails() -> None:
    """With several workers and a failure in every third response, every run arrives and is reported."""
    failures = (Answer(503), CLOSE, Answer(429, headers={"Retry-After": "1"}), Answer(504))

    def flaky(post: Post) -> Answer:
        return failures[post.number // 3 % 4] if post.number % 3 == 0 else OK

    with http_receiver(flaky) as receiver:
        report = deliver(receiver.url, *[batch_of(f"r{n:03}") for n in range(150)], workers=4)
    assert receiver.taken_runs == [f"r{n:03}" for n in range(150)]
    assert report.complete
    assert report.runs_accepted == 150
    assert report.requests == len(receiver.posts) == 150 + report.retries


def test_submit_blocks_while_enough_is_in_flight() -> None:
    """A slow receiver blocks the producer: at most the workers' batches and as many queued ones are held."""
    produced = 0
    reached = threading.Event()
    under_way: list[int] = []

    def slow(post: Post) -> Answer:
        assert reached.wait(30)
        with receiver.lock:
            under_way.append(produced - len(receiver.taken))
        return OK

    with http_receiver(slow) as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url)), workers=2)
        for number in range(100):
            delivery.submit(batch_of(run_of(f"r{number}", spans=1)))
            produced += 1
            if produced == 4:
                reached.set()
        report = delivery.close()
    assert report.runs_accepted == 100
    # Two in flight, two queued, and two whose responses the workers have not read yet.
    assert max(under_way) <= 6


def test_submit_blocks_while_too_many_bytes_are_held() -> None:
    """Memory is bounded in bytes too; a batch over the bound passes alone, when no other is held."""
    batches = [batch_of(run_of(f"r{number}", spans=1, padding=2000)) for number in range(20)]
    produced = 0
    ahead: list[int] = []

    def watch(post: Post) -> Answer:
        ahead.append(produced - post.number)
        return OK

    with http_receiver(watch) as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url)), workers=4, max_held_bytes=1000)
        for batch in batches:
            delivery.submit(batch)
            produced += 1
        report = delivery.close()
    assert report.runs_accepted == 20
    assert max(ahead) <= 0


def test_stopping_wakes_a_worker_that_waits_for_its_next_attempt() -> None:
    """A stopped export does not wait for a Retry-After, and what was not accepted is not sent."""
    asked = threading.Event()

    def later(post: Post) -> Answer:
        asked.set()
        return Answer(503, headers={"Retry-After": "200"})

    with http_receiver(later) as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url)), workers=1)
        delivery.submit(batch_of("a"))
        assert asked.wait(30)
        delivery.stop("enough")
        report = delivery.close()
    assert report.stopped == "enough"
    assert report.runs_not_sent == 1


def test_an_interrupt_does_not_wait_for_a_response_and_counts_it_as_pending() -> None:
    """A run without a response is neither accepted nor lost."""
    asked, done = threading.Event(), threading.Event()

    def silent(post: Post) -> Answer:
        asked.set()
        done.wait(60)
        return OK

    with http_receiver(silent) as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url, timeout=60)), workers=1)
        delivery.submit(batch_of("a"))
        assert asked.wait(30)
        delivery.interrupt()
        report = delivery.close()
        done.set()
    assert report.runs_pending == 1
    assert any("1 run without a response" in line for line in report.summary_lines())


def test_secrets_of_headers_and_url_appear_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not in the repr of the config, in logs or in reasons, even when the receiver echoes them."""
    secret = "wfk_0123456789abcdef"

    def echo(post: Post) -> Answer:
        return Answer(401, f"key {post.headers['x-api-key']} unknown".encode(), content_type="text/plain")

    with http_receiver(echo) as receiver, caplog.at_level(logging.DEBUG):
        config = ExporterConfig(
            f"{receiver.url}?token={secret}", headers=(("x-api-key", secret), ("authorization", f"Bearer {secret}x"))
        )
        report = deliver(config, batch_of("a"))
    assert receiver.posts[0].headers["x-api-key"] == secret
    assert "key *** unknown" in report.stopped
    assert secret not in str(report.to_dict()) + "".join(report.summary_lines()) + caplog.text
    assert "x-api-key" not in repr(config)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (Answer(200), True),
        (Answer(202), True),
        (Answer(200, b"{}", content_type="application/json"), True),
        (Answer(200, b'{"partialSuccess":{"rejectedSpans":"3"}}', content_type="application/json; charset=u"), False),
        (Answer(200, b"<html>Welcome</html>", content_type="text/html"), False),
        (Answer(200, b"\xff\xff\xff"), False),
        (Answer(200, b"[1]", content_type="application/json"), False),
    ],
)
def test_only_an_otlp_success_counts_as_accepted(answer: Answer, accepted: bool) -> None:
    """A web page that responds 200 to anything is not a receiver: spans sent to it would be silently lost."""
    with http_receiver(lambda post: answer) as receiver:
        report = deliver(receiver.url, batch_of("a"))
    assert (report.runs_accepted == 1) is accepted
    assert report.complete is accepted


def test_an_endless_response_is_not_read_to_its_end() -> None:
    """A response has a few bytes; a large one is cut, and it is not OTLP."""
    with http_receiver(lambda post: Answer(200, b"x" * (8 << 20))) as receiver:
        report = deliver(receiver.url, batch_of("a"))
    assert report.runs_not_sent == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_trusts_the_given_authority_only(tmp_path: Path) -> None:
    """With the certificate the spans arrive, client certificate included; without it nothing is sent or retried."""
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED
    with http_receiver(tls=context) as receiver:
        url = receiver.url.replace("http:", "https:")
        tls = TlsConfig(str(cert), client_certificate=str(cert), client_key=str(key))
        trusted = deliver(ExporterConfig(url, tls=tls), batch_of("a"))
    assert trusted.complete
    context.verify_mode = ssl.CERT_NONE
    with http_receiver(tls=context) as receiver:
        untrusted = deliver(ExporterConfig(receiver.url.replace("http:", "https:")), batch_of("a"))
    assert receiver.posts == []
    assert untrusted.runs_not_sent == 1
    assert untrusted.requests == 1
    assert "certificate verify failed" in untrusted.stopped.lower()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_trusts_the_authorities_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``SSL_CERT_FILE`` counts, as for other programs of the machine: many networks have an authority of their own."""
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with http_receiver(tls=context) as receiver:
        trusted = deliver(ExporterConfig(receiver.url.replace("http:", "https:")), batch_of("a"))
    assert trusted.complete


def test_a_missing_certificate_file_is_a_config_error() -> None:
    """The error names the file before anything is sent."""
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        connect(ExporterConfig("https://127.0.0.1/v1/traces", tls=TlsConfig("nowhere.pem")))


def test_a_report_is_plain_json_values() -> None:
    """``--json`` prints it as it is."""
    with http_receiver(refuse_bad(400)) as receiver:
        report = deliver(receiver.url, batch_of(run_of("bad", 1), run_of("good", 1)))
    document = json.loads(json.dumps(report.to_dict()))
    assert document["runs_accepted"] == 1
    assert document["complete"] is False
    assert document["rejections"] == [{"what": "bad", "reason": "HTTP 400: attribute too odd", "spans": 1}]
    assert report.summary_lines() == [
        f"1 run accepted, 1 span, 3 requests, {report.bytes} bytes",
        "1 run rejected, 1 span:",
        "  bad: HTTP 400: attribute too odd",
    ]


def test_an_exception_of_one_response_costs_one_attempt() -> None:
    """A response that nobody expected is retried, as any failure is, and no run is left without a status."""

    class Odd(HttpTransport):
        left = 2

        def send(self, body: bytes) -> ExportResult:
            self.left -= 1
            if self.left >= 0:
                raise RecursionError("nested too deep")
            return super().send(body)

    time = FakeTime()
    with http_receiver() as receiver:
        delivery = OtlpExporter(Odd(ExporterConfig(receiver.url)), workers=1, clock=time.clock, sleep=time.sleep)
        delivery.submit(batch_of("a", "b"))
        report = delivery.close()
    assert (report.runs_accepted, report.retries, report.complete) == (2, 2, True)


def test_a_batch_after_close_is_refused() -> None:
    """A batch that could not be sent is not queued."""
    with http_receiver() as receiver:
        delivery = connect(ExporterConfig(receiver.url))
        assert delivery.submit(batch_of("a"))
        assert delivery.close().complete
        assert delivery.close().complete
        with pytest.raises(RuntimeError, match="after close"):
            delivery.submit(batch_of("b"))
