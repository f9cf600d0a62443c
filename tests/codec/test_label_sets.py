"""The models and step types on the span of a run: the document's own, whatever they are, or said not to be there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run, encode
from runspan.codec.attributes import AttributeDecodeError
from runspan.codec.decode import RunSummary, read_summary
from runspan.codec.facts import decode_label_set, encode_label_set, run_facts
from runspan.codec.fields import MANY, MODELS, STEP_TYPES, SUMMARY_DIGEST
from runspan.errors import TraceIncomplete
from runspan.model.span import Span, summary_digest
from support.corpus import cases

CASES = cases()


def make_run(**members: Any) -> Run:
    return Run.from_dict({"id": "it", "status": "completed"} | members)


def summary_of(run: Run) -> RunSummary:
    summary = read_summary(encode(run, observed_at=5)[-1])
    assert summary is not None
    return summary


def agent(model: str, **members: Any) -> dict[str, Any]:
    return {"id": "ask", "type": "agent", "status": "completed", "output": {"usage": {"model": model}}} | members


@pytest.mark.parametrize("name", CASES)
def test_a_list_item_has_the_labels_of_its_document(name: str) -> None:
    """Those that the document is filtered by elsewhere."""
    run = Run.from_json(CASES[name])
    facts, summary = run_facts(run), summary_of(run)
    assert summary.models == facts.model_names
    assert summary.step_types == facts.step_types


def test_they_are_arrays_of_different_strings_in_order() -> None:
    """Also of steps that have not ended."""
    steps = [
        agent("m-b"),
        agent("m-a"),
        {"id": "x", "type": "wait", "status": "running"},
        agent("m-a", status="running"),
    ]
    attributes = encode(make_run(status="running", steps=steps))[-1].attributes()
    assert attributes[MODELS] == '["m-a","m-b"]'
    assert attributes[STEP_TYPES] == '["agent","wait"]'


def test_a_run_without_any_has_no_attribute() -> None:
    """Its list item says that it has none."""
    run = make_run(steps=[])
    assert not {MODELS, STEP_TYPES} & set(encode(run)[-1].attributes())
    assert (summary_of(run).models, summary_of(run).step_types) == (set(), set())


def test_a_step_without_a_label() -> None:
    """It is an empty string, as in the statistics."""
    run = make_run(steps=[{"id": "x", "status": "completed"}, agent("m", output={"usage": {"promptTokens": 1}})])
    assert (summary_of(run).models, summary_of(run).step_types) == ({""}, {"", "agent"})


def test_too_many_labels_are_not_said() -> None:
    """An attribute has at most 2000 bytes, which Tempo keeps."""
    for count, expected in ((166, {f"model-{number:03}" for number in range(166)}), (167, None)):
        run = make_run(steps=[agent(f"model-{number:03}") for number in range(count)])
        assert summary_of(run).models == expected
    assert encode(run)[-1].attributes()[MODELS] == MANY


@given(st.frozensets(st.text(max_size=20), max_size=20))
def test_any_set(labels: frozenset[str]) -> None:
    """It comes back the same."""
    assert decode_label_set(encode_label_set(labels)) == labels


@pytest.mark.parametrize("text", ["[", "{}", "[1]", "null", '"a"', "[]]", "few"])
def test_what_is_no_set(text: str) -> None:
    """It is an error, even if the digest fits, which anybody can compute."""
    with pytest.raises(AttributeDecodeError):
        decode_label_set(text)
    run = make_run(steps=[])
    span, summary = encode(run)[-1], summary_of(run)
    digest = summary_digest(summary.summary, (text, ""), "", summary.revision, span.start)
    with pytest.raises(TraceIncomplete, match="array of strings"):
        read_summary(changed(span, [(SUMMARY_DIGEST, digest), (MODELS, text)]))


@pytest.mark.parametrize("key", [MODELS, STEP_TYPES])
@pytest.mark.parametrize("value", ['["m-2"]', MANY, "", None, 7])
def test_a_changed_set_goes_not_unnoticed(key: str, value: Any) -> None:
    """A list item is proved together with what it is filtered by."""
    span = encode(make_run(steps=[agent("m-1")]))[-1]
    with pytest.raises(TraceIncomplete):
        read_summary(changed(span, [(key, value)] if value is not None else [], without=key))


def changed(span: Span, pairs: Iterable[tuple[str, Any]], without: str = SUMMARY_DIGEST) -> Span:
    kept = [(key, value) for key, value in span.attributes().items() if key not in (without, *dict(pairs))]
    values = {name: getattr(span, name) for name in Span.__struct_fields__}
    return Span(**{**values, "shared": (), "own": [*kept, *pairs]})
