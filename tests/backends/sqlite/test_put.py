"""The embedded store: whole documents."""

from __future__ import annotations

import pytest

from conformance.harness import SECOND, T0, ids, make_run, otlp, running
from runspan import encode
from runspan.backends.sqlite import SqliteStore
from runspan.codec.decode import verify_run
from runspan.codec.fields import ROOT_REVISION
from runspan.contracts import RunQuery
from runspan.model.ids import run_ids
from runspan.otlp.protobuf_reader import read_protobuf


@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path) as opened:
        yield opened


def revision(store: SqliteStore, run_id: str) -> int:
    return verify_run(store.spans(run_ids(run_id).trace_id)).revision


def test_a_changed_document_becomes_the_newest_revision(store):
    """Running, finished, reopened and finished again: each is read, and each ranks above the last."""
    stages = [running("r"), make_run("r"), running("r", done=2), make_run("r", status="failed")]
    revisions = []
    for number, run in enumerate(stages):
        store.put(run, observed_at=T0 + number)
        assert store.document("r").text == run.text
        revisions.append(revision(store, "r"))
    assert revisions == [T0, ROOT_REVISION, ROOT_REVISION + T0 + 2, ROOT_REVISION + T0 + 3]
    assert ids(store.search(RunQuery())) == ["r"]


def test_the_same_finished_document_again_changes_nothing(store):
    """Not even the revision, whenever it was seen."""
    for number in range(3):
        store.put(make_run("r"), observed_at=T0 + number)
    assert revision(store, "r") == ROOT_REVISION


def test_the_same_unfinished_document_again_was_seen_later(store):
    """What was seen in between by somebody else is older, as when the same document comes over OTLP again."""
    run, between = running("r"), running("r", done=2)
    store.put(run, observed_at=T0)
    store.put(run, observed_at=T0 + 2 * SECOND)
    assert revision(store, "r") == T0 + 2 * SECOND
    store.write(read_protobuf(otlp(encode(between, observed_at=T0 + SECOND))))
    assert store.document("r").text == run.text
    store.put(run, observed_at=T0)
    assert revision(store, "r") == T0 + 2 * SECOND
    store.write(read_protobuf(otlp(encode(between, observed_at=T0 + 3 * SECOND))))
    assert store.document("r").text == between.text


def test_a_reopened_run_seen_again_stays_above_its_end(store):
    """Its revision counts from the root's."""
    for number, run in enumerate([make_run("r"), running("r"), running("r")]):
        store.put(run, observed_at=T0 + number)
    assert revision(store, "r") == ROOT_REVISION + T0 + 2


def test_seen_again_after_a_head_that_is_not_proved(store):
    """The head waits no longer once the document was seen after it, and the answer is whole."""
    run = running("r")
    store.put(run, observed_at=T0)
    head = encode(running("r", steps=[{"id": "other", "status": "completed"}]), observed_at=T0 + 1)[-1]
    store.write(read_protobuf(otlp([head])))
    assert len(store.document("r").incomplete) == 1
    store.put(run, observed_at=T0 + 1)
    assert len(store.document("r").incomplete) == 1
    store.put(run, observed_at=T0 + 2)
    assert store.document("r").incomplete == ()
    assert store.stats().fragments == 0


@pytest.mark.parametrize("observed_at", [T0 - SECOND, T0])
def test_a_change_seen_by_an_earlier_clock_still_counts(store, observed_at):
    """The clock that stamps documents may step back; the last document put is the newest all the same."""
    store.put(running("r", done=1), observed_at=T0)
    store.put(running("r", done=2), observed_at=observed_at)
    assert store.document("r").text == running("r", done=2).text
    assert revision(store, "r") == T0 + 1


def test_documents_and_spans_meet_in_one_run(store):
    """A document that was put first, then exported by OTLP, is the same run; a snapshot over OTLP ranks by its time."""
    store.put(make_run("both"), observed_at=T0)
    store.write(read_protobuf(otlp(encode(make_run("both")))))
    store.put(running("ahead", done=1), observed_at=T0)
    store.write(read_protobuf(otlp(encode(running("ahead", done=2), observed_at=T0 + 1))))
    assert store.stats().runs == 2
    assert store.document("ahead").text == running("ahead", done=2).text


def test_a_document_completes_what_spans_left_open(store):
    """Spans that waited for others are forgotten once the whole document is there."""
    run = make_run("open")
    store.write(read_protobuf(otlp(encode(run)[1:])))
    assert store.stats().fragments == 2
    store.put(run, observed_at=T0)
    assert store.document("open").text == run.text
    assert store.document("open").incomplete == ()
    assert store.stats().fragments == 0


def test_what_was_taken_is_counted_in_spans(store):
    """A document counts as its head and its steps."""
    assert store.put(make_run("r"), observed_at=T0).accepted == 3
