"""``RunspanApiReader``: another server's runs, byte for byte, and its failures as errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response

from runspan import Run
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Cursor, RunQuery
from runspan.errors import (
    BackendRefused,
    BackendUnreachable,
    ConfigError,
    Forbidden,
    NotFound,
    QueryError,
    RateLimited,
    TraceIncomplete,
    Unauthorized,
)
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import ParsedRequest
from runspan.web.api_keys import RUNS_WRITE, ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import SAMPLES, generated
from support.jaeger import serving as answering
from support.web import document, serving, spans_of

NON_CANONICAL = {
    "deep": b'{"id":"deep","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "lone": b'{"id":"lone","output":{"a":"\\ud800","\\udfff":"\\u0000"}}',
    "numbers": b'{"id":"numbers","input":[1e400,-0.0,12.10,1180591620717411303424],"output":{"a":1,"a":2}}',
    "space": b'{"id":"space","input":{ "b" : [ 1,\n\t2 ],\r\n"a":null }}',
    "data": b'{"id":"data","data":{"success":false},"meta":"\\"}"}',
    "a/b?c#d%20e \xc3\xa9\xe2\x80\xa8": b'{"id":"a/b?c#d%20e \xc3\xa9\xe2\x80\xa8"}',
    "..": b'{"id":".."}',
    "x/trace": b'{"id":"x/trace"}',
}


@contextmanager
def reading(store: SqliteStore, **more: Any) -> Iterator[RunspanApiReader]:
    """A reader of a real server on the store."""
    key = more.pop("api_key", None)
    with serving(create_app(store, store, **more)) as client:
        reader = RunspanApiReader(str(client.base_url), api_key=key)
        try:
            yield reader
        finally:
            reader.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("name", NON_CANONICAL, ids=repr)
def test_non_canonical_documents_come_back_byte_for_byte(store: SqliteStore, name: str) -> None:
    """Nesting beyond any recursive parser, lone surrogates, numbers that no float holds, ids that look like paths."""
    run = Run.from_json(NON_CANONICAL[name])
    store.put(run, observed_at=1)
    name = run.id
    with reading(store) as reader:
        assert reader.document(name).text == store.document(name).text == run.text
        assert list(reader.search(RunQuery()).items) == [run.summary()]


def test_samples_come_back_byte_for_byte(store: SqliteStore) -> None:
    """Documents, list items and spans are the store's own."""
    runs = [Run.from_json(path.read_bytes()) for path in SAMPLES.glob("*.json")]
    for run in runs:
        store.put(run, observed_at=1)
    with reading(store) as reader:
        for run in runs:
            assert reader.document(run.id).text == run.text
            trace_id = run_ids(run.id, "").trace_id
            assert len(reader.spans(trace_id)) == len(store.spans(trace_id))
        assert list(reader.search(RunQuery(limit=200)).items) == list(store.search(RunQuery(limit=200)).items)
        reader.check()


def test_pages_follow_each_other_as_in_the_store(store: SqliteStore) -> None:
    """Filters and cursor mean the same on both sides."""
    for text in generated(90).values():
        store.put(Run.from_json(text), observed_at=1)
    with reading(store) as reader:
        for status in (None, "completed", "failed"):
            after: Cursor | None = None
            while True:
                query = RunQuery(status=status, limit=17, cursor=after)
                ours, theirs = reader.search(query), store.search(query)
                assert (list(ours.items), ours.cursor) == (list(theirs.items), theirs.cursor)
                after = ours.cursor
                if after is None:
                    break


def test_an_older_revision_is_reported(store: SqliteStore) -> None:
    """The reader passes on what the server says about an incomplete newer revision."""
    running = document("run_1", status="running", steps=[])
    store.put(Run.from_dict(running), observed_at=1)
    revision_span = spans_of(document("run_1"))[-1]
    store.write(ParsedRequest([revision_span]))
    with reading(store) as reader:
        found = reader.document("run_1")
        assert found.text == store.document("run_1").text
        assert found.incomplete
        assert all(note in found.incomplete[0] for note in store.document("run_1").incomplete)
    store.write(ParsedRequest([spans_of(document("run_2"))[-1]]))
    with reading(store) as reader, pytest.raises(TraceIncomplete):
        reader.document("run_2")


