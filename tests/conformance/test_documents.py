"""Every backend: documents by id."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.harness import SECOND, T0, Harness, make_run, running
from runspan import Run, encode
from runspan.codec.fields import ROLE
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.span import run_ids

SAMPLES = sorted((Path(__file__).parents[2] / "examples" / "runs").glob("*.json"))
UNUSUAL_IDS = [
    "a",
    "run with spaces",
    "run/with/slashes",
    "quotes \" and ' and `",
    "{braces} && || = ~ .* %",
    "line\nbreak\ttab",
    "nul\x00inside",
    "back\\slash",
    "Überweisung-実行-🚀",
    "e\u0301 is not \u00e9",
    "x" * 512,
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_document_comes_back_exactly(backend: Harness, tenant: str, sample: Path) -> None:
    """The text read is the canonical text that was sent, byte for byte."""
    run = Run.from_json(sample.read_bytes())
    backend.send(run, tenant=tenant)
    document = backend.reader.document(run.id, tenant)
    assert document.text == run.text
    assert document.incomplete == ()


@pytest.mark.parametrize("run_id", UNUSUAL_IDS)
def test_any_run_id_is_found_by_itself_alone(backend: Harness, tenant: str, run_id: str) -> None:
    """Ids are compared exactly, whatever characters they have."""
    run = make_run(run_id)
    backend.send(run, tenant=tenant)
    assert backend.reader.document(run_id, tenant).text == run.text
    for other in (run_id + " ", run_id.upper() + "!", run_id[:-1] or "b"):
        with pytest.raises(NotFound):
            backend.reader.document(other, tenant)


@pytest.mark.parametrize("run_id", ["never-sent", "", "\ud800", "x" * 10_000])
def test_an_unknown_run_is_not_found(backend: Harness, tenant: str, run_id: str) -> None:
    """For any id, however unusual, of which no run was sent, the result is NotFound."""
    backend.send(make_run("other"), tenant=tenant)
    with pytest.raises(NotFound):
        backend.reader.document(run_id, tenant)


def test_a_run_is_found_by_its_own_tenant_only(backend: Harness, tenant: str) -> None:
    """Two tenants may have runs of one id; each reads its own, and a third none."""
    mine, theirs = make_run("same"), make_run("same", workflowId="wf_other")
    backend.send(mine, tenant=tenant)
    backend.send(theirs, tenant=tenant + "-b")
    assert backend.reader.document("same", tenant).text == mine.text
    assert backend.reader.document("same", tenant + "-b").text == theirs.text
    with pytest.raises(NotFound):
        backend.reader.document("same", tenant + "-c")


def test_a_run_is_read_at_its_newest_revision(backend: Harness, tenant: str) -> None:
    """Snapshots of a running run replace one another, and the finished run replaces them."""
    stages = [running("r", done=0), running("r", done=1), running("r", done=2), make_run("r")]
    for number, run in enumerate(stages):
        backend.send(run, tenant=tenant, observed_at=T0 + number * SECOND)
        assert backend.reader.document("r", tenant).text == run.text


def test_sending_a_run_again_changes_nothing(backend: Harness, tenant: str) -> None:
    """A re-export is read as one document."""
    run = make_run("again")
    for number in range(3):
        backend.send(run, tenant=tenant, observed_at=T0 + number)
    assert backend.reader.document("again", tenant).text == run.text


def test_a_late_snapshot_does_not_hide_the_finished_run(backend: Harness, tenant: str) -> None:
    """Spans arrive in any order; a snapshot that arrives after the run span changes nothing."""
    snapshot, finished = running("late"), make_run("late")
    backend.send_spans(encode(finished, tenant=tenant), tenant)
    backend.send_spans(encode(snapshot, tenant=tenant, observed_at=T0), tenant)
    assert backend.reader.document("late", tenant).text == finished.text


def test_a_changed_finished_run_is_read_as_changed(backend: Harness, tenant: str) -> None:
    """A revision span ranks above the run span, and the later revision above the earlier."""
    first, second, third = make_run("c"), make_run("c", status="failed"), make_run("c", error={"code": "X"})
    backend.send_spans(encode(first, tenant=tenant), tenant)
    for number, run in enumerate((second, third)):
        backend.send_spans(encode(run, tenant=tenant, observed_at=T0 + number, after_root=True), tenant)
        assert backend.reader.document("c", tenant).text == run.text


def test_an_incomplete_run_is_never_returned_as_complete(backend: Harness, tenant: str) -> None:
    """When a step span is missing and there is no older revision, TraceIncomplete says which."""
    spans = encode(make_run("cut"), tenant=tenant)
    backend.send_spans(spans[1:], tenant)
    with pytest.raises(TraceIncomplete) as caught:
        backend.reader.document("cut", tenant)
    assert spans[0].span_id.hex() in " ".join(caught.value.missing)


def test_an_older_revision_says_what_is_missing_of_the_newer(backend: Harness, tenant: str) -> None:
    """The newest proved revision is returned, and ``incomplete`` is not empty."""
    snapshot, finished = running("older"), make_run("older")
    backend.send_spans(encode(snapshot, tenant=tenant, observed_at=T0), tenant)
    backend.send_spans(encode(finished, tenant=tenant)[-1:], tenant)
    document = backend.reader.document("older", tenant)
    assert document.text == snapshot.text
    assert document.incomplete


def test_the_spans_of_a_trace_are_those_that_were_sent(backend: Harness, tenant: str) -> None:
    """``spans`` returns a run's spans with their ids, times and attributes."""
    run = make_run("spans")
    sent = encode(run, tenant=tenant, observed_at=T0)
    backend.send(run, tenant=tenant)
    read = {span.span_id: span for span in backend.reader.spans(run_ids(run.id, tenant).trace_id)}
    assert read.keys() == {span.span_id for span in sent}
    for span in sent:
        again = read[span.span_id]
        assert (again.start, again.end, again.name) == (span.start, span.end, span.name)
        assert again.attributes()[ROLE] == span.attributes()[ROLE]


def test_an_unknown_trace_has_no_spans(backend: Harness) -> None:
    """``spans`` raises NotFound instead of returning an empty list."""
    with pytest.raises(NotFound):
        backend.reader.spans(bytes(range(16)))


def test_the_backend_says_that_it_works(backend: Harness) -> None:
    """``check`` returns when the backend can answer."""
    backend.reader.check()
