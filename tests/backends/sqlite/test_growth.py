"""The embedded store: a run that grows by one step a request costs about the same with each of them."""

from __future__ import annotations

import random
import sqlite3
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
import zstandard

from conformance.harness import MS, SECOND, T0, ids, make_run, write_spans
from runspan import encode
from runspan.backends.sqlite import SqliteStore, queries, revision
from runspan.backends.sqlite.compression import Compression, _split
from runspan.backends.sqlite.revision import RecentRevisions, from_row
from runspan.contracts import RunQuery
from runspan.errors import StoreError, TraceIncomplete
from runspan.model.document import Run
from runspan.model.span import Span
from runspan.model.timestamps import canonical_text


def step(number: int, **members: Any) -> dict[str, Any]:
    """Return a finished step."""
    start = T0 + number * SECOND
    return {
        "id": f"step-{number}",
        "name": "Fetch",
        "type": "action",
        "status": "completed",
        "startedAt": canonical_text(start),
        "completedAt": canonical_text(start + 100 * MS),
        "durationMs": 100,
        "input": {"number": number, "text": f"“{number}”"},
    } | members


def growing(done: int, **members: Any) -> Run:
    """Return a run with so many finished steps and one that is open."""
    opened = {"id": f"step-{done}", "type": "action", "status": "running", "startedAt": canonical_text(T0 + SECOND)}
    unfinished: dict[str, Any] = {"status": "running", "completedAt": ..., "durationMs": ...}
    return make_run("r", **unfinished | {"steps": [*map(step, range(done)), opened]} | members)


def requests(runs: list[Run]) -> Iterator[list[Span]]:
    """Yield the spans of each version that no earlier one has, as a recorder sends them."""
    sent: set[bytes] = set()
    for number, run in enumerate(runs):
        spans = encode(run, observed_at=T0 + number * SECOND)
        yield [span for span in spans if span.span_id not in sent]
        sent.update(span.span_id for span in spans)


