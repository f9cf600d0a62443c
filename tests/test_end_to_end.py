"""Every case of the corpus sent to a running server and read back, through real sockets."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from runspan import Run, encode
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import RunQuery
from runspan.delivery import connect, exporter_config
from runspan.errors import DocumentError
from runspan.export import export
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.otlp.sdk_bridge import SdkExporterWriter
from runspan.testing import generate
from runspan.web.app import create_app
from runspan.web.server import WebServer
from support.corpus import PAYLOADS, TEXTS, cases, with_payload

NOW = 1_768_467_700_000_000_000
PROTOBUF = {"content-type": "application/x-protobuf"}
CASES = {name: text for name, text in cases().items() if not name.startswith("envelope")}
ENVELOPES = {name: text for name, text in cases().items() if name.startswith("envelope")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A running server with an empty store."""
    store = SqliteStore(tmp_path_factory.mktemp("store"))
    server = WebServer(create_app(store, store))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join()
    store.close()


@pytest.fixture(scope="module")
def client(server: WebServer) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def renamed(text: bytes, name: str) -> Run:
    """Return the document with another id, so that cases are different runs in the store."""
    run = Run.from_json(text)
    member = f'"id":{_quoted(run.id)}'.encode()
    assert run.text.startswith(b"{" + member)
    return Run.from_json(run.text.replace(member, f'"id":{_quoted(name)}'.encode(), 1))


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def read(client: httpx.Client, run_id: str) -> bytes:
    response = client.get(f"/api/v1/runs/{quote(run_id, safe='')}")
    assert response.status_code == 200, (run_id, response.text[:300])
    assert response.content.startswith(b'{"success":true,"data":')
    return response.content.removeprefix(b'{"success":true,"data":')[:-1]


def fragments(run: Run, count: int, order: random.Random) -> list[bytes]:
    """Return the run's shuffled spans in ``count`` requests, each of them twice."""
    spans = encode(run, observed_at=NOW)
    order.shuffle(spans)
    parts = [spans[index::count] for index in range(count)]
    bodies = [request_bytes(Resource(), map(scoped_bytes, part)) for part in parts if part]
    bodies += bodies
    order.shuffle(bodies)
    return bodies


@pytest.mark.parametrize("name", CASES | ENVELOPES)
def test_every_case_through_the_server(client: httpx.Client, name: str) -> None:
    """A document sent in seven shuffled fragments, each twice, is returned byte for byte."""
    run = renamed((CASES | ENVELOPES)[name], f"fragments of {name}")
    for body in fragments(run, 7, random.Random(name)):
        response = client.post("/v1/traces", content=body, headers=PROTOBUF)
        assert response.status_code == 200, response.text[:300]
        assert response.content in {b"", b"\n\x00"}, "nothing may be rejected"
    assert read(client, run.id) == run.text


@pytest.mark.parametrize(
    "name", [*ENVELOPES, "payload lone high surrogate", "payload depth 5000", "payload duplicate keys"]
)
def test_documents_pushed_over_rest(client: httpx.Client, name: str) -> None:
    """A document pushed to ``POST /api/v1/runs`` is returned byte for byte, and a repeated push changes nothing."""
    run = renamed((CASES | ENVELOPES)[name], f"pushed {name}")
    json = {"content-type": "application/json"}
    assert client.post("/api/v1/runs", content=run.text, headers=json).status_code == 201
    assert client.post("/api/v1/runs", content=run.text, headers=json).status_code == 200
    assert read(client, run.id) == run.text


def test_ten_megabytes(client: httpx.Client) -> None:
    """A document with a string of ten megabytes is returned byte for byte."""
    payload = '"' + "0123456789é" * 950_000 + '"'
    step = f'{{"id":"s","status":"completed","output":{payload}}}'
    run = Run.from_json(f'{{"id":"ten megabytes","status":"completed","steps":[{step}]}}')
    body = request_bytes(Resource(), map(scoped_bytes, encode(run)))
    assert len(body) > 10_000_000
    assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    assert read(client, run.id) == run.text


@given(TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_document_through_the_server(client: httpx.Client, text: str) -> None:
    """Any generated document is returned byte for byte."""
    run = renamed(text.encode(), f"generated {abs(hash(text))}")
    for body in fragments(run, 3, random.Random(text)):
        assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    assert read(client, run.id) == run.text


def test_export_of_many_runs(server: WebServer, client: httpx.Client) -> None:
    """The report is complete, and every exported run is returned byte for byte and listed once."""
    runs = [Run.from_json(text) for text in generate(600, seed=11, unfinished=True)]
    with connect(exporter_config({}, endpoint=server.url)) as delivery:
        report = export(runs, delivery, observed_at=time.time_ns, resource=Resource())
    assert report.complete
    assert report.runs_accepted == 600
    for run in runs:
        assert read(client, run.id) == run.text
    reader = RunspanApiReader(server.url)
    listed: list[str] = []
    page = reader.search(RunQuery(limit=200))
    listed += [Run.from_json(item).id for item in page.items]
    while page.cursor is not None:
        page = reader.search(RunQuery(limit=200, cursor=page.cursor))
        listed += [Run.from_json(item).id for item in page.items]
    reader.close()
    assert len(set(listed)) == len(listed)
    assert {run.id for run in runs} <= set(listed)


def test_through_the_sdks_own_exporter(server: WebServer, client: httpx.Client) -> None:
    """Runs sent with OpenTelemetry's OTLP exporter and gzip are returned byte for byte."""
    exporter = OTLPSpanExporter(endpoint=f"{server.url}/v1/traces", compression=Compression.Gzip)
    writer = SdkExporterWriter(exporter, Resource())
    for name in ("payload 300 KB string", "envelope same step twice", "envelope usage"):
        run = renamed((CASES | ENVELOPES)[name], f"sdk {name}")
        writer.put(run, observed_at=NOW)
        assert read(client, run.id) == run.text
    exporter.shutdown()


def test_refused_documents_do_not_stop_the_others(server: WebServer, client: httpx.Client) -> None:
    """A refused document is reported with its place, and the others arrive."""
    good = [renamed(with_payload(PAYLOADS["2**70"]).encode(), f"good {number}") for number in range(3)]
    bad = DocumentError(where="runs.ndjson:2", expected="a JSON value", got="'NaN'")
    with connect(exporter_config({}, endpoint=server.url)) as delivery:
        report = export([good[0], bad, *good[1:]], delivery, observed_at=time.time_ns, resource=Resource())
    assert not report.complete
    assert report.documents_refused == 1
    assert "runs.ndjson:2" in "\n".join(report.summary_lines())
    for run in good:
        assert read(client, run.id) == run.text


def test_the_store_survives_a_restart(tmp_path: Path) -> None:
    """A store that was closed and opened again returns the same bytes."""
    runs = [renamed(text, name) for name, text in ENVELOPES.items()]
    store = SqliteStore(tmp_path)
    for run in runs:
        store.put(run, observed_at=NOW)
    store.close()
    store = SqliteStore(tmp_path)
    for run in runs:
        assert store.document(run.id).text == run.text
    store.close()
