"""The fast reader and the decoder read the same documents from the same requests, whatever was done to these."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan import Run, encode
from runspan.backends.sqlite.queries import retention_start
from runspan.backends.sqlite.revision import StoredRevision, is_exact_match
from runspan.codec import decode, fields
from runspan.codec.decode import verify_run
from runspan.codec.semconv import COST
from runspan.errors import NotFound, PayloadError, PayloadTooLarge, TraceIncomplete
from runspan.model.document import step_text
from runspan.model.span import Span
from runspan.model.timestamps import MAX_NS, MILLISECOND, canonical_text
from runspan.otlp import bulk_reader
from runspan.otlp.bulk_reader import COMPILED, Rules, read_request
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_reader import MAX_SPANS, ParsedRequest, read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes, single_spans
from runspan.testing import generate
from support.corpus import BAD_PAYLOADS, PAYLOADS, cases, runs
from support.servers.finding import missing

SEED = 20261128
RUNS = [Run.from_json(text) for text in generate(60, seed=SEED)]
TRACE = bytes(range(1, 17))
NO_DIGEST = "0" * 64


class NoDigest:
    """In place of SHA-256: all documents have the same digest, so nothing hides what else was read."""

    def __init__(self, text: bytes) -> None:
        pass

    def digest(self) -> bytes:
        return bytes(32)

    def hexdigest(self) -> str:
        return NO_DIGEST


@pytest.fixture(autouse=True)
def native_reader() -> None:
    """Without it there is one way to read a request."""
    if not COMPILED:
        missing("compiled", "the package was built without its native part")


@pytest.fixture
def no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all documents one digest, so that it does not hide what else was read."""
    monkeypatch.setattr(decode, "sha256", NoDigest)
    monkeypatch.setattr(bulk_reader, "_READER", bulk_reader.new_reader(Rules(is_hashed=False)))


def written(*runs: Run, tenant: str = "") -> bytes:
    """Return the request of the exporter."""
    return request_bytes(
        Resource(), chain.from_iterable([write_run(run, tenant=tenant, observed_at=1) for run in runs])
    )


def by_number(body: bytes) -> bytes:
    """Return a request with its fields in the order of their numbers, as the Collector writes it."""
    return TracesData.FromString(body).SerializeToString()


def read(reader: Callable[[bytes], ParsedRequest], body: bytes) -> ParsedRequest | str:
    try:
        return reader(body)
    except (PayloadError, PayloadTooLarge) as error:
        return str(error)


def compare(body: bytes) -> int:
    """Hold what was read fast of a request to what the decoder reads; return how many runs were read fast."""
    usual, fast = read(read_protobuf, body), read(read_request, body)
    if isinstance(usual, str) or isinstance(fast, str):
        assert usual == fast
        return 0
    taken = {run.trace_id: run for run in fast.runs}
    assert len(taken) == len(fast.runs)
    assert fast.spans == [span for span in usual.spans if span.trace_id not in taken]
    assert (fast.total, fast.rejected, fast.foreign) == (usual.total, usual.rejected, usual.foreign)
    assert usual.resources == fast.resources | {run.trace_id: run.resource for run in fast.runs}
    spans: dict[bytes, list[Span]] = {}
    for span in usual.spans:
        spans.setdefault(span.trace_id, []).append(span)
    for run in fast.runs:
        found = spans[run.trace_id]
        verified = verify_run(found)
        assert is_exact_match(verified, found)
        envelope = verified.run.envelope
        assert (verified.run.text, verified.run.plain) == (run.text, True)
        assert (envelope.id, envelope.workflow_id, envelope.status) == (
            run.run_id,
            UNSET if run.workflow_id is None else run.workflow_id,
            run.status,
        )
        assert (verified.run.summary(), decode.sha256(run.text).digest()) == (run.summary, run.digest)
        assert run.ended in (None, retention_start(envelope, -1))
        assert verified.conflict == ()
        assert (verified.tenant, verified.revision) == (run.tenant, fields.ROOT_REVISION)
        assert (verified.manifest, verified.position) == (run.step_ids, run.position)
        assert run.step_count == len(run.step_ids)
        if run.has_content_ids:
            stored = StoredRevision(run.run, run.tenant, verified.revision, run.step_ids, run.position)
            assert stored.packed_step_ids() is None
        assert fast.spans_of(run.trace_id) == found
    assert not any(span.trace_id in taken for span in fast.spans)
    return len(fast.runs)


def is_complete(spans: list[Span]) -> bool:
    try:
        return is_exact_match(verify_run(spans), spans)
    except (TraceIncomplete, NotFound):
        return False


