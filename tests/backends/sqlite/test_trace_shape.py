"""The embedded store: every span of a run is kept as it was sent, in any order, and deleted with the run."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.harness import SECOND, T0, foreign_otlp, make_run, otlp, write_spans
from runspan import Run, TraceIncomplete, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.queries import DAY, fingerprint
from runspan.codec.fields import ROLE, ROLE_ATTEMPT, ROLE_LIVE, ROLE_OPEN_STEP, TEXT_KEY
from runspan.contracts import RunQuery
from runspan.model.span import Event, Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import scoped_bytes
from support.corpus import cases, runs
from support.run_histories import Observation, run_history
from support.timed_runs import timed_runs

CASES = cases()
NOW = 1_800_000_000 * SECOND
LARGE = 200
"""Spans of a run; those of a larger one are sent together, not one by one."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """One store for all documents: each is a run of its own tenant."""
    with SqliteStore(tmp_path_factory.mktemp("data")) as store:
        yield store


def check_comes_back(store: SqliteStore, run: Run, tenant: str, order: random.Random) -> None:
    """Send the spans of a run one by one in any order, and read document, list item and spans."""
    spans = encode(run, tenant=tenant, observed_at=NOW)
    sent = list(spans)
    order.shuffle(sent)
    size = 1 if len(sent) <= LARGE else len(sent)
    for start in range(0, len(sent), size):
        write_spans(store, sent[start : start + size], tenant)
    assert store.document(run.id, tenant).text == run.text
    assert store.document(run.id, tenant).incomplete == ()
    found = {span.span_id: scoped_bytes(span) for span in store.spans(spans[0].trace_id, tenant)}
    assert found == {span.span_id: scoped_bytes(span) for span in spans}
    assert store.document(run.id, tenant).conflict == ()
    page = store.search(RunQuery(tenant=tenant))
    assert (page.items, page.partial) == ([run.summary()], ())


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_back(shared: SqliteStore, name: str) -> None:
    """Document and spans, also those of live runs, open steps and attempts, byte for byte."""
    check_comes_back(shared, Run.from_json(CASES[name]), name.encode("ascii", "replace").decode(), random.Random(name))


@given(runs(), st.randoms(use_true_random=False))
@settings(suppress_health_check=list(HealthCheck))
def test_any_document_comes_back(shared: SqliteStore, run: Run, order: random.Random) -> None:
    """The same for documents that no case has."""
    check_comes_back(shared, run, f"tenant {shared.stats().runs}", order)


@given(timed_runs, st.randoms(use_true_random=False))
@settings(suppress_health_check=list(HealthCheck))
def test_any_times_come_back(shared: SqliteStore, run: Run, order: random.Random) -> None:
    """Also of runs with loops, open steps, attempts, and times that no backend can hold."""
    check_comes_back(shared, run, f"times of {shared.stats().runs}", order)


def changed_event(span: Span) -> Span:
    """Return the span with another text of the same length in its last event."""
    *before, last = span.events
    *pairs, (key, text) = last.attributes
    assert isinstance(text, str)
    return msgspec.structs.replace(span, events=(*before, Event(last.name, last.time, (*pairs, (key, text[::-1])))))


def test_fragments_that_differ_in_a_long_text_are_two(store: SqliteStore) -> None:
    """A long text is in events, and the one with the recorded digest is found among the fragments."""
    steps = [{"id": "big", "status": "completed", "output": "0123456789" * 30_000}, {"id": "b", "status": "completed"}]
    run = make_run("r", steps=steps)
    big, small, root = encode(run)
    assert [dict(event.attributes)[TEXT_KEY] for event in big.events] == ["runspan.step.output"] * len(big.events)
    forged = changed_event(big)
    assert fingerprint(forged) != fingerprint(big)
    for span in (big, forged, root):
        write_spans(store, [span])
    assert store.stats().fragments == 3
    with pytest.raises(TraceIncomplete):
        store.document("r")
    again = {scoped_bytes(span) for span in store.spans(root.trace_id)}
    assert again == {scoped_bytes(span) for span in (big, forged, root)}
    write_spans(store, [small])
    assert store.document("r").text == run.text


def test_the_order_of_events_and_added_attributes_make_no_other_fragment(store: SqliteStore) -> None:
    """A Collector may add attributes to spans and events."""
    run = make_run("r", steps=[{"id": "big", "status": "completed", "output": "x" * 300_000}])
    big, root = encode(run)
    marked = [Event(event.name, event.time, (*event.attributes, ("host", "a"))) for event in reversed(big.events)]
    other = msgspec.structs.replace(big, events=tuple(marked), own=[*big.own, ("k8s.pod", "b")])
    assert fingerprint(other) == fingerprint(big)
    write_spans(store, [big])
    write_spans(store, [other])
    assert store.stats().fragments == 1
    write_spans(store, [root])
    assert store.document("r").text == run.text


def slow_history(run_id: str) -> list[Observation]:
    return run_history(run_id, T0, second=10 * SECOND)


def send_everything(store: SqliteStore, run_id: str) -> bytes:
    """Send a run from its start to its end with spans of other instrumentation, and a step that no revision has."""
    for moment in slow_history(run_id):
        write_spans(store, moment.spans(""))
    trace_id = run_ids(run_id).trace_id
    store.write(read_protobuf(foreign_otlp(trace_id, b"foreign0", "GET /")))
    return trace_id


def test_all_spans_of_a_run_that_was_live_are_returned(store: SqliteStore) -> None:
    """The live span, the points of open steps, attempts and foreign spans, each once, with the run span."""
    trace_id = send_everything(store, "r")
    found = store.spans(trace_id)
    assert len({span.span_id for span in found}) == len(found)
    roles = [span.attributes().get(ROLE) for span in found]
    assert roles.count(None) == 1
    history = slow_history("r")
    expected = {span.span_id: span for moment in history for span in moment.spans("")}
    for role in (ROLE_LIVE, ROLE_OPEN_STEP, ROLE_ATTEMPT):
        sent = {scoped_bytes(span) for span in expected.values() if span.attributes()[ROLE] == role}
        assert sent
        assert {scoped_bytes(span) for span in found if span.attributes().get(ROLE) == role} == sent, role
    assert store.document("r").text == history[-1].run.text


def counts(store: SqliteStore) -> tuple[int, int, int]:
    stats = store.stats()
    return stats.runs, stats.foreign_spans, stats.fragments


def test_retention_deletes_all_spans_of_a_run(tmp_path: Path) -> None:
    """Nothing of it is left, neither points nor attempts nor fragments."""
    now = T0 + 600 * SECOND
    with SqliteStore(tmp_path / "data", retention_days=1, clock=lambda: now) as store:
        send_everything(store, "r")
        write_spans(store, encode(make_run("r", steps=[{"id": "no revision has it", "status": "completed"}]))[:1])
        assert all(counts(store))
        assert store.expire(now + DAY // 2) == 0
        assert store.expire(now + 2 * DAY) == 1
        assert counts(store) == (0, 0, 0)


def test_a_purge_deletes_all_spans_of_a_run(store: SqliteStore) -> None:
    """Unless spans have arrived that a newer revision may need."""
    send_everything(store, "r")
    text = store.document("r").text
    fragment = encode(make_run("r", steps=[{"id": "no revision has it", "status": "completed"}]))[:1]
    items = [(hashlib.sha256(text).digest(), "r")]
    before = counts(store)
    if before[2]:
        assert store.purge(items).named == ("r",)
        store.expire(T0 + 10_000 * DAY)
    assert counts(store)[2] == 0
    write_spans(store, fragment)
    assert store.purge(items).named == ("r",)
    store.expire(T0 + 10_000 * DAY)
    purged = store.purge(items)
    assert (purged.deleted, purged.spans) == (1, before[1])
    assert counts(store) == (0, 0, 0)


def test_the_point_of_a_step_without_a_usual_name_is_stored_once(store: SqliteStore) -> None:
    """The store encodes the document anew, and finds the point among those that it received."""
    step = {"id": "", "name": 0, "startedAt": "1970-01-01T00:00:00.000Z"}
    check_comes_back(store, Run.from_dict({"id": "r", "steps": [step]}), "", random.Random(1))


def test_requests_with_the_same_points_again_add_nothing(store: SqliteStore) -> None:
    """A live span and a point are written once, whoever repeats them."""
    moment = slow_history("r")[4]
    assert {ROLE_LIVE, ROLE_OPEN_STEP, ROLE_ATTEMPT} <= {span.attributes()[ROLE] for span in moment.spans("")}
    write_spans(store, moment.spans(""))
    before = counts(store)
    for _ in range(3):
        store.write(read_protobuf(otlp(moment.spans(""))))
    assert counts(store) == before
