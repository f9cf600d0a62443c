"""The REST API reports conflicting documents and items that are left out, and an older state reopens no run."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from runspan import Run, encode
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import RunQuery
from runspan.model.timestamps import parse_ns
from runspan.web.app import create_app
from support.web import JSON, PROTOBUF, document, otlp, serving

NOW = parse_ns("2024-01-15T10:00:00.000Z") or 0
CONFLICT = "x-runspan-conflict"
NOTE = "run a/trace is one of 2 different documents that were sent as the same revision"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path, clock=lambda: NOW) as store:
        yield store


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store, clock=lambda: NOW)) as client:
        yield client


def send(client: httpx.Client, *documents: dict[str, Any]) -> None:
    for item in documents:
        assert client.post("/v1/traces", content=otlp(item), headers=PROTOBUF).status_code == 200


def push(client: httpx.Client, **members: Any) -> tuple[int, bool]:
    """Push a document; return the status and whether it is new."""
    response = client.post("/api/v1/runs", content=json.dumps(document(**members)), headers=JSON)
    return response.status_code, response.json()["data"]["new"]


def digest_of(item: dict[str, Any]) -> str:
    return sha256(Run.from_dict(item).text).hexdigest()


def test_conflicting_documents_are_in_headers_and_lists(client: httpx.Client) -> None:
    """GET has the digest of the other document in a header, however it is routed, and the list has a line."""
    first, second = document("a/trace"), document("a/trace", output=1)
    send(client, first)
    path = "/api/v1/runs/" + quote("a/trace", safe="")
    assert CONFLICT not in client.get(path).headers
    send(client, second)
    by_view = client.get(path)  # ids that end in "/trace" do not take the fast path
    assert by_view.json()["data"] == second
    assert by_view.headers[CONFLICT] == digest_of(first)[:32]
    listed = client.get("/api/v1/runs")
    assert listed.json()["meta"]["partial"] == [NOTE]
    assert listed.headers["x-runspan-partial"] == NOTE
    send(client, document("fast"), document("fast", output=1))
    fast = client.get("/api/v1/runs/fast")
    assert fast.headers[CONFLICT] == digest_of(document("fast"))[:32]
    assert "x-runspan-incomplete" not in fast.headers


def test_a_client_of_the_api_gets_the_conflict(client: httpx.Client) -> None:
    """The reader over the REST API returns what the server's reader returned."""
    send(client, *[document("r", output=number) for number in range(3)])
    reader = RunspanApiReader(str(client.base_url))
    found = reader.document("r")
    assert sorted(found.conflict) == sorted(digest_of(document("r", output=number))[:32] for number in range(2))
    assert reader.search(RunQuery()).partial == (
        "run r is one of 3 different documents that were sent as the same revision",
    )
    reader.close()


def test_a_correction_ends_the_conflict(client: httpx.Client) -> None:
    """A pushed document, or a correction over OTLP, ranks above both."""
    send(client, document("r"), document("r", output=1))
    assert push(client, run_id="r", output=2) == (201, True)
    response = client.get("/api/v1/runs/r")
    assert response.json()["data"] == document("r", output=2)
    assert CONFLICT not in response.headers
    assert "partial" not in client.get("/api/v1/runs").json()["meta"]


def test_a_damaged_list_item_is_left_out(client: httpx.Client, tmp_path: Path) -> None:
    """``meta.partial`` and the header have its run id, and the others are listed."""
    send(client, document("good"), document("bad"))
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    changed = Run.from_dict(document("bad", status="cancelled")).summary()
    connection.execute("UPDATE runs SET summary = ? WHERE run_id = ?", [changed, b"bad"])
    connection.close()
    response = client.get("/api/v1/runs")
    assert [item["id"] for item in response.json()["data"]] == ["good"]
    note = "run bad is left out: its list item does not have the recorded digest"
    assert response.json()["meta"]["partial"] == [note]
    assert response.headers["x-runspan-partial"] == note
    assert client.get("/api/v1/runs/bad").json()["data"] == document("bad")


@pytest.mark.parametrize("change", ["document = zeroblob(100)", "run_id = x'ff'", "summary = x''"])
def test_what_is_damaged_is_counted_when_it_is_read(client: httpx.Client, tmp_path: Path, change: str) -> None:
    """Whatever part of the row it is; a sound run adds nothing."""
    send(client, document("good"), document("bad"))
    client.get("/api/v1/runs/bad")
    client.get("/api/v1/runs")
    assert "\nrunspan_store_damaged_reads_total 0.0\n" in client.get("/metrics").text
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute(f"UPDATE runs SET {change} WHERE run_id = ?", [b"bad"])
    client.get("/api/v1/runs/bad")
    client.get("/api/v1/runs")
    count = re.search(r"\nrunspan_store_damaged_reads_total (\d)", client.get("/metrics").text)
    assert count is not None
    assert int(count[1]) >= 1


def test_an_older_state_does_not_reopen_a_run(client: httpx.Client) -> None:
    """It is accepted, is not new, and changes nothing; a reopened run has a later time."""
    steps = document()["steps"]
    running = {"status": "running", "completedAt": None, "steps": steps}
    assert push(client) == (201, True)
    assert push(client, **running) == (200, False)
    assert client.get("/api/v1/runs/run_1").json()["data"] == document()
    assert client.get("/api/v1/runs?status=running").json()["data"] == []
    again = {"id": "again", "status": "running", "startedAt": "2024-01-15T09:30:00.000Z"}
    assert push(client, **running | {"steps": [*steps, again]}) == (201, True)
    assert client.get("/api/v1/runs/run_1").json()["data"]["status"] == "running"
    assert [item["id"] for item in client.get("/api/v1/runs?status=running").json()["data"]] == ["run_1"]


def test_states_are_ordered_alike_however_they_arrive(client: httpx.Client, store: SqliteStore) -> None:
    """An older state over OTLP does not reopen a run either."""
    running = Run.from_dict(document(status="running", completedAt=None))
    for ended_by, older_by in (("push", "otlp"), ("otlp", "push"), ("otlp", "otlp"), ("push", "push")):
        run_id = f"{ended_by} {older_by}"
        for item, way in ((document(run_id), ended_by), (running.to_dict() | {"id": run_id}, older_by)):
            if way == "push":
                store.put(Run.from_dict(item), observed_at=NOW)
            else:
                send(client, item)
        assert client.get(f"/api/v1/runs/{quote(run_id)}").json()["data"] == document(run_id)
    assert client.get("/api/v1/runs?status=running").json()["data"] == []
    assert encode(running)[-1].attributes()["runspan.role"] == "revision"


def test_the_openapi_document_describes_the_headers(client: httpx.Client) -> None:
    """Of a run and of a list."""
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    run = paths["/api/v1/runs/{run_id}"]["get"]["responses"]["200"]["headers"]
    assert set(run) == {"ETag", "X-Runspan-Incomplete", "X-Runspan-Conflict", "X-Runspan-Observed-At"}
    assert set(paths["/api/v1/runs"]["get"]["responses"]["200"]["headers"]) == {"X-Runspan-Partial"}
    assert all(header["schema"] == {"type": "string"} and header["description"] for header in run.values())
