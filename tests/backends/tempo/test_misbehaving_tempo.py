"""What a reader of Tempo says when the server returns another trace, is starting, or leaves out attributes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conformance.harness import SECOND, T0, ids, make_run, otlp, running
from runspan import Run, encode
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.tempo import TempoReader
from runspan.codec.fields import SCOPE_RUN
from runspan.contracts import RunQuery, damaged_note
from runspan.delivery import connect, exporter_config
from runspan.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable, NotFound
from runspan.export import export
from runspan.model.span import Span, run_ids, to_plain
from runspan.otlp.protobuf_writer import Resource
from support.jaeger import Response, serving
from support.servers import Program, require, start_tempo
from support.servers.tempo import IMAGE

NOT_READY = (503, "text/plain", b"Some services are not Running:\nStarting: 12\n")
READY = (200, "text/plain", b"ready\n")
NO_TRACES = b'{"traces":[],"metrics":{"completedJobs":1,"totalJobs":1}}'
RUN = make_run("mine")
LIVE = running("live")


def trace_response(*spans: Span) -> Response:
    """Return Tempo's response with these spans, empty without any."""
    trace = otlp(spans)
    length, size = len(trace), b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return 200, "application/protobuf", b"\x0a" + size + bytes([length]) + trace if spans else b""


def search_response(*spans: Span, without: Sequence[str] = ()) -> Response:
    """Return Tempo's search response that has found these run and revision spans."""
    traces = []
    for span in spans:
        attributes = [
            {"key": key, "value": {"intValue": str(value)} if type(value) is int else {"stringValue": value}}
            for key, value in span.attributes().items()
            if isinstance(to_plain(value), str | int) and key not in without
        ]
        found = {
            "spanID": span.span_id.hex(),
            "name": span.name,
            "startTimeUnixNano": str(span.start),
            "durationNanos": str(span.end - span.start),
            "attributes": attributes,
        }
        start = str(span.start)
        traces.append({"traceID": span.trace_id.hex(), "startTimeUnixNano": start, "spanSets": [{"spans": [found]}]})
    body = {"traces": traces, "metrics": {"completedJobs": 1, "totalJobs": 1}}
    return 200, "application/json", json.dumps(body).encode()


def tempo(
    found: Response = (200, "application/json", NO_TRACES),
    trace: Callable[[str], Response] = lambda _: trace_response(),
    ready: Response = READY,
) -> Callable[[str], Response]:
    """Return a Tempo: what it responds to searches, for the trace of an id and to ``/ready``."""

    def respond(path: str) -> Response:
        if path == "/ready":
            return ready
        if path.startswith("/api/search"):
            after_end = "runspan.revision+%3E" in path
            return (200, "application/json", NO_TRACES) if after_end else found
        return trace(path.rpartition("/")[2].partition("?")[0])

    return respond


def reader_of(url: str) -> TempoReader:
    return TempoReader(RemoteConfig("tempo", url), sleep=lambda _: None)


@pytest.mark.parametrize(
    "spans",
    [encode(make_run("other")), [*encode(RUN)[:-1], encode(make_run("other"))[0], encode(RUN)[-1]]],
    ids=["another trace", "a span of another trace"],
)
def test_spans_of_another_trace_are_refused(spans: list[Span]) -> None:
    """A document, the spans of a trace and a list come from the trace that was requested, or not at all."""
    listed = search_response(encode(LIVE, observed_at=T0)[-1])
    with serving(tempo(listed, lambda _: trace_response(*spans))) as url:
        reader = reader_of(url)
        trace_id = run_ids("mine").trace_id
        calls = (
            (lambda: reader.document("mine"), trace_id),
            (lambda: reader.spans(trace_id), trace_id),
            (lambda: reader.search(RunQuery()), run_ids("live").trace_id),
        )
        for call, asked in calls:
            with pytest.raises(BackendRefused) as caught:
                call()
            message = str(caught.value)
            assert f"Tempo at {url}" in message
            assert asked.hex() in message
            assert run_ids("other").trace_id.hex() in message or asked == run_ids("live").trace_id
        reader.close()


