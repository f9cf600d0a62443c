"""Plain documents that the native part recognizes are those that the parser finds to be plain and canonical."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run
from runspan.errors import DocumentError
from runspan.model import document
from runspan.model.document import parse_document
from runspan.testing import generate
from support.corpus import cases, runs
from support.servers.finding import missing

CASES = cases()
TEXT = (
    b'{"id":"r","workflowId":"w","status":"completed","startedAt":null,"durationMs":5,"input":{"a":[1,-0.5e+3,"x\\n"]},'
    b'"error":null,"createdAt":"2026-01-15T09:00:00.000Z","steps":[{"id":"","name":null,"attempt":1,"output":"\xc3\xa4"},'
    b'{"id":"b","type":"t"}]}'
)


def recognized(text: bytes) -> str | None:
    """The run id, if the native part recognizes the text; it has to be right."""
    if document._plain_documents is None:
        missing("compiled", "the package was built without its native part")
    run_id = document._plain_documents.run_id(text)
    if run_id is not None:
        envelope, canonical, plain = parse_document(text)
        assert (envelope.id, canonical, plain) == (run_id, text, True)
    return run_id


def test_usual_documents_are_recognized() -> None:
    """Realistic documents are, finished or not, and every kind of member."""
    assert all(recognized(text) for text in generate(200, seed=8, unfinished=True))
    assert recognized(TEXT) == "r"
    assert (
        recognized(b'{"id":"a"}')
        == recognized(b'{"id":"a","steps":null}')
        == recognized(b'{"id":"a","steps":[]}')
        == "a"
    )


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    """Those of the corpus that are recognized are plain, as they are and as canonical text."""
    recognized(CASES[name])
    recognized(Run.from_json(CASES[name]).text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"id":""}',
        b'{"id":"a"',
        b'{"id":"a",}',
        b'{"id":"a"} ',
        b' {"id":"a"}',
        b'{"id" :"a"}',
        b'{"id": "a"}',
        b'{"id":null}',
        b'{"id":"a\\n"}',
        b'{"id":"a\xff"}',
        b'{"id":"a","id":"a"}',
        b'{"status":"s","id":"a"}',
        b'{"id":"a","status":5}',
        b'{"id":"a","status":"\t"}',
        b'{"id":"a","other":5}',
        b'{"id":"a","input": 5}',
        b'{"id":"a","input":5 }',
        b'{"id":"a","input":05}',
        b'{"id":"a","input":5.}',
        b'{"id":"a","input":nul}',
        b'{"id":"a","input":"\\x"}',
        b'{"id":"a","input":"\x01"}',
        b'{"id":"a","input":"\\ud800"}',
        b'{"id":"a","input":[1,]}',
        b'{"id":"a","input":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"id":"a","steps":{}}',
        b'{"id":"a","steps":[null]}',
        b'{"id":"a","steps":[{}]}',
        b'{"id":"a","steps":[{"name":"n"}]}',
        b'{"id":"a","steps":[{"id":"a"},]}',
        b'{"id":"a","steps":[{"id":"a"} ]}',
        b'{"id":"' + b"a" * 129 + b'"}',
    ],
)
def test_others_are_not(text: bytes) -> None:
    """What is not canonical, not plain or not JSON is left to the parser."""
    assert recognized(text) is None


@given(runs())
def test_any_document(run: Run) -> None:
    """Whatever is recognized is plain."""
    recognized(run.text)


@given(st.data())
def test_documents_with_changes(data: st.DataObject) -> None:
    """Whatever is recognized after any change is plain, and comes back the same with its members."""
    text = bytearray(data.draw(st.just(TEXT) | runs().map(lambda run: run.text)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 3)))
        text[start:end] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"\\u00e4", b"{", b"[]", b"null", b" "])
        )
    changed = bytes(text)
    if recognized(changed) is not None:
        run = Run.from_json(changed)
        assert run.envelope == parse_document(changed)[0]
        assert (run.text, run.plain) == (changed, True)


def test_errors_name_the_place() -> None:
    """A document that is not recognized is refused as without the native part."""
    with pytest.raises(DocumentError, match=r"runs\.ndjson:3 steps\[0\]"):
        Run.from_json(b'{"id":"a","steps":[5]}', where="runs.ndjson:3")
