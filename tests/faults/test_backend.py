"""A server over a real Jaeger or Tempo that hangs: it accepts connections and does not answer."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.cli import generated, runspan, server, write_ndjson
from support.faults import FaultLine
from support.servers import Tempo, jaeger, require, start_tempo, tempo
from support.servers.jaeger import Jaeger, start_jaeger
from support.web import error_of

pytestmark = pytest.mark.timeout(600)

CLIENTS = 40
TIMEOUT = 2.0


@pytest.fixture(params=["jaeger", "tempo"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Jaeger | Tempo]]:
    """A backend of this test alone, and its kind."""
    found: Jaeger | Tempo
    if request.param == "jaeger":
        found = start_jaeger(require("jaeger", jaeger.IMAGE), tmp_path)
    else:
        found = start_tempo(require("tempo", tempo.IMAGE), tmp_path)
    if found.program is None:
        pytest.skip(f"needs a {request.param} that is a process of this test")
    yield request.param, found
    found.program.thaw()
    found.stop()


class Crowd:
    """Many clients of one tenant that read runs over and over, and how their requests ended."""

    def __init__(self, url: str, key: str, run_id: str) -> None:
        self.stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.slowest: dict[int, float] = {}
        self._lock = threading.Lock()
        self._arguments = url, key, run_id
        self._threads = [threading.Thread(target=self._work) for _ in range(CLIENTS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self) -> None:
        url, key, run_id = self._arguments
        with httpx.Client(base_url=url, headers={"x-api-key": key}, trust_env=False, timeout=30) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    status = client.get(f"/api/v1/runs/{run_id}").status_code
                except httpx.HTTPError:  # the server was stopped
                    return
                with self._lock:
                    self.statuses[status] += 1
                    self.slowest[status] = max(self.slowest.get(status, 0), time.monotonic() - began)
                self.stop.wait(0.2 if status == 503 else 0.05)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.campaign)])
def test_hung_backend(fault: FaultLine, tmp_path: Path, backend: tuple[str, Jaeger | Tempo], times: int) -> None:
    """Health checks and other tenants are answered while one tenant's requests wait, and the rest of these get 503."""
    kind, running = backend
    assert running.program is not None
    data = tmp_path / "data"
    documents = generated(5)
    file = write_ndjson(tmp_path / "runs.ndjson", documents)
    keys: dict[str, str] = {}
    for tenant in ("acme", "beta"):
        made = runspan("keys", "create", "--data", data, "--name", "x", "--tenant", tenant, "--json")
        keys[tenant] = json.loads(made.stdout)["key"]
        runspan("export", file, "--endpoint", running.otlp, "--tenant", tenant)
    limits = ("--queue-time", "1s", "--reads-per-minute", 0)
    env = {"RUNSPAN_BACKEND_TIMEOUT": str(TIMEOUT)}
    run_id = next(iter(documents))
    with (
        server(data, "--backend", f"{kind}+{running.url}", *limits, **env) as (url, child),
        httpx.Client(base_url=url, headers={"x-api-key": keys["beta"]}, trust_env=False, timeout=30) as beta,
    ):
        _read_all(fault, beta, documents)
        for _ in range(times):
            with Crowd(url, keys["acme"], run_id) as crowd:
                time.sleep(0.5)
                running.program.freeze()
                time.sleep(1)
                until = time.monotonic() + 2 * TIMEOUT
                while time.monotonic() < until:
                    began = time.monotonic()
                    for path in ("/healthz", "/metrics", "/api/v1/openapi.json", "/login"):
                        assert httpx.get(url + path, trust_env=False).status_code == 200
                    assert time.monotonic() - began < 2
                    error_of(beta.get(f"/api/v1/runs/{run_id}"), 504, "BACKEND_TIMEOUT")
                    assert time.monotonic() - began < TIMEOUT + 2
                fault.refused += crowd.statuses[503]
                running.program.thaw()
                thawed = time.monotonic()
                while beta.get(f"/api/v1/runs/{run_id}").status_code != 200:
                    assert time.monotonic() < thawed + 30
                fault.recovery = max(fault.recovery, time.monotonic() - thawed)
            assert set(crowd.statuses) == {200, 503, 504}
            assert crowd.statuses[503] > crowd.statuses[504], "requests over the share of a tenant are refused"
            assert crowd.slowest[503] < 3
            fault.rounds += 1
        _read_all(fault, beta, documents)
        running.program.freeze()
        with Crowd(url, keys["acme"], run_id) as crowd:
            time.sleep(1)
            crowd.stop.set()
            began = time.monotonic()
            child.end()
            assert time.monotonic() - began < 10
    assert "Traceback" not in "".join(child.lines)


def _read_all(fault: FaultLine, client: httpx.Client, documents: dict[str, bytes]) -> None:
    """Count the runs of a tenant that are lost or wrong."""
    for run_id, text in documents.items():
        response = client.get(f"/api/v1/runs/{run_id}")
        fault.acknowledged += 1
        fault.lost += response.status_code != 200
        fault.wrong += response.status_code == 200 and text not in response.content
