"""The REST API over the embedded store, on a real server."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from google.rpc.status_pb2 import Status

from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Capabilities, Cursor, Document, Page, RunQuery
from runspan.errors import (
    BackendBusy,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    NotFound,
    QueryUnsupported,
    RunspanError,
    StoreError,
    StoreFull,
    TraceIncomplete,
)
from runspan.model.document import MAX_RUN_ID_BYTES
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import parse_ns
from runspan.otlp.json import read_json
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.web import JSON, PROTOBUF, document, error_of, otlp, raw, serving, spans_of

NOW = parse_ns("2024-01-15T10:00:00.000Z") or 0
STATUSES = ["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path, clock=lambda: NOW) as store:
        yield store


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store, clock=lambda: NOW)) as client:
        yield client


def push(client: httpx.Client, text: str | bytes) -> httpx.Response:
    return client.post("/api/v1/runs", content=text, headers=JSON)


def get(client: httpx.Client, run_id: str) -> httpx.Response:
    return client.get(f"/api/v1/runs/{quote(run_id, safe='')}")


class Fake:
    """A reader that returns, or raises, what the test passes."""

    capabilities = Capabilities()

    def __init__(self, result: Document | Page | Exception) -> None:
        self._result = result

    def _get_result(self) -> Document | Page:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def document(self, run_id: str, tenant: str = "") -> Document:
        found = self._get_result()
        assert isinstance(found, Document)
        return found

    def search(self, query: RunQuery) -> Page:
        found = self._get_result()
        assert isinstance(found, Page)
        return found

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        self._get_result()
        return []

    def check(self) -> None:
        self._get_result()

    def close(self) -> None: ...


# GET /api/v1/runs/{id}


def test_a_document_comes_back_verbatim(client: httpx.Client) -> None:
    """The response contains the document's own text, including numbers, escapes, key order and spaces of payloads."""
    text = (
        '{"id":"run_x","workflowId":"wf","status":"completed","steps":[{"id":"s","status":"completed",'
        '"output":{"b": 1, "a":[12.10,-0.0,1e400,1180591620717411303424, "\\u0000\\ud800"], "b":null}}],'
        '"futureField":{"x" : 1}}'
    )
    assert push(client, text).status_code == 201
    response = get(client, "run_x")
    assert response.content == b'{"success":true,"data":' + text.encode() + b"}"
    assert response.headers["content-type"] == "application/json"
    assert "x-runspan-incomplete" not in response.headers


@pytest.mark.parametrize(
    "run_id",
    ["a/b", "a//b", "/a", "a/", "//", "a b+c", "ü/ö", "a%2Fb", "a?b#c", "a/trace", "trace", "a\nb", "💥", '"', "a;b=c"],
)
def test_any_run_id_can_be_requested(client: httpx.Client, run_id: str) -> None:
    """Slashes, spaces, percent signs and line breaks in an id survive the path."""
    assert push(client, json.dumps(document(run_id))).status_code == 201
    assert get(client, run_id).json()["data"]["id"] == run_id


def test_slashes_in_an_id_need_no_escape(client: httpx.Client) -> None:
    """A plain slash in the path is part of the id too."""
    push(client, json.dumps(document("a/b/c")))
    assert client.get("/api/v1/runs/a/b/c").json()["data"]["id"] == "a/b/c"


def test_an_unknown_run_is_not_found(client: httpx.Client) -> None:
    """The error has the code that the platform documents."""
    error_of(get(client, "nope"), 404, "NOT_FOUND")


