"""Every backend: runs that have not ended are read in their current state, until the finished run replaces them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice, product

import pytest

from conformance.harness import SECOND, T0, Harness, all_pages, ids, make_run, running
from conformance.opensearch import SettledReader
from runspan import Run, encode
from runspan.codec.fields import ROLE, ROLE_ATTEMPT
from runspan.contracts import RunQuery, TraceReader, heartbeat_due
from runspan.errors import BackendBusy, ConfigError, NotFound, TraceIncomplete
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES, sort_time
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import canonical_text
from runspan.resolve import RESOLUTIONS, resolve
from support.run_histories import STAGE_COUNT, Observation, is_revision_span, run_history

ENDINGS = ("completed", "failed", "cancelled", "timed_out")


def unwrapped(reader: TraceReader) -> TraceReader:
    """Return the reader without the harness's waiting until everything is visible."""
    return getattr(reader, "reader", reader)


def acknowledging(reader: TraceReader) -> TraceReader:
    """Return the reader that finds what was acknowledged: without waiting for searches, unless a 200 proves nothing."""
    return reader if isinstance(reader, SettledReader) else unwrapped(reader)


def settled(read: Callable[[], object], expected: object, backend: Harness) -> object:
    """Return what is read: again while it is not what is expected, for as long as the backend may hide a part."""
    deadline = time.monotonic() + backend.hides_seconds
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def chunks(spans: list[Span], size: int) -> Iterator[list[Span]]:
    rest = iter(spans)
    while chunk := list(islice(rest, size)):
        yield chunk


