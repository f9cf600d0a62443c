"""The shape of traces, for the people and engines that read them: bounds, times, parents, names and points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from runspan import Run, TraceIncomplete, decode, encode
from runspan.codec.decode import read_summary, verify_run
from runspan.codec.fields import (
    MAX_ATTRIBUTE_BYTES,
    REVISION,
    ROLE,
    SCOPE_LIVE,
    SCOPE_REVISION,
    SCOPE_RUN,
    SCOPE_STEP,
    SUMMARY_DIGEST,
    TEXT_NUMBER,
)
from runspan.model.document import sort_time, time_ns
from runspan.model.span import ERROR, INTERNAL, SERVER, Span, to_plain
from runspan.model.timestamps import SECOND, parse_ns
from runspan.otlp.protobuf_writer import span_bytes
from support.corpus import cases, runs

LATEST = (1 << 63) - 2
NOW = 1_800_000_000 * SECOND
CASES = cases()


def step(step_id: str, start: int | None = None, end: int | None = None, **members: Any) -> dict[str, Any]:
    """A finished step of these seconds of the run."""
    times = {name: at(second) for name, second in (("startedAt", start), ("completedAt", end)) if second is not None}
    return {"id": step_id, "name": step_id.title(), "type": "action", "status": "completed", **times} | members


def at(second: int) -> str:
    """The time so many seconds after nine o'clock."""
    return f"2024-01-15T09:{second // 60:02}:{second % 60:02}.000Z"


def run_of(*steps: dict[str, Any], **members: Any) -> Run:
    """A completed run of a minute."""
    document = {"id": "run_1", "workflowId": "wf_1", "status": "completed", "startedAt": at(0), "completedAt": at(60)}
    return Run.from_dict({**document, **members, "steps": list(steps)})