def test_an_incomplete_document_says_so() -> None:
    """The response is the last complete revision, and a header says what is missing of the newer one."""
    reader = Fake(Document(b'{"id":"x"}', ("1 of 2 step spans: ü", "more\nlines")))
    with serving(create_app(reader)) as client:
        response = get(client, "x")
    assert response.json() == {"success": True, "data": {"id": "x"}}
    assert response.headers["x-runspan-incomplete"] == "1 of 2 step spans: \\xfc; more lines"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("no"), 404, "NOT_FOUND"),
        (TraceIncomplete("parts"), 503, "TRACE_INCOMPLETE"),
        (BackendUnreachable("down"), 503, "BACKEND_UNREACHABLE"),
        (BackendTimeout("late"), 504, "BACKEND_TIMEOUT"),
        (BackendRefused("no"), 502, "BACKEND_REFUSED"),
        (QueryUnsupported("cannot"), 400, "QUERY_UNSUPPORTED"),
        (StoreError("disk"), 503, "STORE_ERROR"),
        (StoreFull("disk"), 507, "STORE_FULL"),
        (RunspanError("unknown"), 500, "INTERNAL_ERROR"),
    ],
)
def test_every_error_has_its_status_and_code(error: RunspanError, status: int, code: str) -> None:
    """The table in runspan.errors decides, on every route that reads."""
    with serving(create_app(Fake(error))) as client:
        for path in ("/api/v1/runs/x", "/api/v1/runs", "/api/v1/traces/" + "a" * 32, "/readyz"):
            error_of(client.get(path), status, code)


def test_a_busy_backend_says_when_to_retry() -> None:
    """Retry-After is an integer number of seconds, rounded up."""
    with serving(create_app(Fake(BackendBusy("later", retry_after=1.2)))) as client:
        response = get(client, "x")
    error_of(response, 503, "BACKEND_BUSY")
    assert response.headers["retry-after"] == "2"
    with serving(create_app(Fake(BackendBusy("later")))) as client:
        assert int(get(client, "x").headers["retry-after"]) > 0


