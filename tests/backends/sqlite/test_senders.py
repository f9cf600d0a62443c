"""The embedded store: several senders of one run, of whom one sends each step once, and superseded steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.harness import SECOND, T0, make_run, write_spans
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore, ingest
from runspan.backends.sqlite.revision import MergeResult, StoredRevision, merge_fragments
from runspan.codec.decode import verify_run
from runspan.codec.fields import DIGEST, MANIFEST, REVISION, ROOT_REVISION
from runspan.contracts import Document, RunQuery
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import canonical_text

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

LIVE = [bytes([0xA0 + number] * 8) for number in range(8)]
"""Ids that a Recorder chose before the content was known."""


def step(number: int, output: object = None, status: str = "completed") -> dict[str, Any]:
    times = {"startedAt": canonical_text(T0 + number * SECOND), "completedAt": canonical_text(T0 + number * SECOND + 1)}
    return {"id": f"s{number}", "status": status, **times, "output": output}


def run_of(steps: list[dict[str, Any]], status: str = "running", run_id: str = "r", **members: Any) -> Run:
    ended = {"completedAt": canonical_text(T0 + 60 * SECOND)} if status == "completed" else {}
    begun = {"startedAt": canonical_text(T0)}
    return Run.from_dict({"id": run_id, "status": status, **begun, **ended, **members, "steps": steps})


def recorder_requests(run_id: str = "r") -> tuple[list[Span], list[Span]]:
    """Return what a Recorder sends: a step with its snapshot, then only the other step and the run span."""
    first = encode(run_of([step(1)], run_id=run_id), observed_at=T0 + SECOND, step_ids=LIVE[:1])
    last = encode(run_of([step(1), step(2)], "completed", run_id), step_ids=LIVE[:2])
    return first, last[1:]


def with_attributes(span: Span, attributes: dict[str, Any]) -> Span:
    return msgspec.structs.replace(span, shared=(), own=list({**span.attributes(), **attributes}.items()))


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("seen_at", [T0, T0 + SECOND + 1], ids=["before", "after"])
def test_a_recorder_and_a_sync_of_one_run_end_at_its_end(
    store: SqliteStore, order: Sequence[int], seen_at: int
) -> None:
    """The order of their requests does not matter."""
    sent = [*recorder_requests(), encode(run_of([step(1)]), observed_at=seen_at)]
    for number in order:
        write_spans(store, sent[number])
    finished = run_of([step(1), step(2)], "completed")
    assert store.document("r") == Document(finished.text)
    assert [b'"completed"' in item for item in store.search(RunQuery()).items] == [True]
    assert verify_run(store.spans(run_ids("r").trace_id)).run == finished


def test_a_document_put_in_between_loses_no_step(store: SqliteStore) -> None:
    """A changed document by REST replaces the Recorder's snapshot, whose step the Recorder never sends again."""
    first, last = recorder_requests()
    write_spans(store, first)
    store.put(run_of([step(1)], note=1), observed_at=T0 + 2 * SECOND)
    write_spans(store, last)
    assert store.document("r") == Document(run_of([step(1), step(2)], "completed").text)


def test_a_document_put_first_loses_no_step(store: SqliteStore) -> None:
    """The Recorder's first request ranks below the document, and its step is kept nevertheless."""
    first, last = recorder_requests()
    store.put(run_of([step(1)], note=1), observed_at=T0 + 2 * SECOND)
    write_spans(store, first)
    write_spans(store, last)
    assert store.document("r") == Document(run_of([step(1), step(2)], "completed").text)


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_a_step_that_is_stored_already_counts_for_a_later_revision(store: SqliteStore, apart: bool) -> None:
    """A step changes and changes back; the spans of the third revision arrive before those of the second."""
    first, second, third = (
        encode(run_of([step(1, output)]), observed_at=T0 + number) for number, output in enumerate("ABA", 1)
    )
    write_spans(store, first)
    write_spans(store, third[:-1])
    for spans in [[span] for span in second] if apart else [second]:
        write_spans(store, spans)
    assert store.document("r").text == run_of([step(1, "B")]).text
    write_spans(store, third[-1:])
    assert store.document("r") == Document(run_of([step(1, "A")]).text)


def test_superseded_steps_are_deleted_after_a_day(store: SqliteStore) -> None:
    """Steps kept for a revision span that never arrived are deleted, and then the run can be purged."""
    write_spans(store, encode(run_of([step(1, "A")]), observed_at=T0))
    write_spans(store, encode(run_of([step(1, "B")], "completed")))
    assert store.stats().fragments == 1
    store.expire(2 * T0)
    assert store.stats().fragments == 0


def test_a_run_that_grows_leaves_no_fragments(store: SqliteStore) -> None:
    """The usual run: every revision has the steps of the one before, and older ones arrive late."""
    stages = [encode(run_of([step(1), step(2)][:done]), observed_at=T0 + done) for done in range(3)]
    for number in (1, 0, 2, 1):
        write_spans(store, stages[number])
    write_spans(store, encode(run_of([step(1), step(2)], "completed")))
    write_spans(store, stages[2])
    assert store.stats().fragments == 0


