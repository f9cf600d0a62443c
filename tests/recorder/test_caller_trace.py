"""``run_parent="child"``: the waterfall of a run in the trace of its caller, and the run itself unharmed in its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import ConfigError, Recorder
from runspan.codec.copies import copy_span_id
from runspan.codec.fields import ROLE, SCOPE_COPY
from runspan.model.span import run_ids
from support.receivers import OK, Answer, Post
from support.recorder import WAIT, Harness, delivered_document, recording

T = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{T}-{CALLER}-01"}


@pytest.fixture
def harness() -> Iterator[Harness]:
    with recording(run_parent="child") as found:
        yield found


def in_trace(harness: Harness, trace_id: str) -> dict[str, Any]:
    """Return the spans without a role of a trace by their names, as protobuf messages. No name has two spans."""
    assert harness.recorder.flush(WAIT)
    spans = [span for span in harness.foreign_spans if span.trace_id.hex() == trace_id]
    found = {span.name: span for span in spans}
    # What a resumed run sends again is the same.
    assert len(found) == len({span.span_id for span in spans}) == len({span.SerializeToString() for span in spans})
    return found


def parents(spans: dict[str, Any]) -> dict[str, str]:
    """Return the name of each span's parent, that of the caller as CALLER."""
    names = {span.span_id.hex(): name for name, span in spans.items()} | {CALLER: CALLER}
    return {name: names[span.parent_span_id.hex()] for name, span in spans.items()}


def test_the_caller_s_trace_shows_the_run_as_one_waterfall(harness: Harness) -> None:
    """Run, steps and attempts are below the caller's span, and what is made inside them below theirs."""
    recorder = harness.recorder
    tracer = recorder.tracer_provider.get_tracer("http client")
    outgoing: dict[str, str] = {}

    def get() -> None:
        with tracer.start_as_current_span("GET"):
            outgoing.update(recorder.headers())
        raise TimeoutError("slow")

    with (
        pytest.raises(TimeoutError),
        recorder.run("wf", run_id="run_1", headers=HEADERS) as run,
        run.step("call", name="Call", input="x" * 5000) as step,
        step.attempt(),
    ):
        get()
    spans = in_trace(harness, T)
    assert parents(spans) == {
        "run wf (copy)": CALLER,
        "Call": "run wf (copy)",
        "attempt of Call": "Call",
        "GET": "attempt of Call",
    }
    context, flags = outgoing["traceparent"].rsplit("-", 1)
    assert context == f"00-{T}-{spans['GET'].span_id.hex()}"
    assert int(flags, 16) & 1, "not sampled"
    assert [spans[name].status.message for name in ("run wf (copy)", "Call", "attempt of Call")] == ["slow"] * 3
    originals = {span.name: span for span in harness.spans if span.attributes()[ROLE] in ("run", "step", "attempt")}
    for name, copy in spans.items():
        if name != "GET":
            original = originals[name.removesuffix(" (copy)")]
            (link,) = copy.links
            assert (link.trace_id, link.span_id) == (original.trace_id, original.span_id)
            assert copy.span_id == copy_span_id(original.span_id)
            assert (copy.start_time_unix_nano, copy.end_time_unix_nano) == (original.start, original.end)
    assert delivered_document(harness, run)["steps"][0]["input"] == "x" * 5000
    assert {span.trace_id for span in harness.spans} == {run.trace_id} == {run_ids("run_1").trace_id}


def test_two_runs_of_one_request_stay_apart(harness: Harness) -> None:
    """Also if their steps are alike: each has its own spans in the shared trace, and its own document."""
    runs = []
    for number in range(2):
        with harness.recorder.run("wf", run_id=f"run_{number}", headers=HEADERS) as run, run.step("a") as step:
            step.set_output("same")
        runs.append(run)
    assert harness.recorder.flush(WAIT)
    copies = [span for span in harness.foreign_spans if span.trace_id.hex() == T]
    assert len({span.span_id for span in copies}) == len(copies) == 4
    by_id = {span.span_id: span for span in copies}
    for run in runs:
        (step,) = [span for span in harness.spans_of(run.id) if span.attributes()[ROLE] == "step"]
        root_id = copy_span_id(run.record.root_id)
        assert by_id[copy_span_id(step.span_id)].parent_span_id == root_id
        assert by_id[root_id].parent_span_id.hex() == CALLER
        assert delivered_document(harness, run)["id"] == run.id


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-x"}, {"traceparent": f"00-{T}-{CALLER}-00"}])
def test_without_a_recorded_caller_there_is_no_copy(harness: Harness, headers: dict[str, str]) -> None:
    """Then the spans made inside the run are in its own trace."""
    tracer = harness.recorder.tracer_provider.get_tracer("t")
    with harness.recorder.run("wf", run_id="run_1", headers=headers) as run, tracer.start_as_current_span("GET"):
        pass
    delivered_document(harness, run)
    assert list(in_trace(harness, run.trace_id.hex())) == ["GET"]
    assert len(harness.foreign_spans) == 1