def test_an_unexpected_failure_shows_a_number_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback under the number that the caller sees."""
    app = create_app(Fake(ZeroDivisionError("secret detail")))
    with serving(app) as client, caplog.at_level(logging.ERROR, "runspan.web"):
        error = error_of(get(client, "x"), 500, "INTERNAL_ERROR")
    assert "secret" not in error["message"]
    (record,) = [record for record in caplog.records if record.name == "runspan.web"]
    assert record.exc_info is not None
    number = str(record.args[0]) if isinstance(record.args, tuple) else ""
    assert number in error["message"]


def test_a_path_adds_no_line_to_the_error_log(caplog: pytest.LogCaptureFixture) -> None:
    """Line ends and escapes of a terminal are spelled out, whatever formats the log."""
    app = create_app(Fake(ZeroDivisionError("unknown")))
    with serving(app) as client, caplog.at_level(logging.ERROR, "runspan.web"):
        error_of(get(client, "x\nERROR forged\x1b[2J"), 500, "INTERNAL_ERROR")
    (record,) = [record for record in caplog.records if record.name == "runspan.web"]
    assert r"x\nERROR forged\x1b[2J" in record.getMessage()
    assert record.getMessage().isprintable()


# GET /api/v1/runs


def test_a_list_holds_summaries_newest_first(client: httpx.Client) -> None:
    """Items are summaries without steps, and meta says that there are no more."""
    for number in range(3):
        push(client, json.dumps(document(f"run_{number}", startedAt=f"2024-01-15T09:00:0{number}.000Z")))
    body = client.get("/api/v1/runs").json()
    assert [item["id"] for item in body["data"]] == ["run_2", "run_1", "run_0"]
    assert body["meta"] == {"cursor": None, "hasMore": False}
    assert body["data"][0] == {key: value for key, value in document("run_2").items() if key != "steps"} | {
        "startedAt": "2024-01-15T09:00:02.000Z"
    }


def test_pages_follow_each_other_by_cursor(client: httpx.Client) -> None:
    """Every run appears once over the pages, and the last page says so."""
    for number in range(7):
        push(client, json.dumps(document(f"run_{number}")))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        parameters = {"limit": "3", **({"cursor": cursor} if cursor else {})}
        body = client.get("/api/v1/runs", params=parameters).json()
        assert body["meta"]["hasMore"] is (body["meta"]["cursor"] is not None)
        seen += [item["id"] for item in body["data"]]
        cursor = body["meta"]["cursor"]
    assert seen == [f"run_{number}" for number in reversed(range(7))]


@pytest.mark.parametrize("status", STATUSES)
def test_a_list_can_be_narrowed_to_any_status(client: httpx.Client, status: str) -> None:
    """Each of the seven statuses finds its run."""
    for other in STATUSES:
        push(client, json.dumps(document(f"run_{other}", status=other)))
    body = client.get("/api/v1/runs", params={"status": status}).json()
    assert [item["id"] for item in body["data"]] == [f"run_{status}"]


def test_a_list_can_be_narrowed_to_a_workflow(client: httpx.Client) -> None:
    """Workflow ids are compared exactly, whatever characters they contain."""
    workflow = 'wf "1"/&='
    push(client, json.dumps(document("a", workflowId=workflow)))
    push(client, json.dumps(document("b", workflowId="wf")))
    body = client.get("/api/v1/runs", params={"workflowId": workflow}).json()
    assert [item["id"] for item in body["data"]] == ["a"]


@pytest.mark.parametrize(
    ("since", "expected"), [("59m", ["new"]), ("1h", ["new"]), ("2h", ["new", "hour"]), ("2d", ["new", "hour", "day"])]
)
def test_since_counts_back_from_now(client: httpx.Client, since: str, expected: list[str]) -> None:
    """Minutes, hours and days before the server's clock."""
    push(client, json.dumps(document("new", startedAt="2024-01-15T09:30:00.000Z")))
    push(client, json.dumps(document("hour", startedAt="2024-01-15T08:30:00.000Z")))
    push(client, json.dumps(document("day", startedAt="2024-01-14T09:00:00.000Z")))
    body = client.get("/api/v1/runs", params={"since": since}).json()
    assert [item["id"] for item in body["data"]] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("limit", value) for value in ("0", "201", "-1", "x", "", "1.0", "1_0", " 5", "9" * 30, "٣")],
        *[("status", value) for value in ("done", "", "COMPLETED")],
        *[("since", value) for value in ("1w", "h", "0h", "-1h", "", "1h ", "1h\n", "9999999d", "1.5h")],
        *[("cursor", value) for value in ("x", "", "!!!", "MTIz")],
    ],
)
def test_the_error_names_an_invalid_parameter(client: httpx.Client, name: str, value: str) -> None:
    """The details say which parameter it is and what is wrong with it."""
    error = error_of(client.get("/api/v1/runs", params={name: value}), 400, "VALIDATION_ERROR")
    (detail,) = error["details"]
    assert detail["field"] == name
    assert detail["message"]


def test_the_error_names_all_invalid_parameters_at_once(client: httpx.Client) -> None:
    """One response names both."""
    error = error_of(client.get("/api/v1/runs?limit=0&status=x"), 400, "VALIDATION_ERROR")
    assert {detail["field"] for detail in error["details"]} == {"limit", "status"}


def test_a_parameter_given_twice_is_refused(client: httpx.Client) -> None:
    """If one of the two were ignored, the list would not be the requested one."""
    error = error_of(client.get("/api/v1/runs?workflowId=a&workflowId=b"), 400, "VALIDATION_ERROR")
    assert error["details"][0]["field"] == "workflowId"


def test_unknown_parameters_are_ignored(client: httpx.Client) -> None:
    """Clients add parameters against caches."""
    assert client.get("/api/v1/runs", params={"_": "17", "limit": "200"}).status_code == 200