@pytest.mark.parametrize("change", [bytes, by_number], ids=["as written", "by number"])
@pytest.mark.parametrize("tenant", ["", "acme"])
def test_usual_runs_are_read_fast(change: Callable[[bytes], bytes], tenant: str) -> None:
    """Every run of the generator, which has steps without times, loops, errors, agents and sub-workflows."""
    assert compare(change(written(*RUNS, tenant=tenant))) == len(RUNS)


def test_usual_step_ids_and_ends_are_known() -> None:
    """None of them is worked out again: also those of steps without times, and of rounds of a loop."""
    assert all(run.has_content_ids and run.ended for run in read_request(written(*RUNS)).runs)
    kinds = {step.type for run in RUNS for step in run.steps}
    assert {"loop", "agent"} <= kinds


@pytest.mark.parametrize("text", cases().values(), ids=cases())
def test_corpus(text: bytes) -> None:
    """Every document, as the exporter writes it and by number, alone and with others."""
    run = Run.from_json(text)
    for body in (written(run), request_bytes(Resource(), map(scoped_bytes, encode(run)))):
        compare(body)
        compare(by_number(body))
    assert compare(written(RUNS[0], run, RUNS[1])) >= 2


@given(runs())
def test_any_document(run: Run) -> None:
    """Documents of hypothesis."""
    compare(written(run))


def test_incomplete_and_foreign_spans_beside_runs() -> None:
    """A trace that lacks a step, or has a span of other instrumentation, is left to the decoder; others are not."""
    spans = [encode(run) for run in RUNS[:4]]
    foreign = WireSpan(trace_id=spans[1][0].trace_id, span_id=b"foreign1", name="GET /")
    data = TracesData.FromString(request_bytes(Resource(), map(scoped_bytes, chain(spans[0], spans[1], spans[2][1:]))))
    data.resource_spans[0].scope_spans.add().spans.append(foreign)
    body = data.SerializeToString()
    assert compare(body) == 1
    assert [run.run for run in read_request(body).runs] == [RUNS[0]]


@pytest.mark.parametrize(
    "repeated",
    [
        WireSpan(trace_id=TRACE),
        b"\x0a\x00",
        b"\x12\x00",
        b"\x22\x01x",
        b"\x39" + bytes(8),
        b"\x41" + bytes(8),
        b"\x2a\x00",
        b"",
    ],
    ids=["trace id", "no trace id", "no span id", "parent id", "no start", "no end", "no name", "nothing"],
)
@pytest.mark.parametrize("place", ["labels", "end"])
def test_a_field_that_is_repeated_replaces_the_first(repeated: WireSpan | bytes, place: str) -> None:
    """Also with the default value, which no message shows."""
    more = repeated if isinstance(repeated, bytes) else repeated.SerializeToString()
    spans = [span for _, span, _ in single_spans(write_run(RUNS[0], observed_at=1))]
    for index, span in enumerate(spans):
        length = 2 if span[1] < 128 else 3
        content = span[length:]
        at = content.index(b"\x4a") if place == "labels" else len(content)
        changed = content[:at] + more + content[at:]
        each = [*spans[:index], b"\x12" + _varint(len(changed)) + changed, *spans[index + 1 :]]
        scopes = [fields.SCOPE_STEP] * (len(spans) - 1) + [fields.SCOPE_RUN]
        body = request_bytes(Resource(), zip(scopes, each, repeat(1), strict=False))
        assert compare(body) == (not more)


@pytest.mark.parametrize("count", [500, 20_000])
@pytest.mark.parametrize("key", [COST, "deployment"])
def test_many_attributes(count: int, key: str) -> None:
    """A span has no more attributes than the decoder takes."""
    data = TracesData.FromString(written(RUNS[0], RUNS[1]))
    span = data.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.extend([KeyValue(key=key, value=AnyValue(double_value=0.5))] * count)
    assert compare(data.SerializeToString()) == (2 if count == 500 else 1)


@pytest.mark.parametrize("scope", ["", fields.SCOPE_STEP])
def test_too_many_spans(scope: str) -> None:
    """The limit holds before anything is made of the spans."""
    assert compare(request_bytes(Resource(), [(scope, b"\x12\x00", 1)] * (MAX_SPANS + 1))) == 0
    with pytest.raises(PayloadTooLarge):
        read_request(b"\x0a\x00" * (MAX_SPANS + 1))