def test_each_state_is_returned_and_listed(backend: Harness, tenant: str) -> None:
    """Pending, running, retrying, suspended, ended: document, summary and status filters show the current state."""
    lives = [run_history(f"life-{ending}", T0 + number * SECOND, ending) for number, ending in enumerate(ENDINGS)]
    for stage in range(STAGE_COUNT):
        now = [life[stage] for life in lives]
        for seen in now:
            backend.send(seen.run, tenant=tenant, observed_at=seen.at)
            document = backend.reader.document(seen.run.id, tenant)
            assert (document.text, document.incomplete) == (seen.run.text, ())
        expected = [seen.run.summary() for seen in reversed(now)]
        assert list(backend.reader.search(RunQuery(tenant)).items) == expected
        for status in RUN_STATUSES:
            listed = backend.reader.search(RunQuery(tenant, status=status)).items
            assert list(listed) == [item for item in expected if json.loads(item)["status"] == status], (stage, status)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_snapshots_arrive_shuffled_and_twice(backend: Harness, tenant: str, size: int) -> None:
    """The newest revision counts, in whatever order and requests its spans and those of older ones arrive."""
    chance = random.Random(size)
    lives = [run_history(f"shuffled-{number}", T0 + number * SECOND) for number in range(3)]
    for number, life in enumerate(lives):
        spans = [span for seen in life[: STAGE_COUNT - number] for span in seen.spans(tenant)]
        spans += chance.sample(spans, len(spans) // 2)
        chance.shuffle(spans)
        for chunk in chunks(spans, size):
            backend.send_spans(chunk, tenant)
    expected = [life[STAGE_COUNT - 1 - number].run for number, life in enumerate(lives)]
    for run in expected:
        document = backend.reader.document(run.id, tenant)
        assert (document.text, document.incomplete) == (run.text, ())
    assert list(backend.reader.search(RunQuery(tenant)).items) == [run.summary() for run in reversed(expected)]
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == ["shuffled-1"]
    assert ids(backend.reader.search(RunQuery(tenant, status="suspended"))) == ["shuffled-2"]


@pytest.mark.parametrize("status", RESOLUTIONS)
def test_a_dead_run_is_ended_by_a_person(backend: Harness, tenant: str, status: str) -> None:
    """The correction is the run's document from then on, listed by its new status, whatever the engine still sends; an
    end that is sent by the engine after all needs a correction of its own."""
    dead = running("dead", custom=[1.10], error={"code": "LATE"})
    backend.send(dead, tenant=tenant, observed_at=T0 + SECOND)
    trace_id = run_ids("dead", tenant).trace_id
    spans = backend.reader.spans(trace_id, tenant)
    now = T0 + 3600 * SECOND
    run, correction = resolve(spans, status=status, by="ann@ops", why='host "a" died', now=now)
    backend.send_spans([correction], tenant)
    backend.send_spans(encode(dead, tenant=tenant, observed_at=now + SECOND), tenant)
    document = backend.reader.document("dead", tenant)
    assert (document.text, document.incomplete, document.conflict) == (run.text, (), ())
    error = {
        "code": status.upper(),
        "message": f'ended as {status} by ann@ops with runspan resolve: host "a" died',
        "resolvedBy": "ann@ops",
        "lastObservedAt": canonical_text(T0 + SECOND),
        "error": {"code": "LATE"},
    }
    ended = {"status": status, "completedAt": canonical_text(now), "durationMs": 3_600_000, "error": error}
    assert run.to_dict() == dead.to_dict() | ended
    for query in (RunQuery(tenant), RunQuery(tenant, status=status)):
        assert list(backend.reader.search(query).items) == [run.summary()]
    for query in (RunQuery(tenant, status="running"), RunQuery(tenant, stuck_before=now + 3600 * SECOND)):
        assert ids(backend.reader.search(query)) == []
    backend.send_spans(encode(make_run("dead"), tenant=tenant), tenant)
    assert backend.reader.document("dead", tenant).text == run.text
    with pytest.raises(ConfigError, match="has not ended"):
        resolve(backend.reader.spans(trace_id, tenant), status=status, by="ann", now=now)
    again, correction = resolve(
        backend.reader.spans(trace_id, tenant), status="cancelled", by="bob", now=now + SECOND, force=True
    )
    backend.send_spans([correction], tenant)
    assert backend.reader.document("dead", tenant).text == again.text


def test_many_heartbeats_are_one_run(backend: Harness, tenant: str) -> None:
    """A run whose snapshot was repeated hundreds of times is listed once, as of the newest one."""
    beat, last = running("beats", done=1), running("beats", done=2)
    for number in range(300):
        run = beat if number < 299 else last
        backend.send_spans(encode(run, tenant=tenant, observed_at=T0 + number * SECOND), tenant)
    document = backend.reader.document("beats", tenant)
    assert (document.text, document.observed_at) == (last.text, T0 + 299 * SECOND)
    for query in (RunQuery(tenant), RunQuery(tenant, status="running")):
        assert list(backend.reader.search(query).items) == [last.summary()]
    backend.send(make_run("beats"), tenant=tenant)
    document = backend.reader.document("beats", tenant)
    assert (document.text, document.observed_at) == (make_run("beats").text, None)
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == []


def test_a_reader_sees_only_states_that_were_sent_and_never_an_older_one(backend: Harness, tenant: str) -> None:
    """A reader of a run in progress gets one sent document after the other, never a mixture and never an older one.

    Where the backend hides a part of a trace for a moment, an older one is all that can be read then.
    """
    life = run_history("watched", T0)
    order = {seen.run.text: number for number, seen in enumerate(life)}
    read: list[bytes] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def watch() -> None:
        reader = unwrapped(backend.reader)
        try:
            while not ended.is_set():
                try:
                    read.append(reader.document("watched", tenant).text)
                except BackendBusy:
                    continue
                except NotFound:
                    assert not read, "a run that was read before is not found"
        except BaseException as failure:
            failures.append(failure)

    def current() -> bytes:
        return acknowledging(backend.reader).document("watched", tenant).text

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for seen in life:
            backend.send(seen.run, tenant=tenant, observed_at=seen.at)
            # The next read returns what was acknowledged.
            assert settled(current, seen.run.text, backend) == seen.run.text
    finally:
        ended.set()
        watcher.join()
    assert failures == []
    places = [order[text] for text in read]
    assert backend.hides_seconds or places == sorted(places)


def test_a_run_that_has_ended_is_never_listed_as_unfinished(backend: Harness, tenant: str) -> None:
    """After its end is acknowledged no list by an earlier status has it, whether a search finds the end or not."""
    runs = [f"ends-{number}" for number in range(5)]

    def listed() -> list[str]:
        return ids(acknowledging(backend.reader).search(RunQuery(tenant, status="running")))

    for run_id in runs:
        backend.send(running(run_id), tenant=tenant, observed_at=T0 + SECOND)
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == runs[::-1]
    for number, run_id in enumerate(runs):
        backend.send(make_run(run_id), tenant=tenant)
        assert settled(listed, runs[:number:-1], backend) == runs[:number:-1]
    assert ids(backend.reader.search(RunQuery(tenant, status="completed"))) == runs[::-1]


def test_a_step_that_ends_between_two_snapshots_is_one_step(backend: Harness, tenant: str) -> None:
    """An open step of a snapshot that then became a span is in the document once, at its position."""
    before, after = running("between", done=0), running("between", done=1)
    backend.send(before, tenant=tenant, observed_at=T0)
    assert [step.id for step in Run.from_json(backend.reader.document("between", tenant).text).steps] == ["wait"]
    backend.send(after, tenant=tenant, observed_at=T0 + SECOND)
    document = Run.from_json(backend.reader.document("between", tenant).text)
    assert [(step.id, step.status) for step in document.steps] == [("fetch", "completed"), ("wait", "running")]


def attempts_in(backend: Harness, run_id: str, tenant: str) -> list[tuple[int, str, str]]:
    """Number, step and error of each attempt span in a run's trace."""
    spans = {span.span_id: span for span in backend.reader.spans(run_ids(run_id, tenant).trace_id)}
    found = [span.attributes() for span in spans.values() if span.attributes().get(ROLE) == ROLE_ATTEMPT]
    attempts = [
        (found["runspan.attempt.number"], found.get("runspan.step.id", ""), found.get("error.type", ""))
        for found in found
    ]
    return sorted(attempts)  # type: ignore[arg-type]


def test_attempts_of_a_retrying_step_are_read_one_by_one(backend: Harness, tenant: str) -> None:
    """Each attempt is one span as soon as a snapshot has it, however often snapshots repeat it."""
    life = run_history("retried", T0)
    first, second = (1, "charge", "TIMEOUT_1"), (2, "charge", "TIMEOUT_2")
    for seen in life[:4]:
        backend.send_spans(seen.spans(tenant), tenant)
    assert attempts_in(backend, "retried", tenant) == [first]
    backend.send_spans(encode(life[3].run, tenant=tenant, observed_at=life[3].at + 1), tenant)
    assert attempts_in(backend, "retried", tenant) == [first]
    backend.send_spans(life[4].spans(tenant), tenant)
    assert attempts_in(backend, "retried", tenant) == [first, second]
    assert backend.reader.document("retried", tenant).text == life[4].run.text


def test_attempts_that_are_only_a_number_are_read_one_by_one(backend: Harness, tenant: str) -> None:
    """The platform's log has the number of the attempt and its error only; each becomes a span nevertheless."""
    for number in (1, 2, 2, 3):
        step = {"id": "pay", "status": "retrying", "attempt": number, "error": {"code": f"E{number}"}}
        run = running("numbered", steps=[step])
        backend.send_spans(encode(run, tenant=tenant, observed_at=T0 + number * SECOND), tenant)
        assert backend.reader.document("numbered", tenant).text == run.text
        assert attempts_in(backend, "numbered", tenant) == [(n, "pay", f"E{n}") for n in range(1, number + 1)]


def test_a_correction_after_the_end_counts_and_late_snapshots_do_not(backend: Harness, tenant: str) -> None:
    """A finished run that changes is read as changed, whatever earlier snapshots arrive after it."""
    life = run_history("corrected", T0)
    for seen in life:
        backend.send_spans(seen.spans(tenant), tenant)
    failed = run_history("corrected", T0, "failed")[-1].run
    correction = encode(failed, tenant=tenant, observed_at=T0 + 60 * SECOND, after_root=True)
    backend.send_spans(correction, tenant)
    for seen in (life[2], life[6], life[-1]):
        backend.send_spans(seen.spans(tenant), tenant)
        document = backend.reader.document("corrected", tenant)
        assert (document.text, document.incomplete) == (failed.text, ())
    for status in RUN_STATUSES:
        expected = ["corrected"] if status == "failed" else []
        assert ids(backend.reader.search(RunQuery(tenant, status=status))) == expected


def test_a_run_that_is_reopened_runs_again(backend: Harness, tenant: str) -> None:
    """A finished run may be reopened; then it is listed as running, until it ends again."""
    life = run_history("reopened", T0)
    backend.send_spans(life[-1].spans(tenant), tenant)
    again = life[8].run
    backend.send_spans(encode(again, tenant=tenant, observed_at=T0 + 60 * SECOND, after_root=True), tenant)
    assert backend.reader.document("reopened", tenant).text == again.text
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == ["reopened"]
    assert ids(backend.reader.search(RunQuery(tenant, status="completed"))) == []
    ended = run_history("reopened", T0, "cancelled")[-1].run
    backend.send_spans(encode(ended, tenant=tenant, observed_at=T0 + 61 * SECOND, after_root=True), tenant)
    assert backend.reader.document("reopened", tenant).text == ended.text
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == []
    assert ids(backend.reader.search(RunQuery(tenant, status="cancelled"))) == ["reopened"]


def test_a_snapshot_before_its_steps_leaves_the_older_state(backend: Harness, tenant: str) -> None:
    """While steps of a newer revision are missing, the newest complete state is returned, marked as incomplete."""
    life = run_history("fragments", T0)
    backend.send_spans(life[1].spans(tenant), tenant)
    newer = life[5].spans(tenant)
    backend.send_spans([span for span in newer if is_revision_span(span)], tenant)
    document = backend.reader.document("fragments", tenant)
    assert document.text == life[1].run.text
    assert document.incomplete
    for span in newer:
        if not is_revision_span(span):
            backend.send_spans([span], tenant)
    document = backend.reader.document("fragments", tenant)
    assert (document.text, document.incomplete) == (life[5].run.text, ())
    assert list(backend.reader.search(RunQuery(tenant)).items) == [life[5].run.summary()]


def test_a_first_snapshot_without_its_steps_is_no_document_yet(backend: Harness, tenant: str) -> None:
    """Steps that have not arrived are not replaced; when they arrive, the run can be read."""
    seen = run_history("snapshot first", T0)[5]
    spans = seen.spans(tenant)
    backend.send_spans(spans[-1:], tenant)
    with pytest.raises(TraceIncomplete):
        backend.reader.document("snapshot first", tenant)
    listed = ids(backend.reader.search(RunQuery(tenant, status="running")))
    assert listed == (["snapshot first"] if backend.lists_by_summary else [])
    backend.send_spans(spans[:-1], tenant)
    assert backend.reader.document("snapshot first", tenant).text == seen.run.text
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == ["snapshot first"]


# Stuck runs.


def due(observed: int, start: int = 0) -> int:
    """Return when the next heartbeat of a run is due, from seconds after ``T0``, in nanoseconds."""
    return heartbeat_due(T0 + observed * SECOND, T0 + start * SECOND)


def stuck(backend: Harness, tenant: str, before: int, **filters: object) -> list[str]:
    query = RunQuery(tenant, stuck_before=before, **filters)  # type: ignore[arg-type]
    page = backend.reader.search(query)
    assert page.partial == ()
    return ids(page)


def test_a_run_is_stuck_when_its_heartbeat_is_overdue(backend: Harness, tenant: str) -> None:
    """Its newest observation counts, and one due at the threshold is in time; a heartbeat or an end clears it."""
    run = running("silent")
    backend.send(run, tenant=tenant, observed_at=T0)
    assert due(0) == T0 + 30 * SECOND
    assert stuck(backend, tenant, due(0)) == []
    assert stuck(backend, tenant, due(0) + 1) == ["silent"]
    backend.send(run, tenant=tenant, observed_at=T0 + 60 * SECOND)
    assert stuck(backend, tenant, due(60)) == []
    assert stuck(backend, tenant, due(60) + SECOND) == ["silent"]
    backend.send(make_run("silent"), tenant=tenant)
    assert stuck(backend, tenant, T0 + 3600 * SECOND) == []


def test_an_old_run_may_be_silent_for_longer(backend: Harness, tenant: str) -> None:
    """A run that has been running for hours is observed again after a sixteenth of its age."""
    backend.send(running("old"), tenant=tenant, observed_at=T0 + 16_000 * SECOND)
    assert due(16_000) == T0 + 17_000 * SECOND
    assert stuck(backend, tenant, due(16_000)) == []
    assert stuck(backend, tenant, due(16_000) + 1) == ["old"]


def test_a_suspended_run_waits_and_is_not_stuck(backend: Harness, tenant: str) -> None:
    """Nor is one that has ended, whenever it was observed; one that is pending may be."""
    for status in RUN_STATUSES:
        make = make_run if status in TERMINAL_RUN_STATUSES else running
        backend.send(make(f"is-{status}", status=status), tenant=tenant, observed_at=T0)
    assert stuck(backend, tenant, T0 + 3600 * SECOND) == ["is-running", "is-pending"]


def test_a_reopened_run_may_be_stuck(backend: Harness, tenant: str) -> None:
    """Its observation is that of the revision after the run span, not of the run span."""
    backend.send_spans(encode(make_run("again"), tenant=tenant), tenant)
    backend.send_spans(encode(running("again"), tenant=tenant, observed_at=T0 + SECOND, after_root=True), tenant)
    assert stuck(backend, tenant, due(1)) == []
    assert stuck(backend, tenant, due(2)) == ["again"]


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.campaign)])
def test_stuck_runs_by_every_filter_and_page(backend: Harness, tenant: str, stride: int) -> None:
    """Together with workflow, status, since and pages the list follows exactly from the runs' last states.

    Every fifth combination has each value of each filter, with nearly all values of each other filter.
    """
    chance = random.Random(7)
    last: list[tuple[Observation, str]] = []
    for number in range(24):
        life = run_history(f"run-{number:02}", T0 + number * SECOND, workflowId=f"wf_{number % 3}")
        seen = life[: chance.randint(1, STAGE_COUNT)]
        for moment in seen:
            backend.send_spans(moment.spans(tenant), tenant)
        last.append((seen[-1], str(seen[-1].run.workflow_id)))
    last.reverse()
    times = (due(0), due(12), due(20), T0 + 100 * SECOND)
    filters = list(product(times, (None, "pending", "running"), (None, "wf_1"), (None, T0 + 10 * SECOND)))
    for before, status, workflow, since in filters[::stride]:
        expected = [
            seen.run.id
            for seen, its_workflow in last
            if seen.run.status in ({"pending", "running"} if status is None else {status})
            and heartbeat_due(seen.at, sort_time(seen.run.envelope)) < before
            and workflow in (None, its_workflow)
            and (since is None or sort_time(seen.run.envelope) >= since)
        ]
        found = stuck(backend, tenant, before, status=status, workflow_id=workflow, since=since)
        assert found == expected, (before, status, workflow, since)
    query = RunQuery(tenant, stuck_before=T0 + 100 * SECOND, limit=2)
    pages = all_pages(backend.reader, query)
    assert [run_id for page in pages for run_id in page] == stuck(backend, tenant, T0 + 100 * SECOND)
    assert all(len(page) == 2 for page in pages[:-1])