def test_a_partial_page_says_what_was_not_searched() -> None:
    """The notes are in meta, next to cursor and hasMore."""
    page = Page([b'{"id":"a"}'], Cursor(5, "a"), ("older than the index",))
    with serving(create_app(Fake(page))) as client:
        response = client.get("/api/v1/runs")
    assert response.headers["x-runspan-partial"] == "older than the index"
    body = response.json()
    assert body == {
        "success": True,
        "data": [{"id": "a"}],
        "meta": {"cursor": Cursor(5, "a").token(), "hasMore": True, "partial": ["older than the index"]},
    }


# POST /api/v1/runs


def test_a_document_pushed_is_new_then_known_then_changed(client: httpx.Client) -> None:
    """201 when something was stored, 200 when the very document was there."""
    text = json.dumps(document())
    first, again = push(client, text), push(client, text)
    changed = push(client, json.dumps(document(status="failed")))
    assert [response.status_code for response in (first, again, changed)] == [201, 200, 201]
    assert first.json()["data"] == {"id": "run_1", "traceId": run_ids("run_1").trace_id.hex(), "new": True}
    assert again.json()["data"]["new"] is False
    assert get(client, "run_1").json()["data"]["status"] == "failed"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"id":"r","steps":[{"id":"a"},5]}', "steps[1]"),
        ('{"status":"completed"}', "id"),
        ('{"id":"r","id":"r"}', "id"),
        ('{"id":"r","input":NaN}', "input"),
    ],
)
def test_a_document_that_cannot_be_carried_is_refused_with_the_place(
    client: httpx.Client, text: str, field: str
) -> None:
    """The field of the details is the path in the document."""
    error = error_of(push(client, text), 400, "VALIDATION_ERROR")
    (detail,) = error["details"]
    assert field in detail["field"] + detail["message"]


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b'{"id":"r"', b'{"id":"r","x":"\xff"}'])
def test_a_body_that_is_not_a_document_is_refused(client: httpx.Client, text: bytes) -> None:
    """Empty, truncated and undecodable bodies are errors of the client."""
    error_of(push(client, text), 400, "VALIDATION_ERROR")


def test_a_document_needs_the_content_type_of_json(client: httpx.Client) -> None:
    """Another content type, or none, is refused; an additional charset is not."""
    text = json.dumps(document()).encode()
    error_of(client.post("/api/v1/runs", content=text), 415, "UNSUPPORTED_MEDIA_TYPE")
    error_of(client.post("/api/v1/runs", content=text, headers=PROTOBUF), 415, "UNSUPPORTED_MEDIA_TYPE")
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/api/v1/runs", content=text, headers=charset).status_code == 201


def test_without_a_writer_nothing_can_be_written() -> None:
    """Over a read-only backend the routes that write return 501, to an OTLP sender in its own form."""
    config = WebConfig(backend="Tempo at http://tempo:3200")
    with serving(create_app(Fake(NotFound()), config=config)) as client:
        error = error_of(push(client, json.dumps(document())), 501, "READ_ONLY")
        assert "only reads from Tempo at http://tempo:3200" in error["message"]
        refused = client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF)
        assert (refused.status_code, Status.FromString(refused.content).code) == (501, 12)
        assert "post" not in client.get("/api/v1/openapi.json").json()["paths"]["/api/v1/runs"]


# Traces


def test_a_trace_is_returned_as_otlp_json(client: httpx.Client) -> None:
    """The spans are those that encode makes of the document."""
    push(client, Run.from_dict(document()).text)
    spans = spans_of(document())
    for trace_id in (spans[0].trace_id.hex(), spans[0].trace_id.hex().upper()):
        received = read_json(client.get(f"/api/v1/traces/{trace_id}").content)
        assert {span.span_id: span.attributes() for span in received.spans} == {
            span.span_id: span.attributes() for span in spans
        }


def test_unknown_and_invalid_trace_ids_differ(client: httpx.Client) -> None:
    """An unknown id is not found, an invalid one is an error of the client."""
    error_of(client.get("/api/v1/traces/" + "a" * 32), 404, "NOT_FOUND")
    for wrong in ("x", "a" * 31, "g" * 32, "a" * 33):
        error = error_of(client.get(f"/api/v1/traces/{wrong}"), 400, "VALIDATION_ERROR")
        assert error["details"][0]["field"] == "traceId"