def test_access_and_rate_limits_have_their_own_errors(store: SqliteStore, tmp_path: Path) -> None:
    """No key, a wrong one, one without the permission, and too many requests each have their own class."""
    store.put(Run.from_dict(document("run_1")), tenant="acme", observed_at=1)
    ring = ApiKeyStore(tmp_path / "keys.sqlite3")
    secret, _ = ring.create("all", tenant="acme")
    writing, _ = ring.create("writer", permissions=[RUNS_WRITE])
    for key, kind in ((None, Unauthorized), ("wfk_wrong", Unauthorized), (writing, Forbidden)):
        with reading(store, keys=ring, api_key=key) as reader, pytest.raises(kind) as caught:
            reader.document("run_1")
        assert not key or key not in str(caught.value)
    with reading(store, keys=ring, api_key=secret, config=WebConfig(reads_per_minute=2)) as reader:
        assert json.loads(reader.document("run_1").text)["id"] == "run_1"
        with pytest.raises(NotFound):
            reader.document("run_2")
        with pytest.raises(RateLimited) as limited:
            reader.document("run_1")
        assert 0 < limited.value.retry_after <= 60
    ring.close()


def test_a_named_tenant_is_verified(store: SqliteStore, tmp_path: Path) -> None:
    """The key decides whose runs are returned; a query for another tenant is refused."""
    for tenant in ("acme", "beta"):
        store.put(Run.from_dict(document("run_1", workflowId=tenant)), tenant=tenant, observed_at=1)
    ring = ApiKeyStore(tmp_path / "keys.sqlite3")
    secret, _ = ring.create("all", tenant="acme")
    with reading(store, keys=ring, api_key=secret) as reader:
        assert json.loads(reader.document("run_1", "acme").text)["workflowId"] == "acme"
        assert json.loads(reader.search(RunQuery("acme")).items[0])["workflowId"] == "acme"
        with pytest.raises(Forbidden):
            reader.document("run_1", "beta")
        with pytest.raises(Forbidden):
            reader.search(RunQuery("beta"))
    ring.close()


def test_a_wrong_query_is_refused_by_the_server(store: SqliteStore) -> None:
    """A limit over the API's own."""
    with reading(store) as reader, pytest.raises(QueryError):
        reader.search(RunQuery(limit=201))


def test_a_server_that_does_not_respond_is_unreachable() -> None:
    """The error names the address and what to start."""
    reader = RunspanApiReader("http://127.0.0.1:1")
    for call in (reader.check, lambda: reader.document("x"), lambda: reader.search(RunQuery())):
        with pytest.raises(BackendUnreachable, match=r"http://127.0.0.1:1: .*runspan serve"):
            call()
    reader.close()
    reader.close()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        b'{"success":true}',
        b'{"success":true,"data":7}',
        b'{"success":true,"data":{"id":',
        b"\xff\xfe",
        b'{"data":[],"meta":{"hasMore":"yes"}}',
        b'{"data":[1,]}',
    ],
)
@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_a_response_that_is_not_the_api_is_refused(body: bytes, status: int) -> None:
    """A wrong address is an error that says so, and never an empty list."""
    app = Flask("other")
    app.add_url_rule("/<path:path>", "any", lambda path: Response(body, status))
    with serving(app) as client:
        reader = RunspanApiReader(str(client.base_url))
        if not (status == 200 and body.startswith(b'{"data":[]')):
            with pytest.raises(BackendRefused, match="is this a runspan server"):
                reader.document("x")
        with pytest.raises(BackendRefused, match="is this a runspan server"):
            reader.search(RunQuery())
        reader.close()


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "x", "http://u:p@x", "http://x?y=1", "http://[::1", "http://x:y"]
)
def test_an_invalid_url_is_a_config_error(url: str) -> None:
    """It is refused at once, and a password in it is not repeated."""
    with pytest.raises(ConfigError) as caught:
        RunspanApiReader(url)
    assert ":p@" not in str(caught.value)