def test_a_run_of_another_tenant_is_not_this_one() -> None:
    """The trace of a tenant's run does not serve the run of the same id without a tenant."""
    with serving(tempo(trace=lambda _: trace_response(*encode(RUN, tenant="other")))) as url:
        reader = reader_of(url)
        with pytest.raises(BackendRefused):
            reader.document("mine")
        reader.close()


def test_a_server_that_is_starting_is_busy() -> None:
    """It answers 200 and nothing; then it has neither no runs nor no such run."""
    with serving(tempo(ready=NOT_READY)) as url:
        reader = reader_of(url)
        calls = (
            lambda: reader.search(RunQuery()),
            lambda: reader.document("mine"),
            lambda: reader.spans(run_ids("mine").trace_id),
            reader.check,
        )
        for call in calls:
            with pytest.raises(BackendBusy, match=f"Tempo at {url}"):
                call()
        reader.close()


@pytest.mark.parametrize("ready", [READY, (404, "text/plain", b"not found")], ids=["ready", "hidden by a gateway"])
def test_a_server_without_runs_has_an_empty_list(ready: Response) -> None:
    """An empty server that is ready has no runs."""
    with serving(tempo(ready=ready)) as url:
        reader = reader_of(url)
        page = reader.search(RunQuery())
        assert (list(page.items), page.cursor, page.partial) == ([], None, ())
        with pytest.raises(NotFound):
            reader.document("mine")
        with pytest.raises(NotFound):
            reader.spans(run_ids("mine").trace_id)
        reader.close()


def test_an_error_of_a_server_that_is_starting_is_busy_too() -> None:
    """The same error of a server that is ready is one of this trace."""
    error = (500, "text/plain", b"error querying live-stores in Querier.FindTraceByID: error finding partition ring")
    for ready, kind in ((NOT_READY, BackendBusy), (READY, BackendRefused)):
        with serving(tempo(trace=lambda _: error, ready=ready)) as url:
            reader = reader_of(url)
            with pytest.raises(kind):
                reader.document("mine")
            reader.close()


def test_a_live_store_that_lags_is_busy() -> None:
    """What it has read is no list. Another error of a search is permanent."""
    lagging = b"error querying live-stores in Querier.SearchRecent: rpc error: code = Unknown desc = "
    for text, kind in ((b"cannot guarantee complete results", BackendBusy), (b"out of memory", BackendRefused)):
        with serving(tempo((500, "text/plain", lagging + text))) as url:
            reader = reader_of(url)
            with pytest.raises(kind, match=f"Tempo at {url}") as caught:
                reader.search(RunQuery())
            assert getattr(caught.value, "retry_after", None) == (1 if kind is BackendBusy else None)
            reader.close()


def test_a_trace_that_is_found_by_the_second_request() -> None:
    """A response without spans that was on its way when the server became ready says nothing."""
    responses = [trace_response(), trace_response(*encode(RUN)), trace_response(), trace_response(*encode(RUN))]
    with serving(tempo(trace=lambda _: responses.pop(0))) as url:
        reader = reader_of(url)
        assert reader.document("mine").text == RUN.text
        assert len(reader.spans(run_ids("mine").trace_id)) == 3
        reader.close()


def test_an_item_that_the_response_does_not_prove_is_read_from_its_trace() -> None:
    """A run with a long error is listed even if its steps are lost, and a changed one is left out and named once."""
    long = make_run("long", error={"message": "m" * 5000})
    changed = encode(make_run("changed", T0 - SECOND))[-1]
    own = [(key, "failed" if key == "runspan.run.status" else value) for key, value in changed.pairs()]
    forged = Span(**{name: getattr(changed, name) for name in Span.__struct_fields__} | {"shared": (), "own": own})
    foreign = encode(make_run("foreign", T0 - 2 * SECOND), tenant="other")[-1]
    spans = {span.trace_id.hex(): span for span in (encode(long)[-1], forged, foreign)}
    found = search_response(*spans.values(), without=["runspan.summary.digest"])
    with serving(tempo(found, lambda trace_id: trace_response(spans[trace_id]))) as url:
        reader = reader_of(url)
        page = reader.search(RunQuery())
        assert list(page.items) == [long.summary()]
        assert page.partial == (damaged_note("changed"),)
        first = reader.search(RunQuery(limit=1))
        assert (list(first.items), first.partial) == ([long.summary()], (damaged_note("changed"),))
        reader.close()