def test_a_run_has_a_trace_id_and_a_link(store: SqliteStore) -> None:
    """The link follows the configured template; an id that ends in /trace is requested with its slash encoded."""
    config = WebConfig(trace_url="https://jaeger.example/trace/{trace_id}")
    with serving(create_app(store, store, config=config)) as client:
        push(client, json.dumps(document("a")))
        push(client, json.dumps(document("a/trace")))
        trace_id = run_ids("a").trace_id.hex()
        assert client.get("/api/v1/runs/a/trace").json()["data"] == {
            "traceId": trace_id,
            "spanId": None,
            "url": f"https://jaeger.example/trace/{trace_id}",
            "links": {"trace": f"https://jaeger.example/trace/{trace_id}"},
        }
        assert client.get("/api/v1/runs/a%2Ftrace").json()["data"]["id"] == "a/trace"
        assert client.get("/api/v1/runs/a/trace/trace").json()["data"]["traceId"] == run_ids("a/trace").trace_id.hex()
        error_of(client.get("/api/v1/runs/b/trace"), 404, "NOT_FOUND")


def test_a_browser_is_redirected_to_the_first_link_and_a_program_gets_all(store: SqliteStore) -> None:
    """A client that prefers HTML is redirected; others get JSON. Without a link the response is always JSON."""
    page, program = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, {"Accept": "*/*"}
    config = WebConfig(jaeger_url="https://j.example/ui/", grafana_url="https://g.example", grafana_datasource="T1")
    with serving(create_app(store, store, config=config)) as client:
        push(client, json.dumps(document("a")))
        trace_id = run_ids("a").trace_id.hex()
        sent = client.get("/api/v1/runs/a/trace", headers=page)
        assert (sent.status_code, sent.headers["location"]) == (302, f"https://j.example/ui/trace/{trace_id}")
        response = client.get("/api/v1/runs/a/trace", headers=program)
        assert (response.headers["vary"], sent.headers["vary"]) == ("Accept, Accept-Encoding", "Accept")
        data = response.json()["data"]
        assert list(data["links"]) == ["jaeger", "grafana"]
        assert data["url"] == data["links"]["jaeger"] == sent.headers["location"]
        error_of(client.get("/api/v1/runs/b/trace", headers=page), 404, "NOT_FOUND")
    with serving(create_app(store, store)) as client:
        response = client.get("/api/v1/runs/a/trace", headers=page)
        assert response.json()["data"] == {"traceId": trace_id, "spanId": None, "url": None, "links": {}}


def test_an_incomplete_run_has_a_trace_to_look_at() -> None:
    """The trace shows what is missing."""
    with serving(create_app(Fake(TraceIncomplete("x")), config=WebConfig(jaeger_url="http://j:1"))) as client:
        for path in ("/api/v1/runs/a/trace", "/api/v1/runs/a/trace?step=0"):
            data = client.get(path).json()["data"]
            assert data["url"] == f"http://j:1/trace/{run_ids('a').trace_id.hex()}"
            assert data["spanId"] is None


