"""The embedded store: spans that wait for others, how many there may be, and what they cost later requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from conformance.harness import SECOND, T0, foreign_otlp, make_run, otlp
from runspan import Run, encode
from runspan.backends.sqlite import Limits, SqliteStore, changes, ingest, queries
from runspan.codec.decode import verify_run
from runspan.codec.fields import DIGEST
from runspan.contracts import Document, RunQuery, WriteResult
from runspan.errors import TraceIncomplete
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf


def write(store: SqliteStore, spans: Sequence[Span], tenant: str = "") -> WriteResult:
    return store.write(read_protobuf(otlp(list(spans))), tenant)


def many_steps(run_id: str, count: int, version: object = 0, **members: Any) -> Run:
    step = make_run(run_id).to_dict()["steps"][0]
    steps = [{**step, "output": {"number": number, "version": version}} for number in range(count)]
    return make_run(run_id, steps=steps, **members)


def snapshot(run_id: str, count: int, version: object) -> Run:
    return many_steps(run_id, count, version, status="running", completedAt=..., durationMs=...)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store for small runs of which few spans may wait."""
    with SqliteStore(tmp_path, limits=Limits(max_steps=10, max_waiting_spans=30, max_waiting_bytes=200_000)) as opened:
        yield opened


@pytest.fixture
def read_spans(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many waiting spans each read of a fragment returned."""
    counts: list[int] = []

    def counted(kind: int, spans: list[Span]) -> list[Span]:
        counts.append(len(spans))
        return spans

    original = SqliteStore._fragment
    monkeypatch.setattr(
        SqliteStore, "_fragment", lambda self, *arguments: counted(arguments[1], original(self, *arguments))
    )
    ingester = store._ingester
    object.__setattr__(ingester, "read_fragment", store._fragment)
    return counts


# What waiting spans cost.


def test_steps_without_a_revision_span_are_never_read(store: SqliteStore, read_spans: list[int]) -> None:
    """However many wait, the next request of the trace reads none of them, and neither does a read of the run."""
    *steps, root = encode(many_steps("r", 300))
    for start in range(0, 300, 10):
        write(store, steps[start : start + 10])
    with pytest.raises(TraceIncomplete, match="300 step spans"):
        store.document("r")
    assert read_spans == []
    write(store, [root])
    assert len(read_spans) == 300
    assert store.stats().fragments == 0


def test_a_pending_revision_reads_nothing_until_its_steps_are_there(store: SqliteStore, read_spans: list[int]) -> None:
    """Steps that arrive one by one after their revision span cost the same each, whatever waits already."""
    run = many_steps("r", 60)
    *steps, root = encode(run)
    other = encode(many_steps("r", 200, "other"))[:-1]
    write(store, other)
    for span in [root, *steps[:-1]]:
        write(store, [span])
    assert sum(read_spans) == 0
    write(store, steps[-1:])
    assert len(read_spans) == 1 + 59
    assert store.document("r") == Document(run.text)
    assert store.stats().fragments == 200


def test_steps_that_arrive_in_any_order_read_the_revision_span_only(store: SqliteStore, read_spans: list[int]) -> None:
    """In the worst order each step is the one that was known to be missing."""
    run = many_steps("r", 40)
    *steps, root = encode(run)
    for span in [root, *reversed(steps)]:
        write(store, [span])
    assert len(read_spans) == 39 + 1 + 39
    assert store.document("r") == Document(run.text)


def test_a_revision_that_its_steps_do_not_prove_is_not_tried_each_time(
    store: SqliteStore, read_spans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged digest makes a request read all steps; the next requests do not, until many more spans wait."""
    monkeypatch.setattr("runspan.backends.sqlite.waiting._FEW", 50)
    run = many_steps("r", 100)
    *steps, root = encode(run)
    forged = msgspec.structs.replace(root, shared=(), own=list({**root.attributes(), DIGEST: "0" * 64}.items()))
    write(store, [*steps, forged])
    read_spans.clear()
    for number in range(12):
        write(store, encode(many_steps("r", 1, f"other {number}"))[:-1])
    assert len(read_spans) <= 2 * 101
    write(store, [root])
    assert store.document("r") == Document(run.text)


def test_a_changed_run_leaves_one_row(store: SqliteStore) -> None:
    """The steps that a change supersedes are kept as one compact row, and a revision that needs them finds them."""
    first, second = snapshot("r", 500, "first"), snapshot("r", 500, "second")
    write(store, encode(first, observed_at=T0))
    store.put(second, observed_at=T0 + SECOND)
    assert store.stats().fragments == 500
    trace_id = run_ids("r").trace_id
    with store._readers.connection() as connection:
        ((_, kind, content),) = queries.fragments(connection, trace_id, "")
    assert kind == queries.SUPERSEDED
    assert len(content) < 500 * 60
    assert {span.span_id for span in encode(first)[:-1]} <= {span.span_id for span in store.spans(trace_id)}
    last = many_steps("r", 500, "first")
    write(store, encode(last, step_ids=[span.span_id for span in encode(first) if span.scope == "runspan.step"])[-1:])
    assert store.document("r") == Document(last.text)
    assert verify_run(store.spans(trace_id)).run == last


def test_superseded_steps_of_a_trace_are_bounded(small: SqliteStore) -> None:
    """A run may change any number of times: only the steps of its latest versions are kept."""
    for version in range(30):
        assert small.put(snapshot("r", 8, version), observed_at=T0 + version * SECOND).changed
    assert small.stats().fragments == 16
    assert small.document("r").text == snapshot("r", 8, 29).text


# Limits.


def test_a_run_of_too_many_steps_is_refused(small: SqliteStore) -> None:
    """The reason has the number, the limit and the option, over REST and over OTLP, at once or in parts."""
    run = many_steps("big", 11)
    *steps, root = encode(run)
    for result in (small.put(run, observed_at=T0), write(small, [*steps, root]), write(small, [root])):
        (rejection,) = result.rejected
        assert result.accepted == 0
        assert "it has 11 steps, and this store takes 10 (serve --max-steps)" in rejection.reason
    assert small.put(many_steps("fits", 10), observed_at=T0).accepted == 11


def test_too_many_waiting_spans_of_a_trace_are_refused(small: SqliteStore) -> None:
    """One trace may have twice the steps of a run waiting; other runs of the request are accepted."""
    spans = encode(make_run("one"))
    write(small, encode(many_steps("r", 10, "a"))[:-1])
    write(small, encode(many_steps("r", 10, "b"))[:-1])
    result = write(small, [*encode(many_steps("r", 1, "c"))[:-1], *spans])
    (rejection,) = result.rejected
    assert result.accepted == len(spans)
    assert "21 spans of its trace would wait" in rejection.reason
    assert "20 may (serve twice --max-steps)" in rejection.reason
    assert small.document("one").text == make_run("one").text


def test_too_many_foreign_spans_of_a_trace_are_refused(small: SqliteStore) -> None:
    """Those that are kept already may come again; other traces and tenants, and the trace's run, are not concerned."""
    run = make_run("r")
    trace_id = run_ids("r").trace_id
    bodies = [foreign_otlp(trace_id, number.to_bytes(8, "big"), "chat") for number in range(1, 24)]
    for body in bodies[:20]:
        assert small.write(read_protobuf(body)).rejected == ()
    for body in bodies[20:]:
        (rejection,) = small.write(read_protobuf(body)).rejected
        assert "20 spans of other instrumentation, and this store keeps no more (serve twice --max-steps)" in str(
            rejection
        )
    assert small.write(read_protobuf(b"".join(bodies))).accepted == 20
    assert small.write(read_protobuf(bodies[20]), "b").accepted == 1
    assert small.write(read_protobuf(foreign_otlp(run_ids("s").trace_id, b"foreign1", "chat"))).accepted == 1
    assert write(small, encode(run)).rejected == ()
    assert small.document("r").text == run.text
    assert len(small.spans(trace_id, "")) == 20 + len(encode(run))


def test_too_many_waiting_spans_of_a_tenant_are_refused(small: SqliteStore) -> None:
    """What a tenant lets wait limits this tenant only, and room is made when a run becomes complete."""
    for number in range(3):
        assert write(small, encode(many_steps(f"r{number}", 10), tenant="a")[:-1], "a").rejected == ()
    (rejection,) = write(small, encode(many_steps("r3", 1))[:-1], "a").rejected
    assert "31 spans of its tenant would wait" in rejection.reason
    assert "30 may (serve --max-waiting-spans)" in rejection.reason
    assert write(small, encode(many_steps("r3", 1))[:-1], "b").rejected == ()
    complete = encode(make_run("complete"), tenant="a")
    assert write(small, complete, "a").rejected == ()
    write(small, encode(many_steps("r0", 10), tenant="a")[-1:], "a")
    assert write(small, encode(many_steps("r3", 1))[:-1], "a").rejected == ()


def test_too_many_waiting_bytes_are_refused(small: SqliteStore) -> None:
    """Large payloads count by their bytes."""

    def large(run_id: str) -> list[Span]:
        return encode(many_steps(run_id, 1, "x" * 30_000))[:-1]

    (rejection,) = write(small, [*large("r"), *encode(many_steps("r", 1, "y" * 30_000))[:-1]]).rejected
    assert "bytes of its trace would wait" in rejection.reason
    assert "50000 may (serve a quarter of --max-waiting-mib)" in rejection.reason
    results = [write(small, large(f"r{number}")) for number in range(8)]
    assert any("200000 may (serve --max-waiting-mib)" in item.reason for result in results for item in result.rejected)


def test_counts_of_what_waits_follow_every_change(store: SqliteStore) -> None:
    """Triggers count; whatever deletes fragments, nothing is left of the counts at the end."""
    write(store, encode(many_steps("gone", 5))[:-1])
    write(store, encode(many_steps("r", 3, "first"), observed_at=T0)[:-1])
    write(store, encode(many_steps("r", 3, "first"))[:-1])
    with store._readers.connection() as connection:
        assert queries.waiting_of_tenant(connection, "")[0] == store.stats().fragments == 8
    store.put(many_steps("r", 3, "second"), observed_at=T0 + SECOND)
    counted = "SELECT coalesce(sum(spans), 0), coalesce(sum(length(content)), 0) FROM fragments"
    with store._readers.connection() as connection:
        assert queries.waiting_of_tenant(connection, "") == connection.execute(counted).fetchone()
        of_traces = "SELECT sum(spans), sum(bytes) FROM waiting_traces"
        assert connection.execute(of_traces).fetchone() == connection.execute(counted).fetchone()
    store.expire(2 * T0)
    assert store.stats().fragments == 5
    with store._readers.connection() as connection:
        assert connection.execute("SELECT count(*) FROM waiting_traces").fetchone() == (1,)


# Concurrency.


def test_a_write_that_another_one_overtakes_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process changes the trace after each preparation: at last the transaction itself prepares."""
    with SqliteStore(tmp_path) as store, SqliteStore(tmp_path) as other:
        store.put(snapshot("r", 2, "first"), observed_at=T0)
        versions = iter(range(100))
        original = ingest.Ingester._plan_document
        prepared: list[int] = []

        def overtaken(self: ingest.Ingester, connection: Any, **arguments: Any) -> Any:
            changes = original(self, connection, **arguments)
            if self is store._ingester:
                prepared.append(1)
                if not store._writer._in_use.locked():
                    version = next(versions)
                    other.put(snapshot("r", 2, f"other {version}"), observed_at=T0 + version + 1)
            return changes

        monkeypatch.setattr(ingest.Ingester, "_plan_document", overtaken)
        last = many_steps("r", 2, "last")
        assert store.put(last, observed_at=T0 + SECOND).changed
        assert len(prepared) == changes._ATTEMPTS + 1
        assert store.document("r") == Document(last.text)
        assert other.document("r") == Document(last.text)


def test_a_request_in_several_transactions_is_whole(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of more spans, runs and bytes than one transaction takes is stored in parts."""
    monkeypatch.setattr(changes, "_PART_ROWS", 7)
    monkeypatch.setattr(ingest, "_PART_RUNS", 3)
    large = many_steps("large", 100)
    runs = [make_run(f"r{number}") for number in range(10)]
    *steps, root = encode(large)
    assert write(store, [*steps, *[span for run in runs for span in encode(run)]]).rejected == ()
    assert store.stats().fragments == 100
    assert write(store, [root, *encode(many_steps("large", 20, "other"))[:-1]]).rejected == ()
    assert store.document("large") == Document(large.text)
    assert store.stats().fragments == 20
    for run in runs:
        assert store.document(run.id).text == run.text


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_concurrent_writers_of_one_trace_end_at_what_a_decoder_returns(tmp_path: Path, seed: int) -> None:
    """Two stores on one directory with four threads each: snapshots in parts, corrections, and the end, shuffled."""
    random = Random(seed)
    with SqliteStore(tmp_path) as first, SqliteStore(tmp_path) as second, ThreadPoolExecutor(8) as pool:
        for number in range(60):
            run_id = f"r{number}"
            requests = []
            for at in range(6):
                spans = encode(snapshot(run_id, random.randrange(1, 6), random.choice("ab")), observed_at=T0 + at)
                cut = random.randrange(len(spans) + 1)
                requests += [part for part in (spans[:cut], spans[cut:]) if part]
            requests.append(encode(many_steps(run_id, 4, random.choice("ab"))))
            random.shuffle(requests)
            writes = [
                pool.submit(write, store, spans)
                for spans, store in zip(requests, [first, second] * len(requests), strict=False)
            ]
            assert [item.result().rejected for item in writes] == [()] * len(requests)
            expected = verify_run([span for spans in requests for span in spans])
            assert first.document(run_id) == Document(expected.run.text)
            assert verify_run(second.spans(run_ids(run_id).trace_id)).run == expected.run
        assert len(first.search(RunQuery(limit=200)).items) == 60


def test_concurrent_documents_of_one_run_keep_the_steps_of_a_sender(store: SqliteStore) -> None:
    """Eight threads correct a run by REST while a sender that sends each step once ends it."""
    steps = [{**many_steps("r", 1).to_dict()["steps"][0], "output": number} for number in range(20)]
    ids = [bytes([0xA0 + number] * 8) for number in range(20)]

    def running(count: int, **members: Any) -> Run:
        return make_run("r", steps=steps[:count], status="running", completedAt=..., durationMs=..., **members)

    with ThreadPoolExecutor(8) as pool:
        for count in range(1, 20):
            spans = encode(running(count), observed_at=T0 + count, step_ids=ids[:count])
            works = [pool.submit(write, store, spans[count - 1 :])]
            works += [
                pool.submit(store.put, running(count - 1, note=number), observed_at=T0 + number) for number in range(7)
            ]
            for work in works:
                work.result()
    end = make_run("r", steps=steps)
    write(store, encode(end, step_ids=ids)[-2:])
    assert store.document("r") == Document(end.text)