def test_a_proxy_of_the_environment_is_not_used(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caller passed it in, and it would see the key."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(create_app(store, store)) as client:
        reader = RunspanApiReader(str(client.base_url))
        reader.check()
        reader.close()


def test_the_url_may_contain_the_api_path(store: SqliteStore) -> None:
    """People copy the base URL of the API's documentation."""
    store.put(Run.from_dict(document("run_1")), observed_at=1)
    with serving(create_app(store, store)) as client:
        reader = RunspanApiReader(f"{client.base_url}/api/v1/")
        assert json.loads(reader.document("run_1").text)["id"] == "run_1"
        reader.close()


@contextmanager
def reading_responses(body: str) -> Iterator[RunspanApiReader]:
    """A reader of a server that responds to everything with this JSON."""
    with answering(lambda path: (200, "application/json", body.encode())) as url:
        reader = RunspanApiReader(url)
        yield reader
        reader.close()


@pytest.mark.parametrize("data", ['{"id":"other"}', '{"id":7}', "{}", '{"x":"x"}', '{"id":"\\ud800"}'])
@pytest.mark.parametrize("tenant", ["", "t"])
def test_another_document_than_the_one_asked_for_is_refused(data: str, tenant: str) -> None:
    """The document of a run has the id that was requested."""
    with (
        reading_responses(f'{{"success":true,"data":{data}}}') as reader,
        pytest.raises(BackendRefused, match="is this a runspan server"),
    ):
        reader.document("x", tenant)


@pytest.mark.parametrize(
    "item", ["1", "{}", '{"id":5}', '"id"', "[[]]", "[" * 50_000 + "]" * 50_000, '{"x":{"id":"x"}}', '{"id":"\\ud800"}']
)
@pytest.mark.parametrize("tenant", ["", "t"])
def test_items_that_are_not_runs_are_refused(item: str, tenant: str) -> None:
    """An item without an id is no summary."""
    items = f'{{"id":"x"}},{item}'
    with (
        reading_responses(f'{{"success":true,"data":[{items}]}}') as reader,
        pytest.raises(BackendRefused, match="ids"),
    ):
        reader.search(RunQuery(tenant))


@pytest.mark.parametrize("data", ['{"id":"x"}', '{"id":"x","traceId":5}'])
def test_a_run_without_a_trace_id_verifies_no_tenant(data: str) -> None:
    """What the server says about the trace of the run is refused."""
    with (
        reading_responses(f'{{"success":true,"data":{data}}}') as reader,
        pytest.raises(BackendRefused, match="is this a runspan server"),
    ):
        reader.document("x", "t")


@pytest.mark.parametrize("body", ["[" * 100_000, "{", '{"resourceSpans":7}'])
def test_an_invalid_trace_is_refused(body: str) -> None:
    """The server is wrong, not the request."""
    with reading_responses(body) as reader, pytest.raises(BackendRefused, match="is this a runspan server"):
        reader.spans(bytes(15) + b"1")


@pytest.mark.parametrize("after", [Cursor(7, "b"), Cursor(7, "a"), Cursor(6, "z")])
@pytest.mark.parametrize("items", ["", '{"id":"x"}'])
def test_a_cursor_that_does_not_move_on_is_refused(after: Cursor, items: str) -> None:
    """A caller that follows it would never reach the end, or get the same runs again."""
    meta = json.dumps({"hasMore": True, "cursor": Cursor(7, "b").token()})
    with reading_responses(f'{{"success":true,"data":[{items}],"meta":{meta}}}') as reader:
        assert (
            reader.search(RunQuery()).cursor == reader.search(RunQuery(cursor=Cursor(7, "c"))).cursor == Cursor(7, "b")
        )
        with pytest.raises(BackendRefused, match="does not move on"):
            reader.search(RunQuery(cursor=after))


def test_a_cursor_that_is_not_runspans_is_refused() -> None:
    """The server sent it, not the caller."""
    meta = '{"hasMore":true,"cursor":"abc!"}'
    with (
        reading_responses(f'{{"success":true,"data":[],"meta":{meta}}}') as reader,
        pytest.raises(BackendRefused, match="a cursor of runspan"),
    ):
        reader.search(RunQuery())


def test_queries_that_match_no_run(store: SqliteStore) -> None:
    """Ids too long for a URL, and text that no run can have."""
    store.put(Run.from_dict(document("run_1")), observed_at=1)
    with reading(store) as reader:
        for run_id in ("x" * 70_000, "\ud800", ""):
            with pytest.raises(NotFound):
                reader.document(run_id)
        assert list(reader.search(RunQuery(workflow_id="\ud800")).items) == []
        with pytest.raises(QueryError, match="fit into a URL"):
            reader.search(RunQuery(workflow_id="x" * 70_000))