def test_a_link_to_a_step_has_the_id_of_its_span(store: SqliteStore) -> None:
    """The id is that of the stored span, also where a recorder assigned it. An open step has none."""
    steps = [{"id": "a", "status": "completed"}, {"id": "b", "status": "running"}, {"id": "a", "status": "failed"}]
    run = Run.from_dict(document("live", status="running", steps=steps))
    spans = encode(run, step_ids=[b"\x01" * 8, b"\x02" * 8])
    with serving(create_app(store, store, config=WebConfig(jaeger_url="http://j:1"))) as client:
        assert client.post(
            "/v1/traces", content=request_bytes(Resource(), map(scoped_bytes, spans)), headers=PROTOBUF
        ).is_success
        for step, span_id in enumerate(["01" * 8, None, "02" * 8]):
            data = client.get("/api/v1/runs/live/trace", params={"step": step}).json()["data"]
            assert data["spanId"] == span_id
            base = f"http://j:1/trace/{run_ids('live').trace_id.hex()}"
            assert data["url"] == (f"{base}?uiFind={span_id}%20-runspan" if span_id else base)
        page = {"Accept": "text/html,*/*;q=0.8"}
        assert (
            client.get("/api/v1/runs/live/trace?step=2", headers=page)
            .headers["location"]
            .endswith("02" * 8 + "%20-runspan")
        )
        for wrong in ("3", "-1", "x", "1_0", "1&step=2", ""):
            error = error_of(client.get(f"/api/v1/runs/live/trace?step={wrong}"), 400, "VALIDATION_ERROR")
            assert error["details"][0]["field"] == "step"
        error_of(client.get("/api/v1/runs/other/trace?step=0"), 404, "NOT_FOUND")


# Everything else


def test_unknown_routes_and_methods_have_the_same_body(client: httpx.Client) -> None:
    """404 and 405 have the documented body, and 405 says what is allowed."""
    error_of(client.get("/nope"), 404, "NOT_FOUND")
    error_of(client.get("/api/v1/runs/"), 404, "NOT_FOUND")
    response = client.delete("/api/v1/runs/x")
    error_of(response, 405, "METHOD_NOT_ALLOWED")
    assert "GET" in response.headers["allow"]


def test_every_response_has_the_security_headers(client: httpx.Client) -> None:
    """This includes errors, and the responses of the server itself."""
    responses = [client.get(path) for path in ("/healthz", "/api/v1/runs", "/nope", "/api/v1/runs?limit=0")]
    responses.append(raw(client, b"GET / HTTP/1.1\r\nno header\r\n\r\n"))
    for response in responses:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers
    error_of(responses[-1], 400, "VALIDATION_ERROR")


def test_health_and_readiness_differ(client: httpx.Client) -> None:
    """The process is healthy while its backend is not ready."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    with serving(create_app(Fake(BackendUnreachable("down")))) as down:
        assert down.get("/healthz").status_code == 200
        error_of(down.get("/readyz"), 503, "BACKEND_UNREACHABLE")
    with serving(create_app(Fake(Page([])), config=WebConfig(backend="Jaeger at http://j:1"))) as named:
        assert named.get("/readyz").json() == {"status": "ok", "backend": "Jaeger at http://j:1"}


def test_metrics_count_by_route_and_never_by_path(client: httpx.Client) -> None:
    """There are counts of requests, spans, runs and the content of the store; ids are not in labels."""
    push(client, json.dumps(document("one")))
    get(client, "one")
    get(client, "two")
    client.get("/nope/secret-path")
    client.post("/v1/traces", content=otlp(document("three")), headers=PROTOBUF)
    text = client.get("/metrics").text
    assert 'runspan_http_requests_total{method="GET",route="/api/v1/runs/<run_id:run_id>",status="200"} 1.0' in text
    assert 'runspan_http_requests_total{method="GET",route="/api/v1/runs/<run_id:run_id>",status="404"} 1.0' in text
    assert 'runspan_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert "runspan_http_request_duration_seconds_bucket" in text
    assert "runspan_spans_received_total 3.0" in text
    assert "runspan_spans_rejected_total 0.0" in text
    assert "runspan_runs_stored_total 2.0" in text
    assert "runspan_store_runs 2.0" in text
    assert "secret-path" not in text


def test_no_query_parameter_is_documented_as_null(client: httpx.Client) -> None:
    """A query string has no null: a client that was generated from the document would send the text "null"."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    schemas = [each["schema"] for operation in operations for each in operation.get("parameters", [])]
    assert len(schemas) >= 10
    assert all(schema["type"] in ("string", "integer") for schema in schemas)