def test_a_run_whose_start_moved_sorts_by_its_newest_start(backend: Harness, tenant: str) -> None:
    """A list has a run once, at its newest start, wherever its pages end, and not at its older starts."""
    moves = {"pending-first": -5, "corrected-later": 20, "corrected-earlier": -20, "reopened": 30}
    others = [make_run(f"at-{number:02}", T0 + number * SECOND) for number in range(12)]
    backend.send(*others, tenant=tenant)
    pending = make_run(
        "pending-first", startedAt=..., completedAt=..., status="pending", createdAt="2025-10-09T08:53:20Z"
    )
    backend.send_spans(encode(pending, tenant=tenant, observed_at=T0), tenant)
    for run_id in list(moves)[1:]:
        backend.send_spans(encode(make_run(run_id, T0 + 5 * SECOND), tenant=tenant), tenant)
    assert len(ids(backend.reader.search(RunQuery(tenant)))) == len(others) + len(moves)
    for number, (run_id, seconds) in enumerate(moves.items()):
        make = running if run_id == "reopened" else make_run
        run = make(run_id, T0 + 5 * SECOND + seconds * SECOND, workflowId="wf_moved")
        after = run_id != "pending-first"
        backend.send_spans(encode(run, tenant=tenant, observed_at=T0 + 100 * SECOND + number, after_root=after), tenant)
    places = {run.id: T0 + number * SECOND for number, run in enumerate(others)}
    places |= {run_id: T0 + (5 + seconds) * SECOND for run_id, seconds in moves.items()}
    expected = sorted(places, key=lambda run_id: (places[run_id], run_id), reverse=True)
    for limit in (1, 2, 3, 50):
        pages = all_pages(backend.reader, RunQuery(tenant, limit=limit))
        assert [run_id for page in pages for run_id in page] == expected, limit
    moved = [run_id for run_id in expected if run_id in moves]
    for limit in (1, 50):
        pages = all_pages(backend.reader, RunQuery(tenant, workflow_id="wf_moved", limit=limit))
        assert [run_id for page in pages for run_id in page] == moved, limit
    pages = all_pages(backend.reader, RunQuery(tenant, since=T0 + 6 * SECOND, limit=2))
    assert [run_id for page in pages for run_id in page] == [i for i in expected if places[i] >= T0 + 6 * SECOND]
