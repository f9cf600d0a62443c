"""The embedded store: runs written as documents."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.harness import SECOND, T0, ids, make_run, otlp, running
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.compression import Compression
from runspan.codec.decode import verify_run
from runspan.codec.fields import ROOT_REVISION
from runspan.contracts import Document, RunQuery
from runspan.model.span import run_ids
from runspan.model.timestamps import canonical_text
from runspan.otlp.protobuf_reader import read_protobuf


def reopened(run_id: str, **members: Any) -> Run:
    """Return a run that goes on after the end of ``make_run``."""
    steps = make_run(run_id).to_dict()["steps"]
    steps.append({"id": "again", "status": "running", "startedAt": canonical_text(T0 + 2 * SECOND)})
    return running(run_id, **{"steps": steps} | members)


def revision(store: SqliteStore, run_id: str) -> int:
    return verify_run(store.spans(run_ids(run_id).trace_id)).revision


def test_a_changed_document_becomes_the_newest_revision(store):
    """Running, finished, reopened and finished again: each is read, and each ranks above the one before."""
    stages = [running("r"), make_run("r"), reopened("r"), make_run("r", status="failed")]
    revisions = []
    for number, run in enumerate(stages):
        store.put(run, observed_at=T0 + number)
        assert store.document("r").text == run.text
        revisions.append(revision(store, "r"))
    assert revisions == [T0, ROOT_REVISION, ROOT_REVISION + T0 + 2, ROOT_REVISION + T0 + 3]
    assert ids(store.search(RunQuery())) == ["r"]


def test_the_same_finished_document_again_changes_nothing(store):
    """Not even the revision, whenever it was observed."""
    for number in range(3):
        store.put(make_run("r"), observed_at=T0 + number)
    assert revision(store, "r") == ROOT_REVISION


def test_a_stored_document_is_not_compressed_again(store, monkeypatch):
    """A heartbeat of a large run costs no more than its digest, and leaves a sound row."""
    frames = []
    compress = Compression.compress
    monkeypatch.setattr(Compression, "compress", lambda self, data: frames.append(data) or compress(self, data))
    run = running("r")
    for number in range(3):
        store.put(run, observed_at=T0 + number)
    assert revision(store, "r") == T0 + 2
    assert store.write(read_protobuf(otlp(encode(run, observed_at=T0 + SECOND)[-1:]))).rejected == ()
    assert revision(store, "r") == T0 + SECOND
    assert frames == [run.text]
    assert list(store.find_damage()) == []


def test_the_same_unfinished_document_again_is_a_later_observation(store):
    """An observation in between by another sender is older, as when the same document arrives over OTLP again."""
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


def test_a_reopened_run_observed_again_stays_above_its_end(store):
    """Its revision counts from that of the run span."""
    for number, run in enumerate([make_run("r"), reopened("r"), reopened("r")]):
        store.put(run, observed_at=T0 + number)
    assert revision(store, "r") == ROOT_REVISION + T0 + 2


@pytest.mark.parametrize("older", [running("r", done=0), running("r", done=2), running("r", done=2, status="pending")])
def test_an_older_unfinished_document_reopens_nothing(store, older):
    """Whatever was observed when: the document has no later time than the end, as over OTLP."""
    ended = make_run("r")
    assert store.put(ended, observed_at=T0).changed
    assert not store.put(ended, observed_at=T0).changed
    for observed_at in (T0 - SECOND, T0 + SECOND):
        assert not store.put(older, observed_at=observed_at).changed
        assert store.document("r") == Document(ended.text)
        assert ids(store.search(RunQuery(status="completed"))) == ["r"]
        assert ids(store.search(RunQuery(status=older.status))) == []
    assert store.put(reopened("r"), observed_at=T0 + 2 * SECOND).changed
    assert store.document("r") == Document(reopened("r").text)
    assert ids(store.search(RunQuery(status="running"))) == ["r"]


def test_an_older_state_of_a_reopened_run_is_not_outdated_by_its_first_end(store):
    """A reopened run that is observed again, changed, is compared with its newest state."""
    store.put(make_run("r"), observed_at=T0)
    store.put(reopened("r"), observed_at=T0 + 1)
    changed = reopened("r", input={"changed": True})
    assert store.put(changed, observed_at=T0 + 2).changed
    assert store.document("r").text == changed.text


def test_observed_again_after_a_revision_span_that_is_not_proved(store):
    """The revision span is deleted once the document was observed after it, and the run is complete."""
    run = running("r")
    store.put(run, observed_at=T0)
    revision_span = encode(running("r", steps=[{"id": "other", "status": "completed"}]), observed_at=T0 + 1)[-1]
    store.write(read_protobuf(otlp([revision_span])))
    assert len(store.document("r").incomplete) == 1
    store.put(run, observed_at=T0 + 1)
    assert len(store.document("r").incomplete) == 1
    store.put(run, observed_at=T0 + 2)
    assert store.document("r").incomplete == ()
    assert store.stats().fragments == 0


@pytest.mark.parametrize("observed_at", [T0 - SECOND, T0])
def test_a_change_observed_by_an_earlier_clock_still_counts(store, observed_at):
    """The clock of the observations may step back; the last document put is the newest nevertheless."""
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


def test_a_document_replaces_fragments(store):
    """Fragments are deleted once the complete document is stored."""
    run = make_run("open")
    store.write(read_protobuf(otlp(encode(run)[1:])))
    assert store.stats().fragments == 2
    store.put(run, observed_at=T0)
    assert store.document("open").text == run.text
    assert store.document("open").incomplete == ()
    assert store.stats().fragments == 0


def test_accepted_documents_are_counted_in_spans(store):
    """A document counts as its revision span and its steps."""
    assert store.put(make_run("r"), observed_at=T0).accepted == 3