def test_requests_without_a_run_span() -> None:
    """Steps that are sent before their run, snapshots and spans of other instrumentation are left to the decoder."""
    spans = [span for run in RUNS for span in encode(run)[:-1]]
    assert compare(request_bytes(Resource(), map(scoped_bytes, spans))) == 0


def with_attribute(run: Run, key: str, text: str | bytes, number: int = -1) -> bytes:
    """Return the request of a run with another text in an attribute of one span, and no digest."""
    data = TracesData.FromString(written(run))
    spans = [span for scope in data.resource_spans[0].scope_spans for span in scope.spans]
    for attribute in [each for each in spans[number].attributes if each.key == key]:
        spans[number].attributes.remove(attribute)
    if isinstance(text, str):
        spans[number].attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
    else:
        # A string of bytes that are no UTF-8 is made of one that is as long.
        stand_in = "\x01" * len(text)
        spans[number].attributes.append(KeyValue(key=key, value=AnyValue(string_value=stand_in)))
    for attribute in spans[-1].attributes:
        if attribute.key == fields.DIGEST:
            attribute.value.string_value = NO_DIGEST
    body = data.SerializeToString()
    return body if isinstance(text, str) else body.replace(stand_in.encode(), text)


UNUSUAL_PAYLOADS = {
    "lone high surrogate",
    "lone low surrogate",
    "surrogates the wrong way round",
    "depth 900",
    "depth 5000",
    "deep objects",
    "exponents",
    "long integer",
}
"""Payloads that are left to the decoder."""


@pytest.mark.usefixtures("no_digest")
@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads(name: str) -> None:
    """Valid JSON is taken as it is; what msgspec might refuse, and numbers out of range, are left to the decoder."""
    for key, number in (("runspan.step.output", 0), ("runspan.run.output", -1)):
        assert compare(with_attribute(RUNS[0], key, PAYLOADS[name], number)) == (name not in UNUSUAL_PAYLOADS)


@pytest.mark.usefixtures("no_digest")
@pytest.mark.parametrize(
    "text",
    [
        *BAD_PAYLOADS.values(),
        "",
        " 1",
        "1\n",
        "1 2",
        '1,"output":2',
        b'"\xff"',
        b'"\xc3"',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b'"\xf4\x90\x80\x80"',
    ],
)
def test_bad_payloads(text: str | bytes) -> None:
    """No document is made of what is not one JSON value in UTF-8."""
    for key, number in (("runspan.step.output", 0), ("runspan.run.output", -1)):
        assert compare(with_attribute(RUNS[0], key, text, number)) == 0


@pytest.mark.usefixtures("no_digest")
@given(st.text())
def test_any_payload(text: str) -> None:
    """Mostly no JSON, and JSON strings of any text, with and without escapes."""
    for payload in (text, json.dumps(text), json.dumps(text, ensure_ascii=False)):
        if not _SURROGATES.search(payload):
            compare(with_attribute(RUNS[0], "runspan.run.output", payload))


_SURROGATES = re.compile("[\ud800-\udfff]")

TIMES = [
    "absent",
    "null",
    "1",
    '""',
    '"x"',
    '"2024-01-15T09:00:01.200Z"',
    '"2024-01-15T09:00:01.200z"',
    '"2024-01-15T09:00:01Z"',
    '"2024-01-15T09:00:01.200123Z"',
    '"2024-01-15T09:00:01.200+01:00"',
    '"2024-02-30T09:00:01.200Z"',
    '"2023-02-29T09:00:01.200Z"',
    '"2024-02-29T23:59:59.999Z"',
    '"2024-01-15T24:00:00.000Z"',
    '"2024-01-15T23:59:60.000Z"',
    '"2024-00-15T09:00:01.200Z"',
    '"2024-01-00T09:00:01.200Z"',
    '"1970-01-01T00:00:00.000Z"',
    '"1969-12-31T23:59:59.999Z"',
    '"2262-04-11T23:47:16.854Z"',
    '"2262-04-11T23:47:16.855Z"',
    '"9999-12-31T23:59:59.999Z"',
    '"0000-01-01T00:00:00.000Z"',
    '"\\u0032024-01-15T09:00:01.200Z"',
    '"é"',
    '"2024-01-15T09:00:01.200Z" ',
]


@pytest.mark.usefixtures("no_digest")
@pytest.mark.parametrize("text", TIMES)
def test_times_in_attributes(text: str) -> None:
    """Absent ones, null, and texts in any form."""
    for key in ("runspan.step.started_at", "runspan.step.completed_at"):
        compare(with_attribute(RUNS[0], key + fields.NON_CANONICAL, text, 0))
    for key in ("runspan.run.started_at", "runspan.run.completed_at"):
        compare(with_attribute(RUNS[0], key + fields.NON_CANONICAL, text))