def calls_of(store: SqliteStore, spans: list[Span]) -> int:
    """Return how many functions of runspan a write calls."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and "runspan" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        write_spans(store, spans)
    finally:
        sys.setprofile(None)
    return calls


def in_status(store: SqliteStore, status: str) -> list[str]:
    """Return the runs in a list by status."""
    return ids(store.search(RunQuery(status=status)))


def test_a_request_costs_the_same_however_many_steps_there_are(store: SqliteStore) -> None:
    """A run of hundreds of steps is sent as many times, so no step that is stored may be looked at again."""
    runs = [growing(done) for done in range(201)]
    calls = [calls_of(store, spans) for spans in requests(runs)]
    assert calls[200] < 2 * calls[20]
    assert store.document("r").text == runs[-1].text
    assert store.stats().fragments == 0


@pytest.mark.parametrize("reopen", [False, True])
def test_each_version_is_read_as_it_was_sent(tmp_path: Path, reopen: bool) -> None:
    """In this process and in one that has not written it, until the run has ended."""
    last = make_run("r", steps=[step(number) for number in range(9)])
    runs = [growing(0), growing(1), growing(2), growing(2, status="suspended"), growing(5), growing(8), last]
    store = SqliteStore(tmp_path)
    for run, spans in zip(runs, requests(runs), strict=True):
        write_spans(store, spans)
        if reopen:
            store.close()
            store = SqliteStore(tmp_path)
        document = store.document("r")
        assert (document.text, document.incomplete) == (run.text, ())
        assert store.search(RunQuery()).items == [run.summary()]
        assert list(store.find_damage()) == []
    assert store.stats().fragments == 0
    store.close()


@pytest.mark.parametrize("again", [False, True])
def test_what_another_process_has_written_is_not_overwritten(tmp_path: Path, again: bool) -> None:
    """Whether it is the next version, or one that this process gets too, whose own is older."""
    runs = [growing(done) for done in range(6)]
    versions = list(requests(runs))
    with SqliteStore(tmp_path) as one, SqliteStore(tmp_path) as other:
        for store, number in [(one, 0), (one, 1), (other, 2), (other, 3), *[(one, 2), (one, 3)] * again, (one, 4)]:
            write_spans(store, versions[number])
        assert one.document("r").text == other.document("r").text == runs[4].text
        write_spans(other, versions[5])
        assert one.document("r").text == runs[5].text
        assert list(one.find_damage()) == []
        assert one.stats().fragments == 0


def test_lists_have_the_status_after_another_process_has_written_one(tmp_path: Path) -> None:
    """The status is that of the last version that this process has written, and so another than the stored one."""
    runs = [growing(0), growing(1), growing(2), growing(2, status="suspended"), growing(2)]
    with SqliteStore(tmp_path) as one, SqliteStore(tmp_path) as other:
        for store, spans in zip((one, one, one, other, one), requests(runs), strict=True):
            write_spans(store, spans)
        assert in_status(one, "running") == ["r"]
        assert in_status(one, "suspended") == []
        assert one.document("r").text == runs[4].text
        assert list(one.find_damage()) == []


def test_a_version_that_could_not_be_written_is_not_known(store: SqliteStore) -> None:
    """Neither its status nor its step: the next version waits for the step, and is listed once it is there."""
    runs = [growing(0), growing(1, status="suspended"), growing(2), growing(3)]
    first, second, failed, last = requests(runs)
    write_spans(store, first)
    write_spans(store, second)
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("CREATE TRIGGER no_room BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(StoreError, match="no room"):
            write_spans(store, failed)
        connection.execute("DROP TRIGGER no_room")
    write_spans(store, last)
    document = store.document("r")
    assert (document.text, bool(document.incomplete)) == (runs[1].text, True)
    write_spans(store, failed)
    assert store.document("r").text == runs[3].text
    assert in_status(store, "running") == ["r"]
    assert in_status(store, "suspended") == []
    assert list(store.find_damage()) == []


def test_a_run_that_was_deleted_does_not_grow(store: SqliteStore) -> None:
    """What is new of its next version waits for the rest, as for any run that is not stored."""
    runs = [growing(done) for done in range(4)]
    *stored, last = requests(runs)
    for spans in stored:
        write_spans(store, spans)
    store.purge([(sha256(runs[2].text).digest(), "r")])
    write_spans(store, last)
    with pytest.raises(TraceIncomplete):
        store.document("r")
    assert store.stats().fragments == len(last)
    for spans in stored:
        write_spans(store, spans)
    assert store.document("r").text == runs[3].text
    assert store.stats().fragments == 0


def test_a_version_that_is_listed_as_before_leaves_most_indexes_alone(store: SqliteStore) -> None:
    """Another status is found by lists, and only then are the indexes of statuses written."""
    runs = [growing(1), growing(2), growing(3), growing(4, status="suspended"), growing(5, status="suspended")]
    log, sizes = Path(f"{store.path}-wal"), []
    for run, spans in zip(runs, requests(runs), strict=True):
        before = log.stat().st_size
        write_spans(store, spans)
        sizes.append(log.stat().st_size - before)
        for status in ("running", "suspended"):
            assert in_status(store, status) == ["r"] * (status == run.status)
    assert max(sizes[1], sizes[2], sizes[4]) < sizes[3]
    assert list(store.find_damage()) == []


@pytest.mark.parametrize("column", ["time", "status", "workflow_id", "workflow_key", "status_key"])
def test_the_next_version_mends_a_damaged_list_item(store: SqliteStore, column: str) -> None:
    """Lists have a run that grows again, although a version that is listed as before leaves most indexes alone."""
    *stored, last = requests([growing(done) for done in range(5)])
    for spans in stored:
        write_spans(store, spans)
    with closing(sqlite3.connect(store.path)) as connection:
        value = 5 if column in ("time", "workflow_key", "status_key") else b"x"
        connection.execute(f"UPDATE runs SET {column} = ?", (value,))
        connection.commit()
    assert list(store.find_damage()) != []
    write_spans(store, last)
    assert list(store.find_damage()) == []
    assert ids(store.search(RunQuery(status="running", workflow_id="wf_billing"))) == ["r"]


def with_states(states: str, **members: Any) -> Run:
    """Return a run whose steps are completed (c) or open (o)."""
    steps = [step(number) for number in range(len(states))]
    opened = [{name: each[name] for name in ("id", "type", "startedAt")} | {"status": "running"} for each in steps]
    chosen = [opened[at] if state == "o" else steps[at] for at, state in enumerate(states)]
    return growing(0, steps=chosen, **members)


def test_steps_may_end_in_any_order(store: SqliteStore) -> None:
    """A step that has ended behind an open one is known to the next version too."""
    runs = [with_states(states) for states in ("oo", "oco", "occo", "ccco", "ccccoo")]
    runs.insert(3, with_states("occo", triggerType="manual"))
    for run, spans in zip(runs, requests(runs), strict=True):
        write_spans(store, spans)
        document = store.document("r")
        assert (document.text, document.incomplete) == (run.text, ())
    assert list(store.find_damage()) == []


@pytest.mark.parametrize("reopen", [False, True])
def test_a_long_document_keeps_its_first_frame(tmp_path: Path, reopen: bool) -> None:
    """What versions begin with is compressed once, and each of them is read as it was sent."""
    payload = {"text": random.Random(1).randbytes(1500).hex()}
    runs = [growing(0, steps=[step(at, output=payload | {"at": at}) for at in range(done)]) for done in range(1, 30)]
    runs += [growing(0, steps=runs[-1].to_dict()["steps"], triggerType="manual"), make_run("r", steps=[step(0)])]
    store, firsts = SqliteStore(tmp_path), set()
    for run, spans in zip(runs, requests(runs), strict=True):
        write_spans(store, spans)
        if reopen:
            store.close()
            store = SqliteStore(tmp_path)
        assert store.document("r").text == run.text
        assert list(store.find_damage()) == []
        with closing(sqlite3.connect(store.path)) as connection:
            (frames,) = connection.execute("SELECT document FROM runs").fetchone()
        with zstandard.ZstdDecompressor().stream_reader(frames, read_across_frames=True) as reader:
            assert reader.read() == run.text, "another decoder reads the frames too"
        firsts.add(_split(frames)[0])
    assert len(_split(frames)) == 1, "a run that has ended is one frame"
    assert len(firsts) < len(runs) - 5
    store.close()


@pytest.mark.parametrize("place", [8, 0.1, 0.6, -3])
def test_a_damaged_frame_of_a_growing_run_is_refused(tmp_path: Path, place: float) -> None:
    """Whichever of the two frames it is, or their length."""
    payload = {"text": random.Random(1).randbytes(9000).hex()}
    runs = [growing(0, steps=[step(at, output=payload | {"at": at}) for at in range(done)]) for done in (4, 5)]
    with SqliteStore(tmp_path) as store:
        for spans in requests(runs):
            write_spans(store, spans)
        with closing(sqlite3.connect(store.path)) as connection, connection:
            (frames,) = connection.execute("SELECT document FROM runs").fetchone()
            assert len(_split(frames)) == 2
            damaged = bytearray(frames)
            damaged[int(place * len(frames)) if 0 < place < 1 else int(place)] ^= 1
            connection.execute("UPDATE runs SET document = ?", (bytes(damaged),))
        with pytest.raises(StoreError, match="damaged"):
            store.document("r")
        assert len(list(store.find_damage())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": [step(0), step(1), step(2, extension=1)]},
        {"extension": {"a": 1}},
        {"steps": [step(0), step(1, durationMs=7), step(2)]},
        {"steps": [step(2), step(1), step(0)]},
        {"steps": [step(0), step(2)]},
        {"status": 7},
    ],
    ids=["unknown member of a step", "unknown member", "changed step", "another order", "a step less", "odd status"],
)
def test_other_changes_are_merged(store: SqliteStore, changed: dict[str, Any]) -> None:
    """What is more than a further step is stored as well, and so is what grows from there."""
    runs = [growing(1), growing(2), growing(3, **changed), growing(4)]
    for run, spans in zip(runs, requests(runs), strict=True):
        write_spans(store, spans)
        assert store.document("r").text == run.text
    assert ids(store.search(RunQuery())) == ["r"]


def test_a_revision_that_its_steps_do_not_prove_waits(store: SqliteStore) -> None:
    """The run stays as it was, and says what is missing, until the lost step arrives."""
    runs = [growing(1), growing(2), growing(3)]
    first, second, third = requests(runs)
    write_spans(store, first)
    write_spans(store, third)
    document = store.document("r")
    assert document.text == runs[0].text
    assert document.incomplete
    write_spans(store, second)
    assert store.document("r").text == runs[2].text


def test_a_changed_step_does_not_prove_a_revision(store: SqliteStore) -> None:
    """A step span whose document was changed on the way is not taken for the one of the revision."""
    runs = [growing(1), growing(2)]
    first, second = requests(runs)
    write_spans(store, first)
    write_spans(
        store,
        [
            msgspec.structs.replace(span, start=span.start + MS) if span.span_id == second[0].span_id else span
            for span in second
        ],
    )
    document = store.document("r")
    assert document.text == runs[0].text
    assert document.incomplete


@pytest.mark.parametrize("steps", [0, 1, 100])
def test_growing_runs_take_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Whoever sends many small runs does not fill the memory with what is parsed of them."""
    limit = 2 << 20
    monkeypatch.setattr(revision, "_RECENT_BYTES", limit)
    compression, recent = Compression(), RecentRevisions()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(4000 // (steps + 1)):
            run = Run.from_dict({"id": f"run-{number}", "status": "running", "steps": [step(n) for n in range(steps)]})
            frames, step_ids = compression.compress(run.text), bytes(range(1, 9)) * steps
            row = queries.StoredRow(run.id, "", (), T0 + number, b"", frames, step_ids, T0, None, number, T0, T0)
            stored = from_row(run, "", T0 + number, step_ids, T0, frames)
            assert stored.front.steps == len(run.envelope.steps)
            recent.add(number.to_bytes(16), row, stored)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recent.get(bytes(16)) is None
    assert limit / 8 < after - before < 2 * limit