def test_a_text_that_tempo_writes_for_an_absent_attribute() -> None:
    """An attribute with a dedicated column comes as ``nil`` where it is absent; a run may have that text as well."""
    absent, real = make_run("absent", triggerType=...), make_run("real", T0 - SECOND, triggerType="nil")
    spans = [encode(run)[-1] for run in (absent, real)]
    status, kind, body = search_response(*spans)
    response = json.loads(body)
    attributes = response["traces"][0]["spanSets"][0]["spans"][0]["attributes"]
    attributes.append({"key": "runspan.run.trigger_type", "value": {"stringValue": "nil"}})
    attributes.append({"key": "instrumentation:name", "value": {"stringValue": SCOPE_RUN}})
    traces = {span.trace_id.hex(): span for span in spans}
    found = status, kind, json.dumps(response).encode()
    with serving(tempo(found, lambda trace_id: trace_response(traces[trace_id]))) as url:
        reader = reader_of(url)
        assert list(reader.search(RunQuery()).items) == [absent.summary(), real.summary()]
        reader.close()


def test_long_names_are_found_by_their_beginning() -> None:
    """Span names are cut, so a query for a long workflow still fits into a URL."""
    with serving(tempo()) as url:
        reader = reader_of(url)
        for query in (RunQuery(workflow_id="w" * 70_000), RunQuery(status="\0" * 30_000)):
            assert list(reader.search(query).items) == []
        reader.close()


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.campaign)])
def test_a_server_that_restarts_never_has_fewer_runs(tmp_path: Path, times: int) -> None:
    """From the first connection on, lists and documents are complete, or the server is busy or unreachable."""
    place = require("tempo", IMAGE)
    if place.program is None:
        pytest.skip("needs a Tempo that the test can restart")
    server = start_tempo(place, tmp_path, from_blocks=True)
    now = time.time_ns()
    runs = [make_run(f"r{number:03}", now // SECOND * SECOND - (600 + number) * SECOND) for number in range(100)]
    with connect(exporter_config({}, endpoint=server.otlp)) as delivery:
        assert export(runs, delivery, observed_at=lambda: now, resource=Resource()).complete
    expected = [run.id for run in runs]
    reader = reader_of(server.url)
    deadline = time.monotonic() + 60
    while ids(reader.search(RunQuery(limit=200))) != expected:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    reader.close()
    failures: list[Any] = []
    try:
        for _ in range(times):
            assert server.program is not None
            server.program.stop()
            server.program = Program([place.program, f"-config.file={tmp_path / 'tempo.json'}"], tmp_path)
            counts = _watch(server.url, runs[0], expected, failures)
            assert failures == []
            assert counts["complete"] > 0
    finally:
        server.stop()


def _watch(url: str, run: Run, expected: list[str], failures: list[Any]) -> dict[str, int]:
    """Read a list and a document again and again until the server has been ready for a while; count the results."""
    counts = {"complete": 0, "error": 0}
    stop = time.monotonic() + 30

    def read(call: Callable[[TempoReader], bool]) -> None:
        complete = 0
        while complete < 5 and time.monotonic() < stop:
            reader = reader_of(url)
            try:
                if call(reader):
                    complete += 1
                    counts["complete"] += 1
                else:
                    failures.append("incomplete")
            except (BackendBusy, BackendUnreachable):
                counts["error"] += 1
                time.sleep(0.003)
            except (NotFound, BackendError) as error:
                failures.append(repr(error))
            finally:
                reader.close()

    calls: tuple[Callable[[TempoReader], bool], ...] = (
        lambda reader: ids(reader.search(RunQuery(limit=200))) == expected,
        lambda reader: ids(reader.search(RunQuery(limit=200))) == expected,
        lambda reader: ids(reader.search(RunQuery(limit=5))) == expected[:5],
        lambda reader: reader.document(run.id).text == run.text,
    )
    threads = [threading.Thread(target=read, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts
