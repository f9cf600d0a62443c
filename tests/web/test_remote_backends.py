"""The server over Tempo and Jaeger: its responses, and its errors when they do not respond."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from runspan import Run
from runspan.testing import generate
from support.cli import runspan, server, write_ndjson
from support.servers.process import free_ports
from support.web import error_of

KINDS = ["tempo", "jaeger"]
READS = ("/api/v1/runs/run_1", "/api/v1/runs/run_1/trace", "/api/v1/runs", "/api/v1/traces/" + "a" * 32, "/readyz")


@contextmanager
def silent() -> Iterator[int]:
    """Yield the port of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreachable_backend_is_503_with_its_name(tmp_path: Path, kind: str) -> None:
    """Every route that reads names the backend and says what to do, and never returns an empty list."""
    (port,) = free_ports(1)
    with server(tmp_path, "--backend", f"{kind}+http://127.0.0.1:{port}") as (url, child):
        for path in READS:
            error = error_of(httpx.get(url + path, trust_env=False), 503, "BACKEND_UNREACHABLE")
            assert f"{kind.title()} at http://127.0.0.1:{port}: expected a response" in error["message"]
            assert "is it running" in error["message"]
        assert httpx.get(url + "/healthz", trust_env=False).status_code == 200
        behind = runspan("list", "--backend", url, code=9)
        assert f"{kind.title()} at http://127.0.0.1:{port}" in behind.stderr
        assert child.end() == 0
    assert "Traceback" not in "".join(child.lines)
    assert not (tmp_path / "runspan.sqlite3").exists()
    assert child.lines[-1] == "runspan stopped\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_backend_is_504_within_the_timeout(tmp_path: Path, kind: str) -> None:
    """One timeout covers a request; other requests are handled meanwhile."""
    with (
        silent() as port,
        server(tmp_path, "--backend", f"{kind}+http://127.0.0.1:{port}", RUNSPAN_BACKEND_TIMEOUT="1") as (url, _),
    ):
        responses: dict[str, httpx.Response] = {}

        def fetch(path: str) -> None:
            responses[path] = httpx.get(url + path, trust_env=False, timeout=60)

        threads = [threading.Thread(target=fetch, args=(path,)) for path in READS]
        for thread in threads:
            thread.start()
        assert httpx.get(url + "/healthz", trust_env=False).status_code == 200
        for thread in threads:
            thread.join()
        for path in READS:
            error = error_of(responses[path], 504, "BACKEND_TIMEOUT")
            assert f"{kind.title()} at http://127.0.0.1:{port}" in error["message"]
            assert "RUNSPAN_BACKEND_TIMEOUT" in error["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_at_its_concurrency_limit_is_503_with_retry_after(tmp_path: Path, kind: str) -> None:
    """Concurrency is limited; requests over the limit get Retry-After."""
    env = {"RUNSPAN_BACKEND_TIMEOUT": "8", "RUNSPAN_BACKEND_CONCURRENCY": "1"}
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as listening,
        server(tmp_path, "--backend", f"{kind}+http://127.0.0.1:{listening.getsockname()[1]}", **env) as (url, _),
    ):
        held = threading.Thread(
            target=httpx.get, args=(f"{url}/api/v1/traces/{'a' * 32}",), kwargs={"trust_env": False, "timeout": 60}
        )
        held.start()
        connection, _ = listening.accept()
        with connection:
            response = httpx.get(f"{url}/readyz", trust_env=False, timeout=60)  # waits for fewer seconds than the other
        held.join()
    error = error_of(response, 503, "BACKEND_BUSY")
    assert "all 1 places for requests are taken" in error["message"]
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--backend", "tempo+ftp://x"), "backend: expected tempo+http(s)://HOST:PORT"),
        (("--backend", "tempo+http://u:secret@x"), "backend: expected a URL without a login"),
        (
            ("--backend", "jaeger+http://u:secret@x", "--retention", 7),
            "--retention: expected an embedded store to delete from",
        ),
        (("--jaeger-url", "javascript:x"), "jaeger url: expected a URL"),
    ],
)
def test_invalid_options_are_refused_before_the_server_listens(
    tmp_path: Path, args: tuple[Any, ...], message: str
) -> None:
    """Exit code 2, without a secret."""
    result = runspan("serve", "--data", tmp_path, "--port", 0, *args, code=2)
    assert message in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize("name", ["tempo", "jaeger_memory", "jaeger_badger"])
def test_it_serves_a_real_backend_like_the_embedded_store(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Documents and lists equal those of the embedded store, byte for byte; links lead to the trace; pushing is refused
    with the reason; readiness names the backend."""
    backend = request.getfixturevalue(name)
    kind = name.partition("_")[0]
    workflow = f"wf_{uuid4().hex}"
    began = datetime.now(UTC) - timedelta(days=60)
    documents = {
        Run.from_json(text).id: text.replace(b'"workflowId":"', f'"workflowId":"{workflow}","was":"'.encode(), 1)
        for text in generate(20, seed=uuid4().int % 1000, start=began, span_days=50, unfinished=True)
    }
    path = write_ndjson(tmp_path / "runs.ndjson", documents)
    tenant = f"tenant-{uuid4().hex}"
    runspan("export", path, "--endpoint", backend.otlp, "--tenant", tenant)
    made = runspan("keys", "create", "--data", tmp_path / "keys", "--name", "x", "--tenant", tenant, "--json")
    headers = {"x-api-key": json.loads(made.stdout)["key"]}
    args = ("--backend", f"{kind}+{backend.url}", "--jaeger-url", backend.url)
    with (
        server(tmp_path / "own") as (own, _),
        server(tmp_path / "keys", *args) as (url, _),
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client,
    ):
        runspan("export", path, "--endpoint", own)
        expected = httpx.get(own + f"/api/v1/runs?workflowId={workflow}", trust_env=False)
        assert len(expected.json()["data"]) == 20
        deadline = time.monotonic() + 60
        while (found := client.get(f"/api/v1/runs?workflowId={workflow}")).content != expected.content:
            assert time.monotonic() < deadline, found.text
            time.sleep(0.2)
        for run_id in documents:
            mine = httpx.get(f"{own}/api/v1/runs/{run_id}", trust_env=False)
            assert client.get(f"/api/v1/runs/{run_id}").content == mine.content
        run_id = next(iter(documents))
        data = client.get(f"/api/v1/runs/{run_id}/trace").json()["data"]
        assert data["links"] == {"jaeger": f"{backend.url}/trace/{data['traceId']}"}
        error_of(client.post("/api/v1/runs", json={"id": "x"}), 501, "READ_ONLY")
        error_of(client.get("/api/v1/runs/none-such"), 404, "NOT_FOUND")
        assert client.get("/readyz").json() == {"status": "ok", "backend": f"{kind.title()} at {backend.url}"}
        assert httpx.get(f"{url}/readyz", trust_env=False).json() == {"status": "ok"}
