"""The embedded store: runs and spans past retention."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from threading import Thread

import pytest

from conformance.harness import SECOND, T0, all_pages, foreign_otlp, ids, make_run, otlp, running
from runspan import encode
from runspan.backends.sqlite import SqliteStore, retention
from runspan.contracts import RunQuery
from runspan.errors import NotFound, StoreError, TraceIncomplete
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import read_protobuf

DAY = 86_400 * SECOND


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock(T0)


@pytest.fixture
def store(tmp_path, clock):
    with SqliteStore(tmp_path, retention_days=7, clock=clock) as opened:
        yield opened


def test_runs_expire_by_their_end(store):
    """A run is kept for the retention period after its end; one without an end time counts from its start."""
    ended = make_run("ended", T0 - 6 * DAY)
    long = make_run("long", T0 - 6 * DAY, completedAt="2025-10-09T08:53:20.000Z")
    started = make_run("started", T0 - 6 * DAY, completedAt=...)
    untimed = make_run("untimed", startedAt=..., completedAt=...)
    for run in (ended, long, started, untimed):
        assert store.put(run, observed_at=T0).rejected == ()
    assert store.expire(T0) == 0
    assert store.expire(T0 + 2 * DAY) == 2
    assert sorted(ids(store.search(RunQuery()))) == ["long", "untimed"]
    assert store.expire(T0 + 8 * DAY) == 2


def test_a_run_that_waits_is_not_deleted(store, clock):
    """A run that has not ended is accepted however long ago it started, and counts from when it was last written; once
    it has ended, from its end."""
    waiting = running("waiting", T0 - 60 * DAY, status="suspended")
    assert store.put(waiting, observed_at=T0).rejected == ()
    assert store.expire(T0 + 6 * DAY) == 0
    clock.now = T0 + 6 * DAY
    resumed = running("waiting", T0 - 60 * DAY, done=1)
    assert store.put(resumed, observed_at=clock.now).rejected == ()
    assert store.expire(T0 + 12 * DAY) == 0
    assert store.document("waiting").text == resumed.text
    ended = make_run("waiting", T0 - 60 * DAY, completedAt="2025-10-15T08:53:20.000Z")
    store.put(ended, observed_at=clock.now)
    assert store.document("waiting").text == ended.text
    assert store.expire(T0 + 12 * DAY) == 0
    assert store.expire(T0 + 14 * DAY) == 1


def test_a_run_that_is_no_longer_written_expires(store):
    """A run that never ended is deleted once it was not written for the retention period."""
    store.put(running("abandoned", T0 - 60 * DAY), observed_at=T0)
    assert store.expire(T0 + 8 * DAY) == 1


def test_a_run_past_retention_is_rejected_with_the_reason(store):
    """Nothing is stored only to be deleted; over OTLP the other runs of the request are accepted."""
    old, new = make_run("old", T0 - 8 * DAY), make_run("new")
    (rejection,) = store.put(old, observed_at=T0).rejected
    assert rejection.what == "run old"
    assert "7 days" in rejection.reason
    written = store.write(read_protobuf(otlp([*encode(old), *encode(new)])))
    assert written.accepted == 3
    assert [(item.what, item.spans) for item in written.rejected] == [("run old", 3)]
    assert ids(store.search(RunQuery())) == ["new"]


def test_a_run_past_retention_is_rejected_when_it_arrives_in_parts(store):
    """Its spans are rejected once the revision span shows the time, and its fragments are deleted."""
    *steps, root = encode(make_run("old", T0 - 8 * DAY))
    assert store.write(read_protobuf(otlp(steps))).rejected == ()
    (rejection,) = store.write(read_protobuf(otlp([root]))).rejected
    assert "7 days" in rejection.reason
    assert store.stats().fragments == 0
    with pytest.raises(NotFound):
        store.document("old")


def test_the_disk_space_is_freed(tmp_path, clock):
    """After expiry the file is smaller by the size of the runs."""
    with SqliteStore(tmp_path, retention_days=7, clock=clock) as store:
        for number in range(1500):
            noise = os.urandom(2000).hex()
            store.write(read_protobuf(otlp(encode(make_run(f"r{number}", input={"noise": noise})))))
        store.put(make_run("keeps", T0 + 5 * DAY), observed_at=T0)
        full = store.stats().bytes
        assert full > 3_000_000
        assert store.expire(T0 + 8 * DAY) == 1500
        assert store.stats().bytes < full / 10
        assert store.document("keeps").text == make_run("keeps", T0 + 5 * DAY).text
        assert store.path.stat().st_size < full / 10


def test_writes_continue_while_runs_expire(store):
    """A run that arrives during an expiry is stored and stays."""
    old = [span for number in range(1200) for span in encode(make_run(f"old-{number}"))]
    assert store.write(read_protobuf(otlp(old))).rejected == ()
    expiry = Thread(target=store.expire, args=(T0 + 8 * DAY,))
    expiry.start()
    for number in range(50):
        store.put(make_run(f"new-{number}", T0 + 8 * DAY), observed_at=T0)
    expiry.join()
    assert sum(len(page) for page in all_pages(store, RunQuery())) == 50


def test_foreign_spans_expire_with_their_run_or_by_age(store, clock):
    """A foreign span of a run that stays is kept however old it is; one without a run expires by its arrival."""
    clock.now = T0 - 20 * DAY
    for run_id in ("stays", "none"):
        store.write(read_protobuf(foreign_otlp(run_ids(run_id).trace_id, b"foreign1", run_id)))
    clock.now = T0
    store.put(make_run("stays"), observed_at=T0)
    store.expire(T0)
    assert store.stats().foreign_spans == 1
    store.expire(T0 + 8 * DAY)
    assert store.stats().foreign_spans == 0


def test_fragments_of_no_run_expire_by_age(store):
    """Spans of a run that was not completed within the retention period are deleted."""
    store.write(read_protobuf(otlp(encode(make_run("lost"))[:-1])))
    store.expire(T0 + 6 * DAY)
    with pytest.raises(TraceIncomplete):
        store.document("lost")
    store.expire(T0 + 8 * DAY)
    with pytest.raises(NotFound):
        store.document("lost")


def test_superseded_steps_are_deleted(tmp_path, clock):
    """Without retention too: steps of a superseded snapshot are kept for a day and then deleted."""
    with SqliteStore(tmp_path, clock=clock) as store:
        store.put(make_run("done"), observed_at=T0)
        changed = make_run("done").to_dict()["steps"]
        changed[0]["output"] = {"overtaken": True}
        late = encode(running("done", done=2, steps=changed), observed_at=T0)
        store.write(read_protobuf(otlp(late[:1])))
        assert store.stats().fragments == 1
        store.expire(T0 + DAY // 2)
        assert store.stats().fragments == 1
        store.expire(T0 + 2 * DAY)
        assert store.stats().fragments == 0
        assert store.document("done").text == make_run("done").text


def test_fragments_of_an_incomplete_run_are_not_deleted(tmp_path, clock):
    """As long as a run is incomplete, its document says so."""
    with SqliteStore(tmp_path, clock=clock) as store:
        store.put(running("half"), observed_at=T0)
        store.write(read_protobuf(otlp(encode(make_run("half"))[-1:])))
        store.expire(T0 + 400 * DAY)
        assert store.document("half").incomplete


# A clock that is wrong.


class Uptime(Clock):
    """A monotonic clock that a test advances."""


@pytest.fixture
def guarded(tmp_path, clock):
    """A store that deletes at most half of its runs at once, and two clocks that go on together or do not."""
    uptime = Uptime(0)
    with SqliteStore(tmp_path, retention_days=30, max_expire_share=0.5, clock=clock, monotonic=uptime) as opened:
        for number in range(40):
            opened.put(make_run(f"r{number}", T0 - number * DAY // 2), observed_at=T0)
        yield opened, uptime


def test_a_clock_that_jumps_ahead_deletes_nothing(guarded, clock):
    """Neither runs nor spans that wait for others are deleted, and new runs are stored; later all goes on."""
    store, uptime = guarded
    store.write(read_protobuf(otlp(encode(make_run("waits"))[:-1])))
    clock.now += 40 * DAY
    for _ in range(3):
        uptime.now += DAY // 24
        with pytest.raises(StoreError, match=r"got 4\d runs") as refused:
            store.expire(clock.now)
        assert "expected at most 50% of 4" in str(refused.value)
        assert "--max-expire-share 100" in refused.value.hint
        new = make_run(f"new-{uptime.now}", T0 + uptime.now)
        assert store.put(new, observed_at=clock.now).rejected == ()
        assert store.document(new.id).text == new.text
    assert store.stats().overdue == 42
    assert store.write(read_protobuf(otlp(encode(make_run("waits"))[-1:]))).rejected == ()
    assert store.document("waits").text == make_run("waits").text
    clock.now -= 40 * DAY
    assert store.expire(clock.now) == 0
    assert store.stats().overdue == 0
    assert len(ids(store.search(RunQuery(limit=200)))) == 44


def test_a_clock_that_goes_back_deletes_nothing(guarded, clock):
    """Runs of the future, as they seem then, stay; and once the clock is right again, retention goes on."""
    store, uptime = guarded
    clock.now -= 40 * DAY
    assert store.expire(clock.now) == 0
    assert store.put(make_run("now"), observed_at=clock.now).rejected == ()
    clock.now += 40 * DAY
    assert store.expire(clock.now) == 0
    uptime.now += 12 * DAY
    assert store.expire(clock.now + 12 * DAY) == 3
    assert len(ids(store.search(RunQuery(limit=200)))) == 38


@pytest.mark.parametrize("restarted", [False, True])
def test_what_arrives_while_the_clock_is_behind_is_not_old(tmp_path, clock, restarted):
    """A device may start in 1970: what it receives until its clock is right is kept as long as anything else."""
    uptime = Uptime(0)

    def opened():
        return SqliteStore(tmp_path, retention_days=30, max_expire_share=0.5, clock=clock, monotonic=uptime)

    store = opened()
    for number in range(40):
        store.put(make_run(f"r{number}"), observed_at=T0)
    if restarted:
        store.close()
    clock.now = 5 * DAY
    if restarted:
        store = opened()
    store.put(running("running"), observed_at=clock.now)
    store.write(read_protobuf(otlp(encode(make_run("waits"))[:-1])))
    store.write(read_protobuf(foreign_otlp(run_ids("none").trace_id, b"foreign1", "none")))
    before = store.stats()
    clock.now = T0
    assert store.expire(clock.now) == 0
    assert replace(store.stats(), bytes=before.bytes) == before
    assert store.document("running").text == running("running").text
    store.close()


def test_what_becomes_old_while_the_process_runs_is_deleted(guarded, clock):
    """However many runs ended at the same time, and nothing came since: no clock has jumped."""
    store, uptime = guarded
    for number in range(500):
        store.put(make_run(f"same-{number}"), observed_at=T0)
    for _ in range(31):
        assert store.stats().runs > 500
        uptime.now += DAY
        clock.now += DAY
        store.expire(clock.now)
    assert store.stats().runs == 0


def test_a_few_runs_are_always_deleted(tmp_path, clock):
    """A start after a long time finds a handful of old runs; but that proves no clock, so none is rejected for it."""
    with SqliteStore(tmp_path) as store:
        for number in range(10):
            store.put(make_run(f"r{number}"), observed_at=T0)
    clock.now += 40 * DAY
    with SqliteStore(tmp_path, retention_days=30, max_expire_share=0.5, clock=clock) as store:
        assert store.expire(clock.now) == 10
        assert store.put(make_run("old"), observed_at=T0).rejected == ()


def test_what_is_past_retention_comes_from_its_index(tmp_path):
    """Neither counting it nor the next batch of it reads a run that is kept, or sorts."""
    with SqliteStore(tmp_path) as store, closing(sqlite3.connect(store.path)) as connection:
        for statement in (retention._OVERDUE, retention._EXPIRED):
            values = [T0] * statement.count("?")
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert "INDEX runs_by_end (<expr><?)" in plan[0]
            assert "TEMP B-TREE" not in " ".join(plan)
