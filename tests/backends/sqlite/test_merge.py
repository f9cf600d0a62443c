"""The embedded store: spans of a run that arrive in parts, late, twice or changed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.harness import SECOND, T0, foreign_otlp, ids, make_run, otlp, running
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import ROLE, ROLE_ATTEMPT
from runspan.contracts import Document, RunQuery, WriteResult
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(store: SqliteStore, spans: list[Span], tenant: str = "") -> WriteResult:
    return store.write(read_protobuf(otlp(spans)), tenant)


def many_steps(run_id: str, count: int = 6, **members) -> Run:
    step = make_run(run_id).to_dict()["steps"][0]
    return make_run(run_id, steps=[{**step, "output": {"number": number}} for number in range(count)], **members)


@relaxed
@given(data=st.data())
def test_fragments_in_any_order_and_twice_give_the_document(store, data):
    """Seven spans, each in its own request, shuffled and sent twice, are one run and leave no fragments."""
    run = many_steps(f"shuffled-{store.stats().runs}")
    spans = encode(run)
    assert len(spans) == 7
    order = data.draw(st.permutations([*range(7), *range(7)]))
    done = max(order.index(number) for number in range(7))
    for position, number in enumerate(order):
        written = write(store, [spans[number]])
        assert (written.accepted, written.rejected) == (1, ())
        if position < done:
            with pytest.raises(TraceIncomplete):
                store.document(run.id)
        else:
            assert store.document(run.id).text == run.text
    assert store.stats().fragments == 0


@relaxed
@given(data=st.data())
def test_revisions_in_any_order_end_at_the_newest(store, data):
    """Of two snapshots, the run span and a later revision, all their spans shuffled, the last is read, complete."""
    number = store.stats().runs
    run_id, at = f"revised-{number}", T0 + 10 * number * SECOND  # so that it is on the first page of lists
    newest = make_run(run_id, at, status="failed")
    sent = [
        *encode(running(run_id, at, done=0), observed_at=at),
        *encode(running(run_id, at, done=2), observed_at=at + SECOND),
        *encode(make_run(run_id, at)),
        *encode(newest, observed_at=at + 5 * SECOND, after_root=True),
    ]
    for span in data.draw(st.permutations(sent)):
        write(store, [span])
    assert store.document(run_id) == Document(newest.text)
    assert ids(store.search(RunQuery(status="failed"))).count(run_id) == 1
    assert run_id not in ids(store.search(RunQuery(status="running", limit=200)))


def test_a_run_span_that_arrives_last_completes_the_run(store):
    """A stock SDK ends the root after its children, in another request."""
    run = many_steps("root-last", 20)
    *steps, root = encode(run)
    write(store, steps)
    assert store.search(RunQuery()).items == []
    assert store.stats().fragments == 20
    write(store, [root])
    assert store.document(run.id).text == run.text
    assert store.stats().fragments == 0


def test_a_snapshot_that_arrives_late_is_not_stored(store):
    """A complete snapshot that ranks below the stored run is accepted and not stored."""
    finished = make_run("late")
    write(store, encode(finished))
    written = write(store, encode(running("late"), observed_at=T0))
    assert written.rejected == ()
    assert store.document("late").text == finished.text
    assert store.stats().fragments == 0


def test_a_revision_span_alone_uses_the_stored_steps(store):
    """Steps of a snapshot need not be sent again with the run span."""
    write(store, encode(many_steps("grow", 6, status="suspended", completedAt=...), observed_at=T0))
    finished = many_steps("grow", 6, status="suspended", completedAt=..., error={"code": "TIMEOUT"})
    *_, run_span = encode(finished, observed_at=T0 + 1)
    write(store, [run_span])
    assert store.document("grow").text == finished.text


def test_of_two_run_spans_the_later_counts(store):
    """A stateless re-export of a changed run has a run span with the same id; the last to arrive is read."""
    first, second = make_run("two"), make_run("two", error={"code": "X"})
    for run in (first, second, first, second):
        write(store, encode(run))
        assert store.document("two").text == run.text


def test_a_second_run_span_without_its_steps_leaves_the_first(store):
    """The proved revision stays readable, with a note of what is missing; the steps then complete the second."""
    first, second = make_run("half"), many_steps("half", 3)
    *steps, root = encode(second)
    write(store, encode(first))
    write(store, [root])
    document = store.document("half")
    assert document.text == first.text
    assert "3 of 3 step spans" in document.incomplete[0]
    for step in steps:
        write(store, [step])
    assert store.document("half").text == second.text
    assert store.document("half").incomplete == ()
    assert store.stats().fragments == 0


def test_step_ids_chosen_before_the_content_are_kept(store):
    """A recorder's step spans are read with the ids they were sent with, and later manifests may contain them."""
    run = make_run("live", status="suspended", completedAt=...)
    step_ids = [bytes([7] * 8), bytes([8] * 8)]
    write(store, encode(run, step_ids=step_ids, observed_at=T0))
    trace_id = run_ids("live").trace_id
    assert [span.span_id for span in store.spans(trace_id)][:2] == step_ids
    finished = make_run("live")
    write(store, encode(finished, step_ids=step_ids)[-1:])
    assert store.document("live").text == finished.text
    assert [span.span_id for span in store.spans(trace_id)][:2] == step_ids


