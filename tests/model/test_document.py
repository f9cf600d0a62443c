"""Parsing keeps documents verbatim or refuses them with a precise error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from runspan import Run
from runspan.errors import DocumentError
from runspan.model.document import RUN_STATUSES, STEP_STATUSES, summary_text
from runspan.model.json_scanner import ScanError, elements, end_of_value, members, path_at
from support.corpus import BAD_PAYLOADS, ENVELOPES, PAYLOADS, STEP, TEXTS, with_payload

MEMBER_PATHS = ("input", "output", "error", "x-run", "steps[0].input", "steps[0].x-step")


def at(place: str, payload: str) -> str:
    """Return a document with the payload at one place only."""
    if place.startswith("steps"):
        member = place.rpartition(".")[2]
        return '{"id":"r","steps":[' + STEP % f',"{member}":{payload}' + "]}"
    return f'{{"id":"r","{place}":{payload}}}'


@pytest.mark.parametrize("place", MEMBER_PATHS)
@pytest.mark.parametrize("name", BAD_PAYLOADS)
def test_bad_json_is_refused_with_its_place(name: str, place: str) -> None:
    """Text that is not JSON is refused, and the error names the member and the position."""
    with pytest.raises(DocumentError) as caught:
        Run.from_json(at(place, BAD_PAYLOADS[name]), where="runs.ndjson:7")
    assert caught.value.where.startswith("runs.ndjson:7")
    assert "column" in caught.value.where or "line" in caught.value.where
    assert caught.value.expected
    assert caught.value.got
    if name not in {
        "closed twice",
        "wrong closer",
        "nothing",
        "hex",
        "leading zero",
        "minus leading zero",
        "no fraction",
    }:
        assert place in caught.value.where


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_are_kept_verbatim(name: str) -> None:
    """The canonical text contains the text of a payload unchanged."""
    run = Run.from_json(with_payload(PAYLOADS[name]))
    assert run.text.decode().count(PAYLOADS[name]) >= 8
    assert bytes(run.steps[0].input).decode() == PAYLOADS[name]  # type: ignore[arg-type]


@given(TEXTS)
def test_fast_and_strict_paths_agree(text: str) -> None:
    """White space decides which path is taken, never the result."""
    run = Run.from_json(text)
    compact = json.dumps(json.loads(text), separators=(",", ":"))
    assert json.loads(Run.from_json(compact).text) == json.loads(run.text) == json.loads(text)
    assert Run.from_json(run.text).text == run.text


@pytest.mark.parametrize(
    ("text", "place", "expected", "got"),
    [
        ("", "f:1", "a run document", "nothing"),
        ("[]", "f:1", "a JSON object", "an array"),
        ("5", "f:1", "a JSON object", "a number"),
        ('{"status":"completed"}', "f:1 id", "a string", "nothing"),
        ('{"id":null}', "f:1 id", "a string", "null"),
        ('{"id":5}', "f:1 id", "a string", "a number"),
        ('{"id":""}', "f:1 id", "1 to 512 bytes", "0 bytes"),
        ('{"id":"' + "x" * 513 + '"}', "f:1 id", "1 to 512 bytes", "513 bytes"),
        ('{"id":"\\ud800"}', "f:1 id", "Unicode", "a lone surrogate"),
        ('{"id":"a","id":"b"}', "f:1 id", "one member", "two"),
        ('{"id":"a","x":1,"x":2}', "f:1 x", "one member", "two"),
        ('{"id":"a","\\u0078":1,"x":2}', "f:1 x", "one member", "two"),
        ('{"id":"a","steps":{}}', "f:1 steps", "an array", "an object"),
        ('{"id":"a","steps":[5]}', "f:1 steps[0]", "an object", "a number"),
        ('{"id":"a","steps":[{"id":"x"},null]}', "f:1 steps[1]", "an object", "null"),
        ('{"id":"a","steps":[{"id":"x"},{"name":"y"}]}', "f:1 steps[1].id", "a string", "nothing"),
        ('{"id":"a","steps":[{"id":7}]}', "f:1 steps[0].id", "a string", "a number"),
        ('{"id":"a","steps":[{"id":null}]}', "f:1 steps[0].id", "a string", "null"),
        ('{"id":"a","steps":[{"id":"x","name":1,"name":2}]}', "f:1 steps[0].name", "one member", "two"),
        ('{"id":"a","steps":[{"id":"x","q":1,"q":2}]}', "f:1 steps[0].q", "one member", "two"),
        ('{"id":"a"} {"id":"b"}', "f:1 column 12", "the end", "{"),
        ('{\n"id":"a",\n  "input": {"x": NaN}}', "f:1 input line 3 column 18", "a JSON value", "NaN"),
    ],
)
def test_errors_say_where_and_what(text: str, place: str, expected: str, got: str) -> None:
    """Every error names the place, what was expected and what was found."""
    with pytest.raises(DocumentError) as caught:
        Run.from_json(text, where="f:1")
    assert caught.value.where == place
    assert expected in caught.value.expected
    assert got in caught.value.got


def test_invalid_utf8_is_refused() -> None:
    """Bytes that are not UTF-8 are refused by position, inside payloads too."""
    with pytest.raises(DocumentError) as caught:
        Run.from_json(b'{"id":"a","input":"\xff"}', where="f:1")
    assert (caught.value.where, caught.value.got) == ("f:1 byte 19", "byte 0xff")
    with pytest.raises(DocumentError, match="lone surrogate"):
        Run.from_json('{"id":"a","input":"\ud800"}')


def test_an_api_response_gets_a_hint() -> None:
    """A saved API response is refused with a hint to use its data."""
    with pytest.raises(DocumentError, match="'data'"):
        Run.from_json('{"success":true,"data":{"id":"a"}}')


@pytest.mark.parametrize("status", RUN_STATUSES)
def test_run_statuses(status: str) -> None:
    """All seven statuses are known, four of them as terminal."""
    run = Run.from_dict({"id": "r", "status": status})
    assert run.status == status
    assert run.finished == (status in {"completed", "failed", "cancelled", "timed_out"})


@pytest.mark.parametrize("status", STEP_STATUSES)
def test_step_statuses(status: str) -> None:
    """All six step statuses are read."""
    assert Run.from_dict({"id": "r", "steps": [{"id": "s", "status": status}]}).steps[0].status == status


def test_null_is_not_absent() -> None:
    """A member that is null stays null, one that is absent stays absent."""
    present = Run.from_json('{"id":"r","error":null,"steps":null,"workflowId":null}')
    absent = Run.from_json('{"id":"r"}')
    assert present != absent
    assert present.to_dict() == {"id": "r", "workflowId": None, "error": None, "steps": None}
    assert absent.to_dict() == {"id": "r"}


def test_known_members_are_in_documented_order() -> None:
    """Known members are in documented order, unknown members follow in their original order."""
    run = Run.from_json(
        '{"zz":1,"steps":[{"b":1,"status":"completed","a":2,"id":"s"}],"aa":2,"status":"failed","id":"r"}'
    )
    assert (
        run.text == b'{"id":"r","status":"failed","steps":[{"id":"s","status":"completed","b":1,"a":2}],"zz":1,"aa":2}'
    )


def test_summary_has_the_documented_members() -> None:
    """A list item has the members that the platform lists, exact, and no steps or payloads."""
    run = Run.from_json(
        '{"id":"r","workflowId":"w","status":"failed","triggerType":"api","startedAt":"x","completedAt":null,'
        '"durationMs":1.50,"input":1,"output":2,"error":{"a":1,"a":2},"createdAt":"y","steps":[]}'
    )
    assert run.summary() == (
        b'{"id":"r","workflowId":"w","status":"failed","triggerType":"api","startedAt":"x","completedAt":null,'
        b'"durationMs":1.50,"error":{"a":1,"a":2},"createdAt":"y"}'
    )
    assert summary_text(Run.from_dict({"id": "r"}).envelope) == b'{"id":"r"}'


def test_from_dict_refuses_values_that_json_lacks() -> None:
    """NaN and objects that JSON cannot represent are refused instead of converted."""
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(DocumentError):
            Run.from_dict({"id": "r", "input": value})
    for document in ENVELOPES.values():
        assert Run.from_dict(document).to_dict() == json.loads(json.dumps(document))


def test_runs_compare_by_text() -> None:
    """Two runs are equal when their canonical texts are; they hash and print accordingly."""
    one, two = Run.from_json('{"id":"r","input":1}'), Run.from_json(' { "input" : 1, "id" : "r" } ')
    assert one == two
    assert len({one, two}) == 1
    assert one != Run.from_json('{"id":"r","input":1.0}')
    assert one != "r"
    assert repr(one) == "<Run 'r' None 0 steps 20 bytes>"


def test_scanner_boundaries() -> None:
    """Values end where they end, members and elements keep their own text."""
    text = ' {"a" : [1, {"b":2}] , "c":"x"} tail'
    assert end_of_value(text, 0) == 31
    assert [(member.key, member.value_text) for member in members(text, 1)] == [("a", '[1, {"b":2}]'), ("c", '"x"')]
    assert [element.value_text for element in elements('[ 1,"x" ,[]]', 0)] == ["1", '"x"', "[]"]
    assert list(elements("[ ]", 0)) == []
    assert list(members("{ }", 0)) == []
    with pytest.raises(ScanError):
        end_of_value("", 0)
    assert path_at('{"id":"x","steps":[{"id":"a"},{"input":{"deep":[', 48) == "steps[1].input"
