"""Tempo's query text and responses, without a server."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import httpx
import pytest
import yaml
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from conformance.harness import make_run, otlp
from runspan import encode
from runspan.backends.tempo import search
from runspan.backends.tempo.reader import CUT, PARTIAL, read_trace
from runspan.backends.tempo.search_api import (
    EARLIEST,
    LATEST,
    SELECTED,
    ended_text,
    pad_tokens,
    quote,
    read_search,
    search_text,
    versions_text,
)
from runspan.codec.fields import REVISION
from runspan.codec.semconv import ERROR_TYPE
from runspan.contracts import RunQuery
from runspan.http.client import Response
from runspan.model.span import Span

ROOT = Path(__file__).parents[3]
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
STATUSES = [None, "failed", "running", "s" * 700]
NAMES = [None, "wf", "x" * 600, "é" * 499, "🚀" * 250, 'a " \\ \n {}', ""]


def never() -> Response:
    raise AssertionError("the trace was requested a second time")


@pytest.mark.parametrize(("workflow", "status"), list(product(NAMES, STATUSES)))
def test_no_word_of_a_query_lies_where_the_lexer_fills_its_buffer(workflow: str | None, status: str | None) -> None:
    """Around every 1024th byte there is white space or the inside of a string."""
    text = search_text(RunQuery("tenant", workflow, status))
    for one in (text.find, text.select):
        assert_padded(one)
    assert len(text.select) > 400


@pytest.mark.parametrize("count", [1, 20, 200])
def test_no_trace_id_of_a_query_lies_where_the_lexer_fills_its_buffer(count: int) -> None:
    """The same holds for a query of many trace ids, which fill the buffer several times."""
    text = ended_text([number.to_bytes(16, "big") for number in range(count)]).find
    assert_padded(text)
    assert len(text) > 40 * count


def assert_padded(text: str) -> None:
    for match in TOKEN.finditer(text):
        length = len(text[: match.start()].encode())
        if match[0].startswith('"'):
            continue
        for byte in range(length - 4, length + len(match[0]) + 4):
            assert byte % 1024 or byte <= 0, f"{match[0]} at {length}"


def test_the_dedicated_columns_are_the_attributes_of_list_items_and_filters() -> None:
    """Every attribute that lists select or are filtered by, and no other, has a column in ``deploy/tempo.yaml``."""
    config = yaml.safe_load((ROOT / "deploy" / "tempo.yaml").read_text())
    columns = config["storage"]["trace"]["block"]["parquet_dedicated_columns"]
    assert sorted(column["name"] for column in columns) == sorted((*SELECTED, ERROR_TYPE))
    integers = {column["name"] for column in columns if column["type"] == "int"}
    assert integers == {REVISION, "runspan.run.duration_ms"}


def test_searches_by_ids_fit_into_the_urls_that_proxies_take() -> None:
    """Without configuration nginx takes 8 KB, and answers 414 to more."""
    ids = [bytes([number]) * 16 for number in range(1, 1 + search._IDS)]
    texts = [versions_text(ids).select, ended_text(ids).find]
    texts.append(search_text(RunQuery(model="é" * 500, step_type="s" * 500)).select)
    for text in texts:
        parameters = {"q": text, "start": EARLIEST, "end": LATEST, "limit": 1000, "spss": 4}
        assert len(str(httpx.QueryParams(parameters))) < 8000, text


def test_padding_changes_white_space_only() -> None:
    """The words and strings of a query stay what they are, in their order."""
    text = " ".join(f'span.a{number} = "b {number} \\" c"' for number in range(200))
    assert TOKEN.findall(pad_tokens(text)) == TOKEN.findall(text)


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\x00", "\x7f", "é", "🚀", "\ufeff", "`", "{}"])
def test_strings_are_quoted_on_one_line(text: str) -> None:
    """What Go would not take bare is escaped, and nothing else is."""
    assert "\n" not in quote(text)
    assert "\ufeff" not in quote(text)
    assert quote(text).startswith('"')


def test_a_text_that_no_run_has() -> None:
    """A lone surrogate cannot be written down."""
    with pytest.raises(UnicodeEncodeError):
        search_text(RunQuery(workflow_id="\ud800"))


def test_ids_without_their_leading_zeros() -> None:
    """Search shortens ids; they are read at their full length."""
    attributes = [
        {"key": "runspan.role", "value": {"stringValue": "run"}},
        {"key": "runspan.revision", "value": {"intValue": "4611686018427387904"}},
    ]
    span = {"spanID": "c1", "startTimeUnixNano": "7", "durationNanos": "2", "attributes": attributes}
    trace = {"traceID": "ab", "startTimeUnixNano": "7", "spanSets": [{"spans": [span], "matched": 1}]}
    body = json.dumps({"traces": [trace]})
    (candidate,), _ = read_search(body.encode())
    assert candidate.trace_id == bytes(15) + b"\xab"
    assert candidate.spans[0].span_id == bytes(7) + b"\xc1"
    assert (candidate.spans[0].start, candidate.spans[0].end) == (7, 9)
    assert candidate.spans[0].attributes()["runspan.revision"] == 1 << 62


@pytest.mark.parametrize(("matched", "is_complete"), [(1, True), (2, False)])
def test_a_set_of_which_spans_were_left_out(matched: int, is_complete: bool) -> None:
    """A candidate is incomplete if more spans have the id of the newest than the response has."""
    sets = []
    for revision, count in ((1 << 62, matched), (7, 9)):
        attributes = [{"key": "runspan.revision", "value": {"intValue": str(revision)}}]
        sets.append({"spans": [{"spanID": "c1", "attributes": attributes}], "matched": count})
    body = json.dumps({"traces": [{"traceID": "ab", "spanSets": sets}]})
    (candidate,), _ = read_search(body.encode())
    assert candidate.spans[0].attributes()["runspan.revision"] == 1 << 62
    assert candidate.is_complete is is_complete


def spans_of(body: bytes, as_json: bytes = b"") -> tuple[list[Span], str]:
    return read_trace(body, lambda: Response(200, as_json) if as_json else never())


def wrapped(trace: bytes, more: bytes = b"") -> bytes:
    """A TraceByIDResponse around a trace shorter than 16 KiB."""
    return b"\x0a" + bytes([len(trace) & 0x7F | 0x80, len(trace) >> 7]) + trace + more


def test_a_trace_in_its_wrapping() -> None:
    """The second version's answer holds the trace, metrics, and a status when it is partial."""
    sent = encode(make_run("r"))
    trace = otlp(sent)
    metrics = b"\x12\x02\x08\x05"
    spans, note = spans_of(wrapped(trace, metrics))
    assert [span.span_id for span in spans] == [span.span_id for span in sent]
    assert note == ""
    assert spans_of(wrapped(trace, metrics + b"\x18\x01"))[1] == PARTIAL
    assert spans_of(b"") == ([], "")


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\xff" * 20])
def test_a_body_that_is_no_trace(body: bytes) -> None:
    """It is refused with a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        spans_of(body, b'{"trace": 7}')


def nested(depth: int) -> bytes:
    """A trace as JSON with an array in arrays."""
    value = '{"arrayValue":{"values":[' * depth + "]}}" * depth
    return f'{{"trace":{{"resourceSpans":[{{"resource":{{"attributes":[{{"value":{value}}}]}}}}]}}}}'.encode()


@pytest.mark.parametrize(
    "as_json", [b"", b"[", b"[" * 100_000, nested(400), nested(50_000), b'{"trace":{"resourceSpans":7}}']
)
def test_json_that_is_no_trace(as_json: bytes) -> None:
    """Neither nonsense nor nesting without end in the second answer is anything but a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        read_trace(wrapped(b"\xff\xff"), lambda: Response(200, as_json))


def test_a_foreign_attribute_cut_inside_a_character() -> None:
    """The other spans are read all the same, from JSON."""
    sent = encode(make_run("r", error={"message": "é"}))
    trace = otlp(sent)
    text = json_format.MessageToJson(TracesData.FromString(trace))
    spans, note = spans_of(wrapped(trace.replace("é".encode(), b"\xc3!")), b'{"trace": %s}' % text.encode())
    assert [span.span_id for span in spans] == [span.span_id for span in sent]
    assert note == CUT