def test_the_openapi_document_says_what_cursors_and_ids_are(client: httpx.Client) -> None:
    """A cursor may be as long as that of the longest id, and no id is empty."""
    found = client.get("/api/v1/openapi.json").json()
    (pattern,) = [
        parameter["schema"]["pattern"]
        for parameter in found["paths"]["/api/v1/runs"]["get"]["parameters"]
        if parameter["name"] == "cursor"
    ]
    long = Cursor(10**19 - 1, "x" * MAX_RUN_ID_BYTES).token()
    longest = Cursor(10**19 - 1, "x" * MAX_RUN_ID_BYTES, "duration").token()
    assert re.search(pattern, long)
    assert re.search(pattern, longest)
    assert client.get("/api/v1/runs", params={"cursor": long}).status_code == 200
    for token in (longest + "A", "MTp4=", "MTp"):
        assert not re.search(pattern, token)
        error_of(client.get("/api/v1/runs", params={"cursor": token}), 400, "VALIDATION_ERROR")
    schema = found["paths"]["/api/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["id"]["minLength"] == 1
    for length, status in ((0, 400), (1, 201), (schema["properties"]["id"]["maxLength"], 201), (513, 400)):
        assert push(client, json.dumps(document("x" * length))).status_code == status


def test_the_openapi_document_names_every_route(client: httpx.Client) -> None:
    """OpenAPI 3.1, with the parameters of the list and the keys that a caller may send."""
    found = client.get("/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert {path: sorted(item) for path, item in found["paths"].items()} == {
        "/api/v1/runs": ["get", "post"],
        "/api/v1/runs/{run_id}": ["get"],
        "/api/v1/runs/{run_id}/trace": ["get"],
        "/api/v1/stats": ["get"],
        "/api/v1/traces/{trace_id}": ["get"],
        "/healthz": ["get"],
        "/metrics": ["get"],
        "/readyz": ["get"],
        "/v1/traces": ["post"],
    }
    parameters = {parameter["name"] for parameter in found["paths"]["/api/v1/runs"]["get"]["parameters"]}
    assert parameters == {
        "workflowId",
        "status",
        "since",
        "limit",
        "cursor",
        "stuckAfter",
        "from",
        "to",
        "endedFrom",
        "endedTo",
        "triggerType",
        "errorCode",
        "minDuration",
        "model",
        "stepType",
        "q",
        "sort",
    }
    assert set(found["components"]["securitySchemes"]) == {"apiKey", "bearer"}


def test_a_search_says_where_runs_contain_the_text(tmp_path: Path) -> None:
    """Beside the platform's items; a search without a result has an empty object, a list without a search has none."""
    with SqliteStore(tmp_path, index=True) as store, serving(create_app(store, store)) as client:
        steps = [{"id": "charge", "output": {"customer": "cus_4711"}}]
        store.put(Run.from_dict(document(steps=steps)), observed_at=1)
        found = client.get("/api/v1/runs", params={"q": "CUS_4711"}).json()
        assert [run["id"] for run in found["data"]] == ["run_1"]
        assert "steps" not in found["data"][0]
        match = {"member": "output", "snippet": '"customer":"cus_4711"', "start": 12, "length": 8}
        match |= {"stepIndex": 0, "stepId": "charge", "execution": 1}
        assert found["meta"]["matches"] == {"run_1": match}
        assert found["meta"]["q"] == "CUS_4711"
        assert client.get("/api/v1/runs", params={"q": "cus_4712"}).json()["meta"]["matches"] == {}
        assert "matches" not in client.get("/api/v1/runs").json()["meta"]
        refused = client.get("/api/v1/runs", params={"q": "ab"})
        assert (refused.status_code, refused.json()["error"]["details"][0]["field"]) == (400, "q")
        described = client.get("/api/v1/openapi.json").json()["components"]["schemas"]["Meta"]["properties"]["matches"]
        assert "MatchBody" in str(described)