def test_a_run_span_of_the_same_document_is_not_missing(store: SqliteStore) -> None:
    """The finished run is stored under other step ids: a run span with the same digest makes nothing incomplete."""
    finished = run_of([step(1), step(2)], "completed")
    write_spans(store, encode(finished))
    write_spans(store, encode(finished, step_ids=LIVE[:2])[1:])
    assert store.document("r") == Document(finished.text)


def test_many_contents_under_one_id_do_not_fail_a_request(store: SqliteStore) -> None:
    """More spans have a step's id than are tried: the stored run stays, and the other runs are accepted."""
    first, stored, third = (encode(run_of([step(1, output)], "completed")) for output in "ABC")
    write_spans(store, first)
    write_spans(store, stored)
    names = [("runspan.step.name", f"n{number}") for number in range(70)]
    write_spans(store, [msgspec.structs.replace(stored[0], own=[*stored[0].own, name]) for name in names])
    other = make_run("other")
    write_spans(store, [first[0], first[-1], third[-1], *encode(other)])
    assert store.document("other").text == other.text
    assert store.document("r").text in (
        run_of([step(1, "A")], "completed").text,
        run_of([step(1, "B")], "completed").text,
    )


def test_many_forged_revision_spans_do_not_fail_a_request(store: SqliteStore) -> None:
    """The stored revision is not proved again, so no number of other revision spans makes it unreadable."""
    first, stored = (encode(run_of([step(1, output)], "completed")) for output in "AB")
    write_spans(store, first)
    write_spans(store, stored)
    forged = [with_attributes(stored[-1], {DIGEST: f"{number:064x}"}) for number in range(300)]
    lacking = with_attributes(stored[-1], {REVISION: ROOT_REVISION + T0, MANIFEST: LIVE[0].hex()})
    other = make_run("other")
    write_spans(store, [*forged, lacking, *first, *encode(other)])
    assert store.document("other").text == other.text
    document = store.document("r")
    assert document.text == run_of([step(1, "A")], "completed").text
    assert LIVE[0].hex() in document.incomplete[0]


def test_spans_that_prove_nothing_leave_the_stored_run(store: SqliteStore) -> None:
    """A newer revision that is damaged is reported as incomplete, and the run is read as before."""
    run = run_of([step(1)])
    spans = encode(run, observed_at=T0)
    write_spans(store, spans)
    newer = encode(run_of([step(1, "other")]), observed_at=T0 + 1)
    damaged = msgspec.structs.replace(newer[0], own=[("runspan.step.output", "changed")])
    write_spans(store, [damaged, newer[-1]])
    document = store.document("r")
    assert (document.text, len(document.incomplete)) == (run.text, 1)
    write_spans(store, newer[:1])
    assert store.document("r") == Document(run_of([step(1, "other")]).text)


def test_steps_that_arrive_one_by_one_after_their_revision_span_are_merged_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one of the manifest has not arrived, no other is read."""
    run = run_of([step(number) for number in range(30)], "completed")
    *steps, root = encode(run)
    tried: list[int] = []

    def counted(stored: StoredRevision | None, fragments: Sequence[Span], *others: Any) -> MergeResult:
        tried.append(len(fragments))
        return merge_fragments(stored, fragments, *others)

    monkeypatch.setattr(ingest, "merge_fragments", counted)
    for span in [root, *steps]:
        write_spans(store, [span])
    assert tried == [1, 31]
    assert store.document("r").text == run.text
    assert store.stats().fragments == 0


@relaxed
@given(data=st.data())
def test_the_store_returns_what_a_decoder_of_all_spans_returns(store: SqliteStore, data: st.DataObject) -> None:
    """Two senders of one run, one with its own step ids that sends each step once, all requests in any order."""
    run_id = f"r{store.stats().runs}"
    requests: list[list[Span]] = []
    acknowledged: set[bytes] = set()
    for number in range(data.draw(st.integers(1, 4))):
        steps = [step(place, data.draw(st.sampled_from("AB"))) for place in range(data.draw(st.integers(0, 3)))]
        status = "completed" if number == 3 else "running"
        run = run_of(steps, status, run_id, note=number)
        if data.draw(st.booleans()):
            live = [bytes([place, ord(listed["output"]), *bytes(6)]) for place, listed in enumerate(steps, 1)]
            spans = encode(run, observed_at=T0 + number, step_ids=live)
            requests.append([span for span in spans if span.span_id not in acknowledged])
            acknowledged.update(live)
        else:
            spans = encode(run, observed_at=T0 + number)
            cut = data.draw(st.integers(0, len(spans)))
            requests += [part for part in (spans[:cut], spans[cut:]) if part]
    order = data.draw(st.permutations(requests))
    for spans in order:
        write_spans(store, spans)
    expected = verify_run([span for spans in order for span in spans])
    assert store.document(run_id) == Document(expected.run.text, expected.incomplete)
    assert verify_run(store.spans(run_ids(run_id).trace_id)).run == expected.run