def test_a_step_with_a_known_id_and_other_content_is_not_lost(store):
    """A recorder that ran twice gave one id to two contents; its second run span still finds its own step."""
    step_ids = [bytes([7] * 8), bytes([8] * 8)]
    first = make_run("rerun")
    steps = first.to_dict()["steps"]
    second = make_run("rerun", steps=[{**steps[0], "output": {"other": True}}, steps[1]])
    write(store, encode(first, step_ids=step_ids))
    for span in encode(second, step_ids=step_ids):
        write(store, [span])
    assert store.document("rerun").text == second.text


def test_a_collector_that_adds_attributes_changes_nothing(store):
    """Spans that come again with attributes of a processor are the same spans."""
    run = make_run("collected")
    spans = encode(run)
    write(store, spans)
    added = [msgspec.structs.replace(span, own=[*span.own, ("k8s.pod.name", "pod-1")]) for span in spans]
    for span in added:
        write(store, [span])
    assert store.document("collected").text == run.text
    assert store.stats().fragments == 0


@pytest.mark.parametrize("victim", [0, -1])
def test_a_changed_span_never_gives_a_wrong_document(store, victim):
    """A payload or field that was changed on the way fails the digest, and the run is not returned."""
    spans = encode(make_run("tampered"))
    changed = [(key, 2 if key.endswith("duration_ms") else value) for key, value in spans[victim].own]
    spans[victim] = msgspec.structs.replace(spans[victim], own=changed)
    write(store, spans)
    with pytest.raises(TraceIncomplete, match="digest"):
        store.document("tampered")
    assert store.search(RunQuery()).items == []


def test_a_run_of_another_tenant_is_rejected_with_its_id(store):
    """A sender writes its own tenant's runs only; the other runs of its request are accepted."""
    spans = [*encode(make_run("theirs"), tenant="b"), *encode(make_run("mine"), tenant="a")]
    written = write(store, spans, "a")
    assert written.accepted == 3
    (rejection,) = written.rejected
    assert (rejection.what, rejection.spans) == ("run theirs", 3)
    assert "'b'" in rejection.reason
    assert ids(store.search(RunQuery("a"))) == ["mine"]
    assert store.search(RunQuery("b")).items == []


def test_a_revision_span_of_another_tenant_is_rejected_alone_too(store):
    """Nor can a sender write a revision span into another tenant's trace."""
    written = write(store, encode(make_run("theirs"), tenant="b")[-1:], "a")
    assert written.accepted == 0
    assert store.stats().fragments == 0


def test_steps_of_another_tenant_do_not_reach_the_run(store):
    """Step spans have no tenant, so they are stored under their sender's, and are never merged into the run."""
    run = make_run("mine")
    *steps, root = encode(run, tenant="a")
    write(store, steps, "b")
    write(store, [root], "a")
    with pytest.raises(TraceIncomplete):
        store.document("mine", "a")
    write(store, steps, "a")
    assert store.document("mine", "a").text == run.text


def test_a_forged_trace_id_is_rejected(store):
    """A revision span counts only in the trace that follows from its run id."""
    forged = msgspec.structs.replace(encode(make_run("forged"))[-1], trace_id=run_ids("victim").trace_id)
    (rejection,) = write(store, [forged]).rejected
    assert "does not follow" in rejection.reason
    with pytest.raises(NotFound):
        store.document("victim")


def test_attempts_are_read_with_their_run(store):
    """Attempt spans are no part of the document, whether it has the attempts or not, and none is lost or doubled."""
    run = make_run("tried")
    spans = encode(run)
    attempt = msgspec.structs.replace(
        spans[0], span_id=b"attempt1", parent_id=spans[0].span_id, shared=(), own=[(ROLE, ROLE_ATTEMPT), ("n", 1)]
    )
    for _ in range(2):
        assert write(store, [attempt, *spans]).rejected == ()
    assert store.document("tried").text == run.text
    read = store.spans(run_ids("tried").trace_id)
    assert sorted(span.span_id for span in read) == sorted([attempt.span_id, *[span.span_id for span in spans]])
    assert store.stats().fragments == 0


def test_foreign_spans_are_kept_with_a_run(store):
    """A span of other instrumentation is read with the trace, once, with all its data."""
    run = make_run("with-llm")
    trace_id = run_ids("with-llm").trace_id
    body = foreign_otlp(trace_id, b"foreign1", "chat")
    for _ in range(3):
        assert store.write(read_protobuf(body)).accepted == 1
    assert [span.name for span in store.spans(trace_id)] == ["chat"]
    with pytest.raises(NotFound):
        store.document("with-llm")
    write(store, encode(run))
    (chat,) = [span for span in store.spans(trace_id) if span.name == "chat"]
    assert chat.attributes() == {"list": [0.5]}
    assert store.stats().foreign_spans == 1
    assert store.document("with-llm").text == run.text


def test_another_tenants_foreign_spans_stay_out_of_the_trace(store):
    """A sender that knows a trace id cannot write spans that the run's tenant reads."""
    trace_id = run_ids("mine", "a").trace_id
    store.write(read_protobuf(foreign_otlp(trace_id, b"foreign1", "intruder")), "b")
    write(store, encode(make_run("mine"), tenant="a"), "a")
    assert "intruder" not in [span.name for span in store.spans(trace_id)]


def test_the_resource_that_sent_a_run_is_known(store):
    """The sender's Resource is kept with the run, in the same bytes for every run."""
    write(store, encode(make_run("r1")))
    write(store, encode(make_run("r2")))
    first, second = (store.resource(run_ids(run_id).trace_id) for run_id in ("r1", "r2"))
    assert first is not None
    assert b"service.name" in first
    assert first == second
    assert store.resource(bytes(16)) is None