def named(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def check_shape(run: Run, spans: list[Span]) -> None:
    """Hold the spans of a run to the rules that apply to every document."""
    assert decode(spans).text == run.text
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert len(list(span.pairs())) <= 100
        assert all(len(event.attributes) <= 100 for event in span.events)
        texts = [value for _, value in span.pairs()] + [value for event in span.events for _, value in event.attributes]
        plain = [to_plain(value) for value in texts]
        assert all(len(value.encode()) <= 2048 for value in plain if type(value) is str)
        assert 0 <= span.start < span.end < LATEST
        assert span.scope in {SCOPE_RUN, SCOPE_REVISION, SCOPE_LIVE, SCOPE_STEP}
        if span.scope in {SCOPE_REVISION, SCOPE_LIVE}:
            assert span.end == span.start + 1
    live, roots = (
        [span for span in spans if not span.parent_id and (span.scope == SCOPE_LIVE) == is_live]
        for is_live in (True, False)
    )
    assert len(live) <= (not run.finished)
    assert len(roots) == run.finished
    for root in roots:
        assert root.kind == SERVER
        assert root.scope == SCOPE_RUN
        start, end = time_ns(run.envelope.started_at), time_ns(run.envelope.completed_at)
        if start is not None and start > 0 and end is not None and end > start:
            assert (root.start, root.end) == (start, end)
        for span in spans:
            if start is not None and end is not None and start < span.start and span.end < end:
                parent = by_id[span.parent_id]
                assert parent.start <= span.start
                assert span.end <= parent.end or parent.end == parent.start + 1 or span.scope == SCOPE_STEP


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_every_case_keeps_the_shape(text: str) -> None:
    """No span has more than 100 attributes, no event either, and no time is beyond what backends hold."""
    run = Run.from_json(text)
    check_shape(run, encode(run, tenant="acme", observed_at=NOW))
    check_shape(run, encode(run, observed_at=NOW, exception_events=False))


@given(runs())
def test_every_document_keeps_the_shape(run: Run) -> None:
    """The same for documents that no case has."""
    check_shape(run, encode(run, observed_at=NOW))


def test_a_skipped_step_lies_where_it_would_have_run() -> None:
    """It is named so, and comes after the steps before it, within the run."""
    run = run_of(step("first", 1, 20), step("second", 5, 10), step("third", status="skipped"), step("last", 30, 40))
    skipped = named(encode(run), "Third (skipped)")
    assert skipped.start == parse_ns(at(20))
    early = run_of(step("first", status="skipped"), step("second", 5, 10))
    assert named(encode(early), "First (skipped)").start == parse_ns(at(0))
    late = run_of(step("first", 1, 90), step("second", status="skipped"))
    assert named(encode(late), "Second (skipped)").end == parse_ns(at(60))


def test_a_skipped_step_that_moves_is_another_span() -> None:
    """Its position depends on the steps before it, and a span id is written once."""
    one = run_of(step("first", 1, 20), step("second", status="skipped"))
    other = run_of(step("first", 1, 21), step("second", status="skipped"))
    assert named(encode(one), "Second (skipped)").span_id != named(encode(other), "Second (skipped)").span_id


def test_rounds_are_children_of_their_loop() -> None:
    """Loops nest; a step whose id occurs once, or whose time is outside, is not a round."""
    run = run_of(
        step("outer", 0, 50, type="loop"),
        step("once", 1, 2),
        step("inner", 2, 20, type="loop"),
        step("send", 3, 4),
        step("send", 5, 6),
        step("inner", 22, 40, type="loop"),
        step("send", 23, 24),
        step("send", 55, 56),
    )
    spans = encode(run)
    *steps, root = spans
    outer, once, inner, send_1, send_2, inner_2, send_3, send_4 = steps
    assert [span.parent_id for span in (outer, once, send_4)] == [root.span_id] * 3
    assert inner.parent_id == inner_2.parent_id == outer.span_id
    assert send_1.parent_id == send_2.parent_id == inner.span_id
    assert send_3.parent_id == inner_2.span_id
    assert decode(spans).text == run.text


def test_loops_of_equal_times_do_not_contain_each_other() -> None:
    """Parents never form a circle, whatever the times are."""
    run = run_of(*[step("loop", 1, 9, type="loop") for _ in range(5)], step("loop", 9, 1, type="loop"))
    spans = encode(run)
    parents = {span.span_id: span.parent_id for span in spans}
    for start in parents:
        seen: set[bytes] = set()
        span_id = start
        while span_id:
            assert span_id not in seen
            seen.add(span_id)
            span_id = parents.get(span_id, b"")


@pytest.mark.parametrize("status", ["completed", "running"])
def test_ids_that_are_lone_surrogates_recur_as_others_do(status: str) -> None:
    """Such an id is kept as JSON text: a repeated one makes a round of a loop, one that does not recur makes none."""
    times = {2: "\ud800", 3: "\ud800", 4: "\udfff"}
    steps = [step(step_id, second, second + 1, name=f"At {second}") for second, step_id in times.items()]
    loop_step = step("\udc00", 1, 9, type="loop", name="Loop")
    document = {**run_of(status=status).to_dict(), "steps": [loop_step, *steps]}
    run = Run.from_json(json.dumps(document))
    spans = encode(run, observed_at=NOW)
    loop = named(spans, "Loop")
    assert [named(spans, f"At {second}").parent_id == loop.span_id for second in times] == [True, True, False]
    assert decode(spans).text == run.text


def test_an_unfinished_run_is_one_live_span_with_points() -> None:
    """The live span names the trace until there is a root; revisions and open steps are points below it."""
    run = run_of(
        step("done", 1, 2),
        step("open", 3, status="running"),
        step("fresh", 58, status="running"),
        status="running",
        completedAt=None,
    )
    now = parse_ns(at(60)) or 0
    spans = encode(run, observed_at=now)
    root_id = encode(run_of())[-1].span_id
    live = named(spans, "run wf_1 (live)")
    revision = named(spans, "run wf_1 (revision)")
    point = named(spans, "Open (started)")
    started = parse_ns(at(0)) or 0
    assert (live.parent_id, live.start, live.scope) == (b"", started + 1000, SCOPE_LIVE)
    assert (revision.parent_id, revision.start, revision.scope) == (live.span_id, started, SCOPE_REVISION)
    assert dict(revision.pairs())["runspan.observed_at"] == at(60)
    assert dict(revision.pairs())["cicd.pipeline.run.state"] == "executing"
    assert (point.parent_id, point.start) == (live.span_id, parse_ns(at(3)))
    assert named(spans, "Done").parent_id == root_id
    assert not [span for span in spans if span.name.startswith("Fresh")]


def test_a_run_that_has_not_started_is_below_the_root_to_come() -> None:
    """Its root will start at another time, maybe later, and must be the first span of the trace that has no parent."""
    pending = run_of(status="pending", startedAt=None, createdAt=at(0), completedAt=None)
    started = run_of(status="running", createdAt=at(0), completedAt=None)
    before, after = (named(encode(run), "run wf_1 (live)") for run in (pending, started))
    assert before.parent_id == encode(run_of())[-1].span_id
    assert after.parent_id == b""
    assert before.span_id != after.span_id


def test_live_spans_and_points_are_written_once() -> None:
    """A later observation gives the same live span and the same points, and one more revision."""
    run = run_of(step("open", 3, status="running"), status="running", completedAt=None)
    first, second = (encode(run, observed_at=parse_ns(at(second))) for second in (30, 50))
    assert list(map(span_bytes, first[:-1])) == list(map(span_bytes, second[:-1]))
    assert first[-1].span_id != second[-1].span_id


@pytest.mark.parametrize("member", ["id", "name", "type"])
def test_a_label_that_is_kept_as_json_text_gives_the_same_ids_everywhere(member: str) -> None:
    """The ids of points and open attempts follow from the text of such a label, not from where it lies in memory."""
    tries = [{"startedAt": at(4), "completedAt": at(5)}]
    open_step = step("open", 3, status="running", attempts=tries)
    runs = [
        Run.from_json(json.dumps({**run_of(status="running").to_dict(), "steps": [{**open_step, member: label}]}))
        for label in ("\ud800", "\ud800", "\udfff")
    ]
    first, again, other = ([span.span_id for span in encode(run, observed_at=NOW)[:3]] for run in runs)
    assert first == again
    assert len({*first, *other}) == 5, "the live span is that of both, attempt and point are not"


def test_what_was_live_ends_as_what_is_exported_at_once() -> None:
    """The spans of the end are those of an export of the finished run; the finished steps were sent before."""
    steps = [step("one", 1, 2), step("two", 3, 4)]
    live = encode(run_of(*steps, status="running", completedAt=None), observed_at=parse_ns(at(10)))
    ended = encode(run_of(*steps))
    assert {span.span_id for span in ended[:-1]} <= {span.span_id for span in live}


def test_rounds_of_an_open_loop_are_below_its_point() -> None:
    """The loop has no span yet; once it has ended, its rounds are its children."""
    rounds = [step("send", 3, 4), step("send", 5, 6)]
    running = run_of(step("each", 2, type="loop", status="running"), *rounds, status="running", completedAt=None)
    spans = encode(running, observed_at=parse_ns(at(6)))
    point = named(spans, "Each (started)")
    assert [span.parent_id for span in spans if span.name == "Send"] == [point.span_id] * 2
    assert decode(spans).text == running.text


def test_a_long_payload_is_in_events() -> None:
    """The attributes say how long it is and how it begins."""
    output = {"text": "é" * 200_000}
    run = run_of(step("big", 1, 2, output=output))
    span = encode(run)[0]
    attributes = dict(span.pairs())
    text = json.dumps(output, ensure_ascii=False, separators=(",", ":")).encode()
    assert attributes["runspan.step.output.bytes"] == len(text)
    preview = str(attributes["runspan.step.output.preview"])
    assert text.decode().startswith(preview.removesuffix("…"))
    assert len(preview.encode()) <= MAX_ATTRIBUTE_BYTES
    assert "runspan.step.output" not in attributes
    assert [dict(event.attributes)[TEXT_NUMBER] for event in span.events] == list(range(len(span.events)))
    assert {event.name for event in span.events} == {"output"}


@pytest.mark.parametrize("lost", [0, 1, -1])
def test_a_lost_event_is_noticed(lost: int) -> None:
    """A text with a gap is no text."""
    run = run_of(step("big", 1, 2, output="x" * 500_000))
    *steps, root = encode(run)
    events = list(steps[0].events)
    del events[lost]
    damaged = Span(**{**{name: getattr(steps[0], name) for name in Span.__struct_fields__}, "events": tuple(events)})
    with pytest.raises(TraceIncomplete):
        decode([damaged, root])


def test_a_failed_attempt_is_an_error() -> None:
    """Its span has the status, description and type of the error."""
    attempts = [
        {
            "attempt": 1,
            "status": "failed",
            "startedAt": at(1),
            "completedAt": at(2),
            "error": {"code": "E", "message": "m"},
        },
        {"attempt": 2, "status": "completed", "startedAt": at(3), "completedAt": at(4)},
    ]
    run = run_of(step("call", 1, 4, attempts=attempts))
    failed, passed = [span for span in encode(run) if span.name == "attempt of Call"]
    assert (failed.status, failed.message, dict(failed.pairs())["error.type"]) == (ERROR, "m", "E")
    assert passed.status != ERROR


def test_conventions_identify_runs_and_tasks() -> None:
    """Each span has the run's id and each step an identity of its own."""
    *steps, root = encode(run_of(step("a", 1, 2), step("a", 3, 4)))
    assert all(dict(span.pairs())["cicd.pipeline.run.id"] == "run_1" for span in (*steps, root))
    assert len({dict(span.pairs())["cicd.pipeline.task.run.id"] for span in steps}) == 2
    assert {span.kind for span in steps} == {INTERNAL}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"startedAt": None, "createdAt": at(7)}, at(7)),
        ({"startedAt": "9999-12-31T00:00:00Z", "createdAt": at(7)}, at(7)),
        ({"startedAt": "0001-01-01T00:00:00Z"}, at(3)),
        ({"startedAt": "2262-04-11T23:47:16.854775807Z"}, at(3)),
        ({"startedAt": None, "steps": [], "completedAt": at(9)}, at(9)),
        ({"startedAt": None, "steps": [], "completedAt": None}, "2027-01-15T08:00:00.000Z"),
        ({"startedAt": "2016-12-31T23:59:60Z"}, "2016-12-31T23:59:59.999999999Z"),
    ],
)
def test_every_run_has_a_place_in_time(members: dict[str, Any], expected: str) -> None:
    """The first usable time of the document, else the time of observation."""
    document = {"id": "run_1", "status": "completed", "completedAt": at(60), "steps": [step("a", 3, 4)]} | members
    run = Run.from_dict(document)
    spans = encode(run, observed_at=NOW)
    assert spans[-1].start == parse_ns(expected)
    assert decode(spans).text == run.text
    summary = read_summary(spans[-1])
    assert summary is not None
    assert summary.time == spans[-1].start