@given(st.integers(0, MAX_NS // MILLISECOND), st.integers(1, 10**11))
def test_any_canonical_time(start: int, length: int) -> None:
    """Each one has the same text."""
    started, completed = (canonical_text(min(ms * MILLISECOND, MAX_NS)) for ms in (start, start + length))
    run = Run.from_dict({"id": "r", "status": "failed", "startedAt": started, "completedAt": completed, "steps": []})
    assert compare(written(run)) == 1


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.sampled_from("abc"), "type": st.sampled_from(("loop", "task")), "status": st.just("completed")},
            optional={
                name: st.integers(0, 9).map(lambda second: f"2024-01-15T09:00:0{second}.000Z")
                for name in ("startedAt", "completedAt")
            },
        ),
        max_size=12,
    ),
    st.sampled_from((None, "", "w", "é" * 300)),
)
def test_step_ids_of_rounds(steps: list[dict[str, Any]], workflow: str | None) -> None:
    """They are recognised wherever steps and loops lie, unless steps are equal."""
    document = {"id": "r", "status": "completed", "startedAt": "2024-01-15T09:00:00.000Z"}
    if workflow is not None:
        document["workflowId"] = workflow
    run = Run.from_dict({**document, "completedAt": "2024-01-15T09:00:09.500Z", "steps": steps})
    body = written(run)
    if compare(body) and len({step_text(step) for step in run.steps}) == len(steps):
        assert all(found.has_content_ids for found in read_request(body).runs) or workflow == "é" * 300


# Mutations.

VALUES = (
    AnyValue(string_value=""),
    AnyValue(string_value="null"),
    AnyValue(string_value='1,"output":2'),
    AnyValue(string_value='"\\u0041"'),
    AnyValue(string_value="absent"),
    AnyValue(string_value='"2024-01-15T09:00:01.000Z"'),
    AnyValue(string_value="completed"),
    AnyValue(string_value="run"),
    AnyValue(string_value="x" * 3000),
    AnyValue(int_value=0),
    AnyValue(int_value=-5),
    AnyValue(int_value=1 << 62),
    AnyValue(bool_value=True),
    AnyValue(double_value=-0.0),
    AnyValue(),
)
KEYS = sorted(fields.KEYS) + [
    key + suffix
    for key in ("runspan.step.started_at", "runspan.step.output", "runspan.run.steps", "runspan.run.started_at")
    for suffix in (fields.NON_CANONICAL, fields.SIZE, fields.PREVIEW)
]


def change_message(random: Random, data: TracesData) -> None:
    """Change one thing of a message that is still valid protobuf."""
    scopes = [scope for each in data.resource_spans for scope in each.scope_spans if scope.spans]
    scope = random.choice(scopes)
    span = random.choice(scope.spans)
    attributes = span.attributes
    attribute = random.choice(attributes)
    match random.randrange(16):
        case 0:
            attribute.value.CopyFrom(random.choice(VALUES))
        case 1:
            attributes.append(KeyValue(key=random.choice(KEYS), value=random.choice(VALUES)))
        case 2:
            attributes.append(random.choice(random.choice(scope.spans).attributes))
        case 3:
            attributes.remove(attribute)
        case 4:
            other = random.choice(attributes)
            attribute.value.CopyFrom(other.value)
        case 5:
            attributes.insert(random.randrange(len(attributes)), random.choice(attributes))
        case 6:
            attributes.append(KeyValue(key=random.choice(("deployment", "é", "")), value=random.choice(VALUES)))
        case 7:
            scope.spans.append(span)
        case 8:
            scope.spans.remove(span)
        case 9:
            span.start_time_unix_nano, span.end_time_unix_nano = random.choice(
                [(0, 1), (1, 2), (span.end_time_unix_nano, span.end_time_unix_nano + 1), (1 << 63, 1 << 63), (5, 10**6)]
            )
        case 10:
            span.events.add(name="exception").attributes.append(random.choice(attributes))
        case 11:
            key = KeyValue(key=fields.TEXT_KEY, value=AnyValue(string_value=attribute.key))
            number = KeyValue(key=fields.TEXT_NUMBER, value=AnyValue(int_value=0))
            piece = KeyValue(key=fields.TEXT_PIECE + "0", value=AnyValue(string_value="1"))
            span.events.add(name="text").attributes.extend([key, number, piece])
        case 12:
            span.parent_span_id = random.choice([b"", b"1", bytes(8), b"12345678", span.span_id])
        case 13:
            span.span_id = random.choice([b"", b"1", bytes(8), b"12345678", random.choice(scope.spans).span_id])
        case 14:
            span.trace_id = random.choice([b"", bytes(16), random.choice(scope.spans).trace_id])
        case _:
            span.trace_state, span.status.code, scope.scope.name = random.choice(
                [("a=b", 0, scope.scope.name), ("", 2, "runspan.step"), ("", 1, "runspan.run"), ("", 0, "other")]
            )


