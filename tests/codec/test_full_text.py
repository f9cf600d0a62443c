"""A text search finds every text of three characters or more in a document, says where, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run
from runspan.codec.full_text import MIN_TEXT, SNIPPET, Match, find_text, fold, searchable_text
from support.corpus import PAYLOADS

TEXTS = st.text(st.characters(exclude_categories=()), min_size=MIN_TEXT, max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def make_run(value: object = None, **members: Any) -> Run:
    """Return a run with one step whose output is the value."""
    step = {"id": "charge-card", "name": "Charge the card", "type": "stripe", "status": "failed", "output": value}
    return Run.from_dict({"id": "run_1", "workflowId": "billing", "status": "failed", **members, "steps": [step]})


def texts_in(value: object) -> list[str]:
    """Return the strings and keys in a JSON value."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (key, *texts_in(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def shown(match: Match | None) -> str:
    """Return what a match marks in its snippet."""
    assert match is not None
    return match.snippet[match.start : match.start + match.length]


@given(VALUES, st.data())
def test_every_part_of_a_string_or_key_is_found(value: object, data: st.DataObject) -> None:
    """In any case, wherever it is, however the document writes it; and the index has it too."""
    text = data.draw(st.sampled_from(texts_in(value) or ["Charge the card"]))
    start = data.draw(st.integers(0, len(text) - MIN_TEXT))
    part = text[start : data.draw(st.integers(start + MIN_TEXT, len(text)))]
    ascii_json = data.draw(st.booleans())
    document = {"id": "run_1", "steps": [{"id": "a", "name": "Charge the card", "output": value}]}
    run = Run.from_json(json.dumps(document, ensure_ascii=ascii_json or not _is_utf8(text)).encode("utf-8", "replace"))
    for wanted in (part, part.upper() if fold(part.upper()) == fold(part) else part):
        assert find_text(run, wanted) is not None
        assert fold(wanted) in searchable_text(run)


@given(VALUES, TEXTS)
def test_only_what_a_document_contains_is_found(value: object, wanted: str) -> None:
    """A text that no string, key or number contains is not found, even if the document's JSON contains it."""
    run = Run.from_json(json.dumps({"id": "run_1", "input": value}))
    numbers = json.dumps(value).replace('"', " ").split()
    contains = any(fold(wanted) in fold(text) for text in ("run_1", *texts_in(value), *numbers))
    assert contains or find_text(run, wanted) is None


def _is_utf8(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    ("wanted", "member", "step_index", "marked"),
    [
        ("RUN_1", "id", None, "run_1"),
        ("bill", "workflowId", None, "bill"),
        ("charge-card", "id", 0, "charge-card"),
        ("charge the", "name", 0, "Charge the"),
        ("STRIPE", "type", 0, "stripe"),
        ("cus_4711", "output", 0, "cus_4711"),
        ("4711", "output", 0, "4711"),
        ("12.10", "output", 0, "12.10"),
        ("STRASSE", "output", 0, "Straße"),
        ("ὈΔΥΣΣΕΎΣ", "output", 0, "Ὀδυσσεύς"),
        ('said "no', "output", 0, 'said "no'),
        ("first second", "output", 0, None),
        ("first\nsecond", "output", 0, "first second"),
        ("card_declined", "error", None, "card_declined"),
        ("acme", "organization", None, "Acme"),
        ("organization", "organization", None, "organization"),
    ],
)
def test_place(wanted: str, member: str, step_index: int | None, marked: str | None) -> None:
    """A match names the member and the step, and marks the text in the snippet."""
    run = make_run(
        {"customer": "cus_4711", "amount": Run.from_json('{"id":"x"}').id and 12.5, "street": "Lange Straße 1",
         "hero": "Ὀδυσσεύς", "answer": 'He said "no".', "lines": "first\nsecond"},
        error={"code": "card_declined", "message": "Card was declined"},
        organization={"name": "Acme"},
    )  # fmt: skip
    run = Run.from_json(run.text.replace(b"12.5", b"12.10"))
    match = find_text(run, wanted)
    if marked is None:
        assert match is None
        return
    assert match is not None
    assert (match.member, match.step_index, shown(match)) == (member, step_index, marked)
    assert match.step_id == (None if step_index is None else "charge-card")


@pytest.mark.parametrize("wanted", ["status", "failed", '":"', "startedAt", "2026", "true", 'er":"cus', "webhook"])
def test_what_has_a_filter_of_its_own_is_not_found(wanted: str) -> None:
    """Statuses, triggers, times, the names of documented members, and what is between strings."""
    run = make_run({"customer": "cus_4711", "paid": True}, startedAt="2026-11-28T09:00:00Z", triggerType="webhook")
    assert find_text(run, wanted) is None


def test_steps_are_named_before_the_payloads_of_the_run() -> None:
    """The input of a run is in its first step, too, and the step says more."""
    match = find_text(make_run({"customer": "cus_4711"}, input={"customer": "cus_4711"}), "cus_4711")
    assert match is not None
    assert match.step_index == 0


def test_snippet_shows_what_is_around() -> None:
    """Keys and values beside the match, in one line, cut with an ellipsis."""
    match = find_text(
        make_run({"note": "x" * 500, "customer": "cus_4711", "lines": "a\nb", "more": "y" * 500}), "CUS_47"
    )
    assert match is not None
    assert '"customer":"cus_4711","lines":"a b","more":"yyy' in match.snippet
    assert match.snippet.endswith("…")
    assert len(match.snippet) <= SNIPPET + 2
    assert match.snippet[match.start :].startswith("cus_4711")


def test_match_in_a_long_text() -> None:
    """The snippet of a match within a text has some of it on both sides."""
    match = find_text(make_run("word " * 2000 + "İcus_4711 " + "ß" * 1000), "cus_4711")
    assert match is not None
    assert match.snippet.startswith("…")
    assert shown(match) == "cus_4711"
    assert len(match.snippet) == SNIPPET + 2


@pytest.mark.parametrize("name", PAYLOADS)
def test_any_payload_is_searched(name: str) -> None:
    """Nothing in a payload makes a search fail, and what is after it is found."""
    run = Run.from_json(b'{"id":"run_1","steps":[{"id":"a","output":[' + PAYLOADS[name].encode() + b',"cus_4711"]}]}')
    match = find_text(run, "cus_4711")
    assert shown(match) == "cus_4711"
    assert "cus_4711" in searchable_text(run)
    json.dumps(match.snippet, ensure_ascii=False).encode()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "payload",
    [
        "[" * 2_000_000 + '"cus_4711"' + "]" * 2_000_000,
        json.dumps(["cus_471"] * 400_000),
        json.dumps("\n\"cus_471\\" * 400_000),
        json.dumps("ß" * 3_000_000, ensure_ascii=False),
    ],
    ids=["depth", "strings", "escapes", "foldings"],
)  # fmt: skip
def test_large_documents_take_bounded_time(payload: str) -> None:
    """Megabytes of any shape are searched in about as many tenths of a second."""
    run = Run.from_json(f'{{"id":"run_1","steps":[{{"id":"a","output":[{payload},"CUS_4712"]}}]}}')
    begin = time.process_time()
    assert shown(find_text(run, "cus_4712")) == "CUS_4712"
    assert len(searchable_text(run)) > 8
    assert time.process_time() - begin < 20