def test_a_run_started_by_a_step_is_below_the_step(harness: Harness) -> None:
    """In the trace of the caller; without one in that of the outer run, whose document is decoded as before."""
    for headers, trace_id in ((HEADERS, T), ({}, "")):
        with harness.recorder.run("outer", headers=headers) as outer, outer.step("start") as step:
            with harness.recorder.run("inner") as inner, inner.step("work"):
                pass
            step.set_child(inner.id)
        spans = in_trace(harness, trace_id or outer.trace_id.hex())
        parent_id = copy_span_id(step.span_id) if headers else step.span_id
        assert spans["run inner (copy)"].parent_span_id == parent_id
        assert spans["work"].parent_span_id == copy_span_id(inner.record.root_id)
        assert delivered_document(harness, inner)["parentRunId"] == outer.id
        delivered_document(harness, outer)


def test_a_resumed_run_goes_on_in_the_same_waterfall(harness: Harness) -> None:
    """Steps of both processes are below one copy of the run, written at the end."""
    run = harness.recorder.run("wf", run_id="run_1", headers=HEADERS).start()
    with run.step("before"):
        pass
    checkpoint = run.suspend().release()
    assert "run wf (copy)" not in in_trace(harness, T)
    with harness.recorder.resume(checkpoint) as run:
        run.resume()
        with run.step("after"):
            pass
    spans = in_trace(harness, T)
    assert parents(spans) == {"run wf (copy)": CALLER, "before": "run wf (copy)", "after": "run wf (copy)"}
    delivered_document(harness, run)


def test_copies_are_sent_until_the_receiver_has_them() -> None:
    """Spans that are sent again are the same bytes, and none is left out."""
    answers = iter([Answer(503), Answer(503)])

    def answer(post: Post) -> Answer:
        return next(answers, OK)

    with recording(answer, run_parent="child") as harness:
        with harness.recorder.run("wf", run_id="run_1", headers=HEADERS) as run:
            for name in "abc":
                with run.step(name):
                    pass
                run.flush(0.05)
        assert harness.recorder.flush(WAIT)
        sent: dict[tuple[bytes, bytes], set[bytes]] = {}
        for post in harness.receiver.posts:
            for resource in post.message.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        sent.setdefault((span.trace_id, span.span_id), set()).add(span.SerializeToString())
        assert {len(contents) for contents in sent.values()} == {1}
        assert set(in_trace(harness, T)) == {"a", "b", "c", "run wf (copy)"}
        delivered_document(harness, run)


def test_by_default_a_run_is_in_its_own_trace_only() -> None:
    with recording() as harness:
        with harness.recorder.run("wf", run_id="run_1", headers=HEADERS) as run:
            pass
        delivered_document(harness, run)
        assert not harness.foreign_spans


def test_another_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="run_parent: expected link or child, got 'root'"):
        Recorder(endpoint="http://127.0.0.1:4318", run_parent="root")


def test_the_span_processors_of_a_provider_get_the_copies() -> None:
    """Copies have a scope of their own, which a pipeline can filter by."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = Recorder(provider=provider, run_parent="child")
    with provider.get_tracer("web").start_as_current_span("POST") as request, recorder.run("wf"):
        pass
    assert recorder.flush(WAIT)
    recorder.shutdown()
    (copy,) = [span for span in exporter.get_finished_spans() if span.instrumentation_scope.name == SCOPE_COPY]
    assert copy.parent is not None
    assert copy.parent.span_id == request.get_span_context().span_id
    assert copy.context.trace_id == request.get_span_context().trace_id
    assert copy.kind is trace.SpanKind.INTERNAL