def change_bytes(random: Random, body: bytes) -> bytes:
    """Return the bytes with one change."""
    found = bytearray(body)
    at = random.randrange(len(found))
    end = min(len(found), at + random.choice((1, 1, 2, 4, 30)))
    match random.randrange(6):
        case 0 | 1:
            found[at] ^= 1 << random.randrange(8)
        case 2:
            found[at] = random.choice(b"\x00\x0a\x12\x22\x39\x41\x4a\x7a\x7f\x80\xff")
        case 3:
            del found[at:end]
        case 4:
            found[at:at] = found[at:end]
        case _:
            found[at:at] = random.randbytes(random.choice((1, 2, 8)))
    return bytes(found)


def change_length(random: Random, body: bytes) -> bytes:
    """Return a request of one scope with a change inside of one span, so that all lengths around it are right."""
    data = TracesData.FromString(body)
    scope = random.choice(data.resource_spans[0].scope_spans)
    spans = [span.SerializeToString() for span in scope.spans]
    index = random.randrange(len(spans))
    spans[index] = change_bytes(random, spans[index])
    del scope.spans[:]
    prefix = scope.SerializeToString()
    content = prefix + b"".join([b"\x12" + _varint(len(span)) + span for span in spans])
    others = b"".join(
        [
            b"\x12" + _varint(len(text)) + text
            for each in data.resource_spans[0].scope_spans
            if each is not scope and (text := each.SerializeToString())
        ]
    )
    resource = data.resource_spans[0].resource.SerializeToString()
    inner = b"\x0a" + _varint(len(resource)) + resource + others + b"\x12" + _varint(len(content)) + content
    return b"\x0a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def small_runs(random: Random) -> Iterator[Run]:
    """Yield runs with few steps, so that a change often meets something that counts."""
    for text in generate(1_000_000, seed=random.randrange(1 << 30)):
        run = Run.from_json(text)
        if len(run.steps) <= 6:
            yield run


def mutate(random: Random, count: int, *, is_proved: bool) -> int:
    """Compare so many changed requests; return how many runs were read fast."""
    source = small_runs(random)
    fast = 0
    for number in range(count):
        if number % 50 == 0:
            data = TracesData.FromString(written(next(source), next(source)))
            for span in chain.from_iterable(scope.spans for scope in data.resource_spans[0].scope_spans):
                for attribute in span.attributes:
                    if attribute.key == fields.DIGEST and not is_proved:
                        attribute.value.string_value = NO_DIGEST
            template = data.SerializeToString()
        case = random.randrange(4)
        body = template
        if case < 2:
            changed = TracesData.FromString(template)
            for _ in range(random.choice((1, 1, 2, 3))):
                change_message(random, changed)
            body = changed.SerializeToString()
        elif case == 2:
            body = change_length(random, template)
        else:
            body = change_bytes(random, template)
        fast += compare(body)
    return fast


MUTATIONS = int(os.environ.get("RUNSPAN_TEST_MUTATIONS", "30000"))
"""Of each kind in the campaign: two minutes. A change of the reader deserves a million, which takes an hour."""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("count", [2000, pytest.param(MUTATIONS, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("is_proved", [True, False], ids=["digest", "no digest"])
def test_mutated_requests(is_proved: bool, count: int, request: pytest.FixtureRequest) -> None:
    """Changed requests, also when the digest proves nothing: then each difference would be another document."""
    if not is_proved:
        request.getfixturevalue("no_digest")
    assert mutate(Random(SEED), count, is_proved=is_proved) > count // 4


@given(st.lists(st.sampled_from(RUNS), min_size=1, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_spans_in_any_order(chosen: list[Run], random: Any) -> None:
    """The order of the spans of a request has no meaning."""
    data = TracesData.FromString(written(*chosen))
    for scope in data.resource_spans[0].scope_spans:
        spans = list(scope.spans)
        random.shuffle(spans)
        del scope.spans[:]
        scope.spans.extend(spans)
    assert compare(data.SerializeToString()) == len(chosen)