def test_a_run_without_any_time_has_a_root_for_each_observation() -> None:
    """A span id is written once, and both roots prove the same document."""
    run = Run.from_dict({"id": "run_1", "status": "completed"})
    first, second = encode(run, observed_at=NOW), encode(run, observed_at=NOW + SECOND)
    assert first[-1].span_id != second[-1].span_id
    assert decode([*first, *second]).text == run.text
    assert sort_time(run.envelope) == 0


@pytest.mark.parametrize("key", ["runspan.run.status", "runspan.workflow.id", REVISION, "runspan.tenant"])
def test_a_changed_list_item_is_noticed(key: str) -> None:
    """The summary has a digest of its own, so that a list needs no steps to verify an item."""
    root = encode(run_of(step("a", 1, 2)), tenant="acme")[-1]
    assert read_summary(root) is not None
    changed = [
        (name, (value + 1 if isinstance(value, int) else "x") if name == key else value) for name, value in root.pairs()
    ]
    values = {name: getattr(root, name) for name in Span.__struct_fields__}
    with pytest.raises(TraceIncomplete):
        read_summary(Span(**{**values, "shared": (), "own": changed}))


def test_redacted_digests_are_noticed() -> None:
    """A root without the digest is no list item."""
    root = encode(run_of())[-1]
    values = {name: getattr(root, name) for name in Span.__struct_fields__}
    kept = [(name, value) for name, value in root.pairs() if name != SUMMARY_DIGEST]
    with pytest.raises(TraceIncomplete):
        read_summary(Span(**{**values, "shared": (), "own": kept}))


def test_two_ends_of_one_run_are_a_conflict() -> None:
    """The same one of two is returned whatever the order, and the other is named."""
    one, other = (encode(run_of(step("a", 1, 2, output=value))) for value in (1, 2))
    found = verify_run([*one, *other])
    again = verify_run([*other, *one])
    assert found.run.text == again.run.text
    assert len(found.conflict) == 1
    assert found.conflict == again.conflict
    assert verify_run([*one, *one]).conflict == ()
    digests = {dict(spans[-1].pairs())["runspan.digest"] for spans in (one, other)}
    assert found.conflict[0] in digests
    assert ROLE in dict(one[-1].pairs())
