"""How a byte stream is cut into run documents: framings, broken input, bounds, and chunks of any size."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runspan.errors import DocumentError
from runspan.model.document import Run
from runspan.sources import RawDocument, parse, split, splitter
from runspan.sources.splitter import RawLines, flatten, split_lines
from support.servers.finding import missing

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "runs").glob("*.json"))
MEGABYTE = 1 << 20


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """The data in chunks of a size."""
    return (data[start : start + size] for start in range(0, len(data), size))


def pieces(data: bytes, **options: int) -> list[RawDocument]:
    """The pieces of a stream that comes in one chunk."""
    return list(split([data], name="f", **options))


def outcomes(data: bytes, **options: int) -> list[str]:
    """The id of each run, and the place of each error."""
    return [
        item.id if isinstance(item, Run) else f"! {item.where}"
        for item in map(parse, split([data], name="f", **options))
    ]


def errors(data: bytes, **options: int) -> list[DocumentError]:
    """The errors only."""
    return [item for item in map(parse, split([data], name="f", **options)) if isinstance(item, DocumentError)]


def comparable(found: Iterable[RawDocument]) -> list[tuple[bytes, str, int, str]]:
    """Pieces as plain values; two errors are the same when they read the same."""
    return [(piece.data, piece.where, piece.end_offset, str(piece.error)) for piece in found]


def test_lines_that_are_a_document_each_come_together() -> None:
    """One by one they are at the same places, and another line between them is not among them."""
    lines = [b'{"id":"%d","input":{"a":1}}' % number for number in range(3000)]
    lines[1500] = b'{"id":"x","input":"}"}'
    data = b"\n".join([*lines, b""])
    found = list(split_lines([data], name="f"))
    together = [piece for piece in found if isinstance(piece, RawLines)]
    assert max(len(piece.lines) for piece in together) > 500
    assert not any(lines[1500] in piece.lines for piece in together)
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    expected = [
        (line, f"f:{number}", end, "None") for number, (line, end) in enumerate(zip(lines, ends, strict=True), 1)
    ]
    # The first is read as a document: nobody knows yet that it fills its line.
    assert comparable(flatten(found))[1:] == comparable(split([data], name="f"))[1:] == expected[1:]


FRAMINGS = {
    "one document": (b'{"id":"a"}', ["a"]),
    "one pretty document": (b'{\n  "id": "a",\n  "steps": [\n    {"id": "s"}\n  ]\n}\n', ["a"]),
    "an array": (b'[{"id":"a"},{"id":"b"}]', ["a", "b"]),
    "a pretty array": (b'[\n  {\n    "id": "a"\n  },\n  {\n    "id": "b"\n  }\n]\n', ["a", "b"]),
    "an empty array": (b" [ ] \n", []),
    "NDJSON": (b'{"id":"a"}\n{"id":"b"}\n', ["a", "b"]),
    "NDJSON whose last line has no line break": (b'{"id":"a"}\n{"id":"b"}', ["a", "b"]),
    "NDJSON with CRLF": (b'{"id":"a"}\r\n{"id":"b"}\r\n', ["a", "b"]),
    "NDJSON with blank lines": (b'\n  \r\n{"id":"a"}\n\n \t \n\r\n{"id":"b"}\n\n\n', ["a", "b"]),
    "NDJSON with indented lines": (b'  {"id":"a"}  \n\t{"id":"b"} \n', ["a", "b"]),
    "pretty documents one after the other": (b'{\n"id":"a"\n}\n{\n"id":"b"\n}', ["a", "b"]),
    "pretty documents with CRLF": (b'{\r\n"id":"a"\r\n}\r\n{\r\n"id":"b"\r\n}\r\n', ["a", "b"]),
    "documents on one line": (b'{"id":"a"}{"id":"b"} {"id":"c"}', ["a", "b", "c"]),
    "a compact document before pretty ones": (b'{"id":"a"}\n{\n"id":"b"\n}\n{"id":"c"}\n{"id":"d"}', list("abcd")),
    "an array after NDJSON": (b'{"id":"a"}\n[\n{"id":"b"}\n]\n{"id":"c"}', ["a", "b", "c"]),
    "documents formatted by hand after NDJSON": (
        b'{"id":"a"}\n{"id":"b", "input": [\n  {"x": 1},\n  {"x": 2}], "steps":\n[]\n}\n{"id":"c"}\n{"id":"d",\n"x":1}',
        ["a", "b", "c", "d"],
    ),
    "arrays one after the other": (b'[{"id":"a"}]\n[{"id":"b"}][]\n{"id":"c"}', ["a", "b", "c"]),
    "a byte order mark": (b'\xef\xbb\xbf{"id":"a"}\n{"id":"b"}', ["a", "b"]),
    "a byte order mark before an array": (b'\xef\xbb\xbf[{"id":"a"}]', ["a"]),
    "a byte order mark alone": (b"\xef\xbb\xbf", []),
    "nothing": (b"", []),
    "white space only": (b" \r\n\n\t", []),
    "brackets, quotes and backslashes in strings": (
        b'{"id":"a","input":"}]{[\\"\\\\"}{\n"id":"b","input":"\\\\\\"}{","output":["\\\\"]}{"id":"c"}',
        ["a", "b", "c"],
    ),
    "commas and brackets in strings of an array": (b'[{"id":"a,]"},{"id":"b","input":[1,[2,{"x":[]}]]}]', ["a,]", "b"]),
    "a document with no indent after NDJSON": (
        b'{"id":"a"}\n{\n"id":"b",\n"steps":[\n{\n"id":"s"\n},\n{\n"id":"t"\n}\n]\n}\n{"id":"c"}',
        ["a", "b", "c"],
    ),
    "steps that begin their lines after NDJSON": (
        b'{"id":"a"}\n{"id":"b","steps":[\n{"id":"s"},\n{"id":"t"}\n]}\n{"id":"c","input":\n{"x":1}}\n{"id":"d"}',
        ["a", "b", "c", "d"],
    ),
    "a comma before each step after NDJSON": (
        b'{"id":"a"}\n{"id":"b","input":{}\n,"steps":[\n{"id":"s"}\n,{"id":"t"}\n]}\n{"id":"c"}',
        ["a", "b", "c"],
    ),
    "steps that begin their lines": (
        b'{"id":"a","steps":[\n{"id":"s"},\n{"id":"t"}\n],"input":\n{"x":1}}\n{"id":"b"}',
        ["a", "b"],
    ),
}


@pytest.mark.parametrize(("data", "expected"), FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_framings(data: bytes, expected: list[str], size: int) -> None:
    """Every framing gives its documents, in order, whatever the chunks."""
    found = [item.id if isinstance(item, Run) else str(item) for item in map(parse, split(cut(data, size), name="f"))]
    assert found == expected


BROKEN = {
    "a bad line": (b'{"id":"a"}\nnonsense\n{"id":"b"}', ["a", "! f:2 column 1", "b"]),
    "a line with a bracket too few": (b'{"id":"a"}\n{"id":"x","steps":[{\n{"id":"b"}', ["a", "! f:2", "b"]),
    "a line with a bracket too many": (b'{"id":"a"}\n{"id":"x"}}\n{"id":"b"}', ["a", "! f:2", "b"]),
    "a line with an open string": (b'{"id":"a"}\n{"id":"x\n{"id":"b"}', ["a", "! f:2", "b"]),
    "two lines cut in an array": (
        b'{"id":"a"}\n{"id":"x","steps":[{},\n{"id":"y","steps":[\n{"id":"b"}',
        ["a", "! f:2", "! f:3", "b"],
    ),
    "two lines cut in an array before complete ones": (
        b'{"id":"a"}\n{"id":"x","steps":[\n{"id":"y","steps":[\n{"id":"b"}\n{"id":"c"}',
        ["a", "! f:2", "! f:3", "b", "c"],
    ),
    "a first line cut in an array": (b'{"id":"x","steps":[\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a first line cut in an array before the last one": (b'{"id":"x","steps":[\n{"id":"a"}', ["! f:1", "a"]),
    "a first line cut before a value": (b'{"id":"x","input":\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "two first lines cut in an array": (
        b'{"id":"x","steps":[\n{"id":"y","steps":[\n{"id":"a"}\n{"id":"b"}',
        ["! f:1", "! f:2", "a", "b"],
    ),
    "a line cut in an array before a document of two lines": (
        b'{"id":"a"}\n{"id":"x","steps":[\n{"id":"b",\n"input":1}\n{"id":"c"}',
        ["a", "! f:2", "b", "c"],
    ),
    "a line cut in an array before a pretty document": (
        b'{"id":"a"}\n{"id":"x","steps":[\n{\n"id":"b",\n"steps":[\n{"id":"s"}\n]\n}\n{"id":"c"}',
        ["a", "! f:2", "b", "c"],
    ),
    "a line of one bracket": (b'{"id":"a"}\n{\n{"id":"b"}', ["a", "! f:2", "b"]),
    "a document with no indent that is cut in its steps": (
        b'{"id":"a"}\n{\n"id":"x",\n"steps":[\n{\n"id":"s"\n},\n{\n"id":"t"\n}\n',
        ["a", "! f:2"],
    ),
    "a first line with a bracket too few": (b'{"id":"x","input":{"y":1\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a first line cut after a comma": (b'{"id":"x",\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a first line with an open string": (b'{"id":"x\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a first line that ends in a backslash": (b'{"id":"x\\\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a first line with a bracket too many": (b'{"id":"x"}}\n{"id":"a"}\n', ["x", "! f:1", "a"]),
    "a first line that is no JSON": (b'# runs\n{"id":"a"}\n{"id":"b"}', ["! f:1", "a", "b"]),
    "a cut last line": (b'{"id":"a"}\n{"id":"b', ["a", "! f:2"]),
    "a cut only document": (b'{"id":"a","steps":[{"id":', ["! f:1 steps[0].id"]),
    "a cut pretty document": (b'{"id":"a"}\n\n{\n  "id": "b",\n', ["a", "! f:3"]),
    "a pretty document cut before another": (b'{\n"id":"x",\n"steps":[\n{\n"id":"a"\n}', ["! f:1"]),
    "a document without an id": (b'{"id":"a"}\n{"status":"failed"}\n{"id":"b"}', ["a", "! f:2 id", "b"]),
    "an answer of the API": (b'{"success":true,"data":[{"id":"a"}]}', ["! f:1 id"]),
    "a bad element": (
        b'[{"id":"a"},\n{"id":1},{"id":nope},\n{"id":"b"}]',
        ["a", "! f[1] line 2", "! f[2] line 2", "b"],
    ),
    "an element with its brackets crossed": (b'[{"id":"x","steps":[}},{"id":"b"}]', ["! f[0] line 1", "b"]),
    "elements that are no objects": (
        b'[null,"a,b",[1,2],3 , {"id":"b"}]',
        [*(f"! f[{n}] line 1" for n in range(4)), "b"],
    ),
    "a comma too many": (b'[{"id":"a"},,{"id":"b"},]', ["a", "! f[1] line 1", "b", "! f[3] line 1"]),
    "a stray bracket in an array": (b'[}{"id":"x"},{"id":"b"}]', ["! f[0] line 1", "b"]),
    "an element with a line break in a string": (b'[{"id":"x\n{"},{"id":"b"}]', ["! f[0] line 1", "b"]),
    "junk after an array": (b'[{"id":"a"}]\nxyz "{"\n{"id":"b"}', ["a", "! f:2", "b"]),
    "stray brackets after an array": (b'[{"id":"a"}]]} \n{"id":"b"}', ["a", "! f:1", "b"]),
    "an array that is not closed": (b'[{"id":"a"},\n{"id":"b"}\n', ["a", "b", "! f:3"]),
    "an array that ends after a comma": (b'[{"id":"a"},\n', ["a", "! f:2"]),
    "an array that ends at once": (b"[", ["! f:1"]),
    "an array cut in an element": (b'[{"id":"a"},\n {"id":"b', ["a", "! f[1] line 2"]),
    "a scalar": (b'"hello"', ["! f:1"]),
    "documents separated by commas": (b'{"id":"a"},\n{"id":"b"}', ["a", "! f:1", "b"]),
    "commas and documents on one line": (b'{"id":"a"},{"id":"b"}', ["a", "! f:1", "b"]),
}


@pytest.mark.parametrize(("data", "expected"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_broken_documents_do_not_stop_the_others(data: bytes, expected: list[str], size: int) -> None:
    """Only the broken document is refused, in its place, and the error names the place."""
    found = list(map(parse, split(cut(data, size), name="f")))
    assert len(found) == len(expected), found
    for item, wanted in zip(found, expected, strict=True):
        if isinstance(item, DocumentError):
            assert f"! {item.where} ".startswith(wanted + " ")
            assert item.expected
            assert item.got
        else:
            assert item.id == wanted


def test_places_and_offsets() -> None:
    """A piece names the line where its document starts, and the offset after it leads to the rest of the stream."""
    data = b'\n{"id":"a"}\n\n{"id":"b"}\n{"id":"c"}'
    assert [(piece.where, piece.end_offset) for piece in pieces(data)] == [("f:2", 11), ("f:4", 24), ("f:5", 34)]
    data = b' [\n{"id":"a"},\n\n {\n"id":"b"} ] {"id":"c"}'
    found = pieces(data)
    assert [piece.where for piece in found] == ["f[0] line 2", "f[1] line 4", "f:5"]
    assert data[found[1].end_offset :] == b'] {"id":"c"}'


@pytest.mark.parametrize("data", [data for data, _ in (FRAMINGS | BROKEN).values()])
def test_offsets_grow_and_end_with_the_stream(data: bytes) -> None:
    """Offsets never go back, and never past the end."""
    offsets = [piece.end_offset for piece in pieces(data)]
    assert offsets == sorted(offsets)
    assert all(0 < offset <= len(data) for offset in offsets)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("size", [1, 64])
def test_other_encodings_are_refused(encoding: str, size: int) -> None:
    """UTF-16 and UTF-32 are named for what they are, with or without a byte order mark, and once."""
    (piece,) = split(cut('{"id":"a"}\n{"id":"b"}'.encode(encoding), size), name="f")
    assert piece.error is not None
    assert str(piece.error).startswith("f: expected UTF-8, got UTF-16 or UTF-32")


def test_invalid_utf8_rejects_its_line_only() -> None:
    """A byte that is no UTF-8 is an error of its own document."""
    assert outcomes(b'{"id":"a"}\n{"id":"\xff"}\n{"id":"b"}') == ["a", "! f:2 byte 7", "b"]


def test_junk_is_quoted_shortly() -> None:
    """The error shows how the junk begins, not all of it."""
    (error,) = errors(b"x" * 1000)
    assert error.got == repr("x" * 20 + "…")


LARGE = b'{"id":"large","input":"' + b"[" * 100 + b'"}'
SMALL = b'{"id":"a"}'
OVERSIZE = {
    "the first document": (LARGE + b"\n" + SMALL, ["! f:1", "a"]),
    "a line": (SMALL + b"\n" + LARGE + b"\n" + SMALL, ["a", "! f:2", "a"]),
    "the last line": (SMALL + b"\n" + LARGE, ["a", "! f:2"]),
    "a pretty document": (b"{\n" + LARGE[1:] + b"\n" + SMALL, ["! f:1", "a"]),
    "a document with steps at line starts": (
        LARGE[:-1] + b',"steps":[\n' + b",\n".join([SMALL] * 9) + b"\n]}\n" + SMALL,
        ["! f:1", "a"],
    ),
    "a document that is cut": (LARGE[:-1] + b' \n\n\n {"id":"x"}\n' + SMALL, ["! f:1", "a"]),
    "a document whose string is open": (LARGE[:-2] + b"\n" + SMALL, ["! f:1", "a"]),
    "a document that the stream cuts": (SMALL + b"\n" + LARGE[:-2], ["a", "! f:2"]),
    "an element": (b"[" + SMALL + b",\n" + LARGE + b"," + SMALL + b"]", ["a", "! f[1] line 2", "a"]),
    "a scalar element": (b"[" + b"1" * 100 + b"," + SMALL + b"]", ["! f[0] line 1", "a"]),
}


@pytest.mark.parametrize(("data", "expected"), OVERSIZE.values(), ids=OVERSIZE)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_oversize_documents(data: bytes, expected: list[str], size: int) -> None:
    """A document over the limit is refused as such, and what follows it is read."""
    found = list(map(parse, split(cut(data, size), name="f", max_document=50)))
    assert [item.id if isinstance(item, Run) else f"! {item.where}" for item in found] == expected
    assert [item.expected for item in found if isinstance(item, DocumentError)] == ["at most 50 bytes"]


def test_the_bound_is_exact() -> None:
    """A document of just the bound passes; one byte more does not."""
    for data in (SMALL, SMALL + b"\n" + SMALL, b"[" + SMALL + b"]"):
        assert not errors(data, max_document=len(SMALL))
        assert len(errors(data, max_document=len(SMALL) - 1)) == data.count(SMALL)


def test_documents_come_before_the_next_chunk_is_asked_for() -> None:
    """What is complete is yielded at once, so that a failing source loses nothing that came before."""

    def failing(data: bytes) -> Iterator[bytes]:
        yield data
        raise OSError("gone")

    for data in (b'{"id":"a"}', b'{"id":"a"}\n{"id":"b"}\n{"id":"cut', b'[{"id":"a"},{"id":"b"},{"id'):
        found = split(failing(data), name="f")
        for expected in (b'{"id":"a"}', b'{"id":"b"}')[: data.count(b"}")]:
            assert next(found).data == expected
        with pytest.raises(OSError, match="gone"):
            next(found)


STRUCTURE = st.lists(
    st.sampled_from(
        [*b'{}[]",:\\ \n\r1', *(b'{"id":"a"}', b'{"id":"b","steps":[\n{"id":"s"}]}', b'"x"', b"\n{", b",\n{", b'\\"')]
    ).map(lambda part: part if isinstance(part, bytes) else bytes([part])),
    max_size=60,
).map(b"".join)


@given(
    st.lists(st.sampled_from([b"{", b"}", b"x", b"{" * 130, b"}" * 130, b"x" * 127, b"\xff"]), max_size=12).map(
        b"".join
    )
)
def test_the_native_part_sees_the_same_documents(line: bytes) -> None:
    """Whether a line has as many brackets of both kinds does not depend on how they are counted."""
    if splitter._is_document is splitter.is_document:
        missing("compiled", "the package was built without its native part")
    assert splitter._is_document(line) == splitter.is_document(line)


@given(STRUCTURE, st.integers(1, 9), st.sampled_from([8, 30, 1000]))
@example(b'{"a":"\\\n{', 1, 1000)
@example(b'{"id":"a"}\n{\n"x":1}', 1, 8)
@example(b'{"id":"a"}\n{"id":"b","steps":[\n{"id":"s"}]}', 1, 8)
@example(b'{"a":[{"b":1},\n{"c":2}\n{"d":3}', 4, 8)
def test_chunks_make_no_difference(data: bytes, size: int, bound: int) -> None:
    """Any bytes give the same pieces, errors and offsets, byte by byte or all at once."""
    expected = comparable(split([data], name="f", max_document=bound))
    assert comparable(split(cut(data, size), name="f", max_document=bound)) == expected
    assert comparable(split(cut(data, 1), name="f", max_document=bound)) == expected
    assert comparable(split([b"", *cut(data, 3), b""], name="f", max_document=bound)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.lists(st.fixed_dictionaries({"id": st.text(min_size=1)}, optional={"input": JSON}), max_size=6)


@given(
    DOCUMENTS, st.sampled_from([None, 0, 1, 3]), st.booleans(), st.integers(1, 64), st.sampled_from(["\n", "\r\n", " "])
)
def test_documents_survive_every_framing(
    documents: list[object], indent: int | None, escaped: bool, size: int, newline: str
) -> None:
    """Documents written by the standard library come back equal, as an array and one after the other."""
    array = json.dumps(documents, indent=indent, ensure_ascii=escaped)
    texts = [json.dumps(document, indent=indent, ensure_ascii=escaped) for document in documents]
    for text in (array, newline.join(texts), newline.join(texts) + newline, "".join(texts)):
        data = text.encode("utf-8")
        assert [json.loads(piece.data) for piece in split(cut(data, size), name="f")] == documents


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.integers(1, 20))
def test_after_a_first_line_each_line_stands_for_itself(lines: list[bytes], size: int) -> None:
    """Once a document has filled its line, every line that is not blank is one piece, untouched and numbered."""
    lines = [line for line in lines if line.strip(b" \t\r")[:1] not in (b"{", b"[")]
    data = b"\n".join([SMALL, *lines])
    expected = [(line, f"f:{number}") for number, line in enumerate([SMALL, *lines], 1) if line.strip(b" \t\r")]
    assert [(piece.data, piece.where) for piece in split(cut(data, size), name="f")] == expected


@given(
    st.lists(st.tuples(DOCUMENTS, st.integers(0, 100)), max_size=6), st.integers(1, 64), st.booleans(), st.booleans()
)
def test_a_cut_line_takes_no_other_with_it(
    lines: list[tuple[object, int]], size: int, ascii_only: bool, first: bool
) -> None:
    """Lines of NDJSON cut anywhere, the first one too, are one piece each, and so are the complete ones between."""
    texts = [SMALL] if first else []
    for content, kept in lines:
        text = json.dumps({"id": "x", "steps": content}, ensure_ascii=ascii_only).encode()
        texts.append(text[: max(1, len(text) * kept // 100)].rstrip(b" "))
    found = split(cut(b"\n".join(texts), size), name="f")
    assert [(piece.data, piece.where) for piece in found] == [(text, f"f:{n}") for n, text in enumerate(texts, 1)]


@given(DOCUMENTS, DOCUMENTS, st.integers(1, 64), st.integers(0, 100))
def test_no_step_becomes_a_run(lines: list[object], written: list[dict[str, object]], size: int, kept: int) -> None:
    """Documents of many lines without indent are complete after NDJSON, and of a cut one no part is yielded."""
    texts = [json.dumps({"id": "run", "steps": [document, document]}, indent=0) for document in written]
    data = ("\n".join([SMALL.decode(), *map(json.dumps, lines), *texts])).encode()
    expected = [json.loads(SMALL), *lines, *map(json.loads, texts)]
    assert [json.loads(piece.data) for piece in split(cut(data, size), name="f")] == expected
    ids = [each["id"] for each in expected]
    shorter = data[: len(data) * kept // 100]
    found = [item.id for item in map(parse, split(cut(shorter, size), name="f")) if isinstance(item, Run)]
    assert found == ids[: len(found)]


TEXT = st.text(alphabet='ab"\\[]:,\n', min_size=1, max_size=5)
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.lists(st.fixed_dictionaries({"id": TEXT}, optional={"input": VALUES}), max_size=5))
def test_line_breaks_may_be_anywhere(data: st.DataObject, documents: list[object]) -> None:
    """Documents one after the other are split as a JSON parser would, wherever their lines break."""
    text = "\n".join(json.dumps(document) for document in documents)
    tokens = [token for token in re.split(r'("(?:[^"\\]|\\.)*"|[{}\[\],:])', text) if token.strip()]
    breaks = data.draw(st.lists(st.sampled_from(["", " ", "\n", "\n "]), min_size=len(tokens), max_size=len(tokens)))
    written, depth = "", 0
    for token, after in zip(tokens, breaks, strict=True):
        depth += {"{": 1, "}": -1}.get(token, 0)
        written += token + (after if depth else "\n")
    size = data.draw(st.integers(1, 20))
    assert [json.loads(piece.data) for piece in split(cut(written.encode(), size), name="f")] == documents


@pytest.mark.timeout(60)
@pytest.mark.parametrize("before", [b"", SMALL + b"\n"], ids=["first", "after a document"])
@pytest.mark.parametrize(
    "lines",
    [b'{"id":"x","steps":[\n', b'{"id":"x","input":{"y":\n', b'{"id":"x","steps":[\n' + SMALL + b"\n"],
    ids=["arrays", "objects", "every second line"],
)
def test_cut_lines_are_scanned_twice_at_most(lines: bytes, before: bytes) -> None:
    """Each of them is continued by the next line, as far as JSON goes. Were all scanned again for each, this took
    hours."""
    count = 20_000
    data = before + lines * count
    found = sum(1 for _ in split(cut(data, 64 << 10), name="f"))
    assert found == data.count(b"\n")


def test_a_document_after_a_cut_line_comes_before_the_source_fails() -> None:
    """It was complete when the source failed, though only the next line shows that it is no part of the cut one."""

    def failing() -> Iterator[bytes]:
        yield b'{"id":"a"}\n{"id":"x","steps":[\n{"id":"b"}\n'
        raise OSError("gone")

    found = split(failing(), name="f")
    assert [next(found).data for _ in range(3)] == [b'{"id":"a"}', b'{"id":"x","steps":[', b'{"id":"b"}']
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_the_example_runs_in_every_framing() -> None:
    """The example runs give the same documents alone, one after the other, and in an array."""
    texts = [path.read_bytes() for path in EXAMPLES]
    expected = [Run.from_json(text) for text in texts]
    assert len(expected) > 20
    assert list(map(parse, split(texts, name="f"))) == expected
    assert list(map(parse, split(cut(b"[" + b",".join(texts) + b"]", 1000), name="f"))) == expected
    compact = b"\n".join(run.text for run in expected)
    assert list(map(parse, split(cut(compact, 1000), name="f"))) == expected


def peak(chunks: Iterable[bytes], max_document: int) -> tuple[int, list[str]]:
    """The most memory that splitting holds, and the places of the first pieces."""
    tracemalloc.start()
    try:
        places: list[str] = []
        for piece in split(chunks, name="f", max_document=max_document):
            if len(places) < 3:
                places.append(f"! {piece.where}" if piece.error else piece.where)
        return tracemalloc.get_traced_memory()[1], places
    finally:
        tracemalloc.stop()


BLOCK = b"x" * (64 << 10)
DOCUMENT = b'{"id":"a","input":"' + b"y" * 8000 + b'","steps":[{"id":"s","output":{"z":[1,2]}}]}'
STREAMS = {
    "NDJSON": ([], (DOCUMENT + b"\n") * 8, [], ["f:1", "f:2", "f:3"]),
    "an array": ([b"["], (DOCUMENT + b",\n") * 8, [DOCUMENT + b"]"], ["f[0] line 1", "f[1] line 2", "f[2] line 3"]),
    "documents on one line": ([], DOCUMENT * 8, [], ["f:1", "f:1", "f:1"]),
    "an oversize document": ([b'{"id":"'], BLOCK, [b'"}\n', SMALL], ["! f:1", "f:2"]),
    "an oversize line": ([SMALL, b"\n"], BLOCK, [b"\n", SMALL], ["f:1", "! f:2", "f:3"]),
    "an oversize element": ([b'["'], BLOCK, [b'",', SMALL, b"]"], ["! f[0] line 1", "f[1] line 1"]),
    "junk": ([], BLOCK, [b"\n", SMALL], ["! f:1", "f:2"]),
    "blank lines": ([SMALL], b" " * 65_535 + b"\n", [SMALL], ["f:1", "f:1601"]),
    "white space in a document": ([b"{"], b" \n" * 30_000, [b"}"], ["! f:1"]),
}


@pytest.mark.parametrize(("start", "block", "end", "expected"), STREAMS.values(), ids=STREAMS)
def test_memory_is_bounded(start: list[bytes], block: bytes, end: list[bytes], expected: list[str]) -> None:
    """A stream of a hundred megabytes needs a few, whatever is in it."""
    blocks = itertools.repeat(block, 100 * MEGABYTE // len(block))
    memory, places = peak(itertools.chain(start, blocks, end), max_document=MEGABYTE)
    assert places == expected
    assert memory < 6 * MEGABYTE


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "unit", [b"x", b'\\"', b'"],["', b'"},{"":"', b'",["'], ids=["plain", "escapes", "arrays", "objects", "deep"]
)
def test_a_long_document_in_small_chunks_is_read_once(unit: bytes) -> None:
    """A long document that comes in very small chunks takes no longer for its length than a short one.

    Were it read again with each chunk, this would be tens of gigabytes of work, and the test would time out.
    """
    data = b'{"id":"a","input":[["' + unit * (2 * MEGABYTE // len(unit)) + b'"]]}'
    assert sum(len(piece.data) for piece in split(cut(data, 32), name="f")) >= len(data) // 2
