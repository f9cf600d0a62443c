"""Hostile spans and documents cause no wrong document, no crash, and bounded time and memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runspan import Run, decode, encode
from runspan.backends.sqlite import SqliteStore
from runspan.codec.attributes import STEP_TEMPLATES, text_events
from runspan.codec.encode import content_step_ids
from runspan.codec.fields import MANIFEST, REVISION
from runspan.errors import PayloadError, TraceIncomplete
from runspan.model.span import Span
from runspan.otlp.json import read_json
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

NOW = 1_768_467_700_000_000_000
TIMES = {"startedAt": "2026-01-15T09:00:01.000Z", "completedAt": "2026-01-15T09:00:02.000Z"}


def run_of(output: str, steps: int = 2) -> Run:
    listed = [{"id": f"s{number}", "status": "completed", **TIMES} for number in range(steps)]
    return Run.from_dict({"id": "r1", "status": "completed", **TIMES, "output": output, "steps": listed})


def changed(span: Span, **members: object) -> Span:
    return Span(**{**{name: getattr(span, name) for name in Span.__struct_fields__}, **members})  # type: ignore[arg-type]


def with_attributes(span: Span, **attributes: object) -> Span:
    own = {**span.attributes(), **{key.replace("__", "."): value for key, value in attributes.items()}}
    return changed(span, shared=(), own=list(own.items()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    with SqliteStore(tmp_path / "data") as store:
        yield store


def send(store: SqliteStore, *spans: Span) -> None:
    store.write(read_protobuf(request_bytes(Resource(), map(scoped_bytes, spans))))


@pytest.mark.parametrize("steps", [2, 1], ids=["the same steps", "fewer steps"])
def test_a_document_put_later_counts(store: SqliteStore, steps: int) -> None:
    """A revision span that waited for a lost step does not replace a document that was put after it."""
    older, newer = run_of("A"), run_of("B", steps)
    spans = encode(older)
    send(store, spans[0], spans[-1])
    store.put(newer, observed_at=NOW)
    assert store.document("r1").text == newer.text
    assert not store.document("r1").incomplete
    send(store, spans[1])
    assert store.document("r1").text == newer.text


@pytest.mark.parametrize(("one", "other"), [("5", 5), ("null", None), ("[]", [])])
def test_different_attributes_give_different_span_ids(one: object, other: object) -> None:
    """A workflow id that is a string and one that is a number with the same digits have different span ids."""
    step = {"id": "a", "status": "completed"}
    spans = [
        encode(Run.from_dict({"id": "r", "workflowId": workflow, "status": "completed", "steps": [step]}))[0]
        for workflow in (one, other)
    ]
    assert spans[0].span_id != spans[1].span_id


def test_a_run_after_2116_ends(store: SqliteStore) -> None:
    """A snapshot with times far in the future does not outrank the finished run."""
    running = Run.from_json('{"id":"r","status":"running","startedAt":"2200-01-01T00:00:00.000Z","steps":[]}')
    ended = Run.from_json('{"id":"r","status":"completed","startedAt":"2200-01-01T00:00:00.000Z","steps":[]}')
    assert decode([*encode(running), *encode(ended)]) == ended


def test_many_equal_steps() -> None:
    """Twenty thousand equal steps have different span ids, computed in linear time."""
    steps = [{"id": "a", "status": "skipped"}] * 20_000
    run = Run.from_dict({"id": "r", "status": "completed", "steps": steps})
    spans = encode(run)
    assert len({span.span_id for span in spans}) == 20_001
    assert content_step_ids(run) == [span.span_id for span in spans[:-1]]
    assert decode(spans) == run


def test_a_manifest_that_repeats_a_span_id() -> None:
    """A revision span cannot multiply one large step."""
    step, revision = encode(
        Run.from_dict({"id": "r", "status": "completed", "steps": [{"id": "a", "status": "skipped"}]})
    )
    count = 1000
    manifest = step.span_id.hex() * count
    many = with_attributes(revision, runspan__run__step_count=count, runspan__run__steps__bytes=len(manifest))
    attributes = {key: value for key, value in many.attributes().items() if key != MANIFEST}
    events = text_events([(MANIFEST, manifest.encode())], revision.end)
    with pytest.raises(TraceIncomplete, match="twice"):
        decode([step, changed(revision, shared=(), own=list(attributes.items()), events=events)])


@pytest.mark.parametrize("manifest", ["A" * 16, "g" * 16, " " * 16, "." * 15 + "0", "0" + "." * 16 + "0" * 15])
def test_a_manifest_of_other_text(manifest: str) -> None:
    """Only span ids as they are written, and marks of open steps in place of whole ids, are a manifest."""
    (revision,) = encode(Run.from_dict({"id": "r", "status": "completed", "steps": []}))
    count = len(manifest) // 16
    changed_span = with_attributes(revision, runspan__run__step_count=count, runspan__run__steps=manifest)
    with pytest.raises(TraceIncomplete, match="not a span id"):
        decode([changed_span])


def test_long_labels_are_not_cached() -> None:
    """The cache of span templates is bounded in bytes too."""
    before = len(STEP_TEMPLATES)
    for number in range(5):
        step = {"id": f"{number}" + "x" * 100_000, "status": "completed"}
        encode(Run.from_dict({"id": "r", "status": "completed", "steps": [step]}))
    assert len(STEP_TEMPLATES) == before


def test_many_spans_of_one_id() -> None:
    """Of thousands of different spans with the same id a bounded number is tried."""
    step, revision = encode(
        Run.from_dict({"id": "r", "status": "completed", "steps": [{"id": "a", "status": "skipped"}]})
    )
    others = [with_attributes(step, runspan__step__name=f"n{number}") for number in range(3000)]
    with pytest.raises(TraceIncomplete):
        decode([*others, revision])
    assert decode([*others, step, revision]).steps[0].id == "a"


def test_a_role_that_is_not_a_string(store: SqliteStore) -> None:
    """A span whose role is a list is kept, and other spans of the request are stored."""
    run = run_of("A")
    spans = encode(run)
    invalid = with_attributes(changed(spans[0], span_id=b"12345678"), runspan__role=["step"])
    send(store, invalid, *spans)
    assert store.document("r1").text == run.text


def test_the_same_key_with_different_kinds_of_value(store: SqliteStore) -> None:
    """A fragment with a repeated key does not stop the writer."""
    spans = encode(run_of("A"))
    own = [
        *spans[0].pairs(),
        ("runspan.step.attempt", 1),
        ("runspan.step.attempt", "x"),
        ("runspan.x", [1]),
        ("runspan.x", {}),
    ]
    send(store, changed(spans[0], shared=(), own=own))
    send(store, spans[-1])
    store.put(run_of("B"), observed_at=NOW)
    assert store.document("r1").text == run_of("B").text


def test_negative_enumerations(store: SqliteStore) -> None:
    """A negative kind is kept unchanged."""
    attempt = with_attributes(changed(encode(run_of("A"))[0], kind=-20_000, status=-1), runspan__role="attempt")
    send(store, attempt)
    assert [span.kind for span in store.spans(attempt.trace_id)] == [-20_000]


def test_the_highest_possible_revision_is_rejected(store: SqliteStore) -> None:
    """A revision span with the highest integer as its revision is rejected, and the run can still be written."""
    revision = encode(Run.from_dict({"id": "r1", "status": "running", "steps": []}), observed_at=NOW)[-1]
    highest = with_attributes(revision, **{REVISION.replace(".", "__"): 2**63 - 1})
    result = store.write(read_protobuf(request_bytes(Resource(), [scoped_bytes(highest)])))
    assert result.rejected
    store.put(run_of("A"), observed_at=NOW)
    store.put(run_of("B"), observed_at=NOW)
    assert store.document("r1").text == run_of("B").text


def test_numbers_out_of_range_of_a_double() -> None:
    """OTLP/JSON with a number too large for a double is an unreadable payload, not a crash."""
    span = {"traceId": "1" * 32, "spanId": "1" * 16, "attributes": [{"key": "x", "value": {"doubleValue": 10**400}}]}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    with pytest.raises(PayloadError):
        read_json(body)
