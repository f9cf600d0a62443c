"""A server whose disk is full: what each route answers, and how it gets room again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import httpx
import pytest

from runspan import Run, encode
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import Running, process, server
from support.faults import fill
from support.web import PROTOBUF, document, error_of


def post(client: httpx.Client, run_id: str) -> httpx.Response:
    return client.post("/api/v1/runs", json=document(run_id, input=os.urandom(50_000).hex()))


def fill_store(client: httpx.Client) -> list[str]:
    """Post runs until one is refused; return the ids of the others."""
    ids: list[str] = []
    while (response := post(client, f"run_{len(ids)}")).status_code == 201:
        ids.append(f"run_{len(ids)}")
    message = error_of(response, 507, "STORE_FULL")["message"]
    assert message.startswith("the disk is full, ")
    assert "free space or shorten the retention" in message
    assert "runspan.sqlite3" not in message, "paths are of no use to clients"
    return ids


def large_request() -> bytes:
    """The request of a new run that hardly gets smaller when it is compressed."""
    content = os.urandom(50_000).hex()
    spans = encode(Run.from_dict(document(f"run_{content[:16]}", input=content)))
    return request_bytes(Resource(), [scoped_bytes(span) for span in spans])


def test_reads_go_on_and_a_purge_makes_room(small_disk: Path, tmp_path: Path) -> None:
    """Nothing that reads fails, with a key or a session; each write says why, and none is an internal error."""
    data = small_disk / "data"
    secret = process("keys", "create", "--data", data, "--name", "all").stdout.decode().split()[-1]
    with server(data, "--writes-per-minute", 0) as (url, child), httpx.Client(base_url=url, trust_env=False) as browser:
        assert browser.post("/login", data={"key": secret, "next": "/"}).status_code == 303
        with httpx.Client(base_url=url, headers={"x-api-key": secret}, trust_env=False) as client:
            ids = fill_store(client)
            fill(small_disk / "others")
            for reader in (client, browser):
                assert reader.get(f"/api/v1/runs/{ids[0]}").json()["data"]["id"] == ids[0]
                assert len(reader.get("/api/v1/runs", params={"limit": 50}).json()["data"]) == 50
                assert reader.get(f"/api/v1/runs/{ids[0]}/trace").status_code == 200
            assert browser.get("/").status_code == 200
            assert client.get("/healthz").status_code == 200
            assert client.get("/metrics").status_code == 200
            assert "the disk is full" in error_of(client.get("/readyz"), 507, "STORE_FULL")["message"]
            # The write-ahead log may have room that a checkpoint left.
            while (status := client.post("/v1/traces", content=large_request(), headers=PROTOBUF).status_code) == 200:
                fill(small_disk / "log")
            assert status == 503
            while (login := browser.post("/login", data={"key": secret, "next": "/"})).status_code == 303:
                fill(small_disk / "more")
            assert login.status_code == 507
            assert "You cannot log in now: the disk is full" in login.text
            assert browser.get("/api/v1/runs").status_code == 200, "the session before it goes on"
            report = process("archive", "--before", "1h", "--to", tmp_path, "--purge", "--json", "--data", data).stdout
            assert json.loads(report)["purged"]["deleted"] >= len(ids)
            assert client.get("/readyz").status_code == 200
            assert post(client, "fits").status_code == 201
            assert "internal error" not in "".join(child.lines)


@pytest.mark.parametrize("killed", [False, True])
def test_a_start_on_a_full_disk(small_disk: Path, killed: bool) -> None:
    """The server starts, reads, and retention makes room."""
    data = small_disk / "data"
    with server(data) as (url, child), httpx.Client(base_url=url, trust_env=False) as client:
        ids = fill_store(client)
        if killed:
            fill(small_disk / "others")
            child.process.kill()
        else:
            child.end()
    with server(data, "--retention", 30) as (url, child), httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get(f"/api/v1/runs/{ids[-1]}").status_code == 200, "the share is too large to be deleted"
        assert wait_for(child, "too many runs are past their retention")
    with server(data, "--retention", 30, "--max-expire-share", 100) as (url, child):
        assert wait_for(child, f"deleted {len(ids)} runs")
        with httpx.Client(base_url=url, trust_env=False) as client:
            assert client.get("/readyz").status_code == 200
            recent = document("new", completedAt=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            assert client.post("/api/v1/runs", json=recent).status_code == 201


def wait_for(child: Running, text: str) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(text in line for line in child.lines):
            return True
        time.sleep(0.01)
    return False
