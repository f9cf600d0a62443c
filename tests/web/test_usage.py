"""Quotas of tenants and their usage: exact while many write, kept over a restart, and named in bounded metrics."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.status_pb2 import Status

from runspan.backends.sqlite import Limits, SqliteStore
from runspan.delivery.config import exporter_config
from runspan.errors import RateLimited
from runspan.forward import Forwarder
from runspan.web import usage as usage_store
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from runspan.web.limits import ServerLimits
from runspan.web.usage import MAX_TENANTS, USAGE_FILE, Quota, Quotas, Usage, UsageStore
from support.cli import runspan, server
from support.states import State
from support.web import PROTOBUF, document, error_of, otlp, serving

NOW = 1_768_467_700_000_000_000
DAY = 86_400_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@contextmanager
def counting(
    directory: Path, quota: Quota, clock: Clock | None = None, **config: Any
) -> Iterator[tuple[httpx.Client, SqliteStore, UsageStore]]:
    """A server with the same quota for all tenants, whose store takes runs of at most ten steps."""
    with (
        SqliteStore(directory / "store", limits=Limits(max_steps=10)) as store,
        closing(UsageStore(directory / "usage.sqlite3", Quotas(quota), clock=clock or Clock())) as usage,
        serving(
            create_app(store, store, usage=usage, config=WebConfig(**config)), limits=ServerLimits(queue_time=60)
        ) as client,
    ):
        yield client, store, usage


def push(client: httpx.Client, run_id: str, **members: Any) -> httpx.Response:
    return client.post("/api/v1/runs", json=document(run_id, **members))


def test_more_runs_than_the_quota_are_refused_until_midnight(tmp_path: Path) -> None:
    """429 says which quota, how much is used and when it resets; a run that was counted can go on."""
    clock = Clock()
    with counting(tmp_path, Quota(runs=2), clock) as (client, store, usage):
        assert [push(client, run_id).status_code for run_id in ("1", "2", "1")] == [201, 201, 200]
        response = push(client, "3")
        message = error_of(response, 429, "RATE_LIMITED")["message"]
        assert "the quota of runs a day is used up, expected at most 2 runs a day, got 2 today" in message
        assert "it resets at 2026-01-16T00:00:00.000Z" in message
        left = (DAY - NOW % DAY) / 1_000_000_000
        assert left - 1 <= int(response.headers["retry-after"]) <= left + 1
        refused = client.post("/v1/traces", content=otlp(document("2"), document("3")), headers=PROTOBUF)
        assert refused.status_code == 429
        assert "quota of runs" in Status.FromString(refused.content).message
        assert push(client, "2", output="corrected").status_code == 201
        assert store.stats().runs == 2
        clock.now += DAY
        assert push(client, "3").status_code == 201
        assert [item.runs for item in usage.today()] == [1]


def test_more_bytes_than_the_quota_are_refused(tmp_path: Path) -> None:
    """What is refused does not count, so a smaller request still fits."""
    body = otlp(document("1"))
    with counting(tmp_path, Quota(bytes=2 * len(body))) as (client, store, usage):
        assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
        large = otlp(document("2"), document("3"), document("4"))
        refused = client.post("/v1/traces", content=large, headers=PROTOBUF)
        assert refused.status_code == 429
        assert f"at most {2 * len(body)} bytes a day" in Status.FromString(refused.content).message
        assert client.post("/v1/traces", content=otlp(document("5")), headers=PROTOBUF).status_code == 200
        assert usage.today() == [Usage("", 2, 2 * len(body))]
        assert store.stats().runs == 2


def test_what_was_not_stored_is_not_counted(tmp_path: Path) -> None:
    """A document that the store rejects leaves the usage as it was."""
    steps = [{"id": str(number), "status": "completed"} for number in range(11)]
    with counting(tmp_path, Quota(runs=1)) as (client, _, usage):
        error_of(push(client, "large", steps=steps), 400, "VALIDATION_ERROR")
        assert usage.today() in ([], [Usage("", 0, 0)])
        assert push(client, "small").status_code == 201


def test_requests_at_once_never_exceed_the_quota_together(tmp_path: Path) -> None:
    """Of 8 clients that push 200 runs, exactly as many are stored as the quota allows."""
    with counting(tmp_path, Quota(runs=57)) as (client, store, usage), ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda number: push(client, f"run-{number}").status_code, range(200)))
        assert (statuses.count(201), statuses.count(429)) == (57, 143)
        assert store.stats().runs == 57
        assert usage.today()[0].runs == 57


def test_processes_that_share_the_usage_share_the_quota(state: State) -> None:
    """Each has its own connection; together they count what is allowed, and no more."""
    stores = [state.usage(Quotas(Quota(runs=30, bytes=10_000)), Clock()) for _ in range(4)]
    counted = []
    lock = threading.Lock()

    def send(number: int) -> None:
        try:
            # What fails after it was counted leaves room for another one.
            with stores[number % 4].charged("acme", [number.to_bytes(16, "little")], 10), lock:
                if number % 10 == 7:
                    raise ConnectionError
                counted.append(number)
        except (RateLimited, ConnectionError):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(200)))
    assert len(counted) == 30
    assert stores[0].today() == [Usage("acme", 30, 300)]
    with stores[1].charged("other", [bytes(16)], 1):
        pass
    stores[2].erase("acme")
    assert stores[3].today() == [Usage("other", 1, 1)]


def test_what_is_taken_back_after_an_erasure_leaves_no_debt(state: State) -> None:
    """The tenant was erased and has sent something new while a request failed."""
    usage = state.usage()
    with suppress(ConnectionError), usage.charged("acme", [bytes(16), bytes([1] * 16)], 100):
        usage.erase("acme")
        with usage.charged("acme", [bytes([2] * 16)], 10):
            pass
        raise ConnectionError
    assert usage.today() == [Usage("acme", 0, 0)]


def test_a_tenant_is_erased_while_it_sends(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both change its usage of today and of a day that is over, and neither waits for the other without end."""
    counting = threading.Event()
    sender, eraser = state.usage(clock=Clock()), state.usage(clock=Clock())
    for days_ago in (3, 0):  # PostgreSQL reads the rows of a small table as they were written
        state.execute(f"INSERT INTO usage VALUES ({NOW // DAY - days_ago}, 'acme', 1, 10)", USAGE_FILE)
    insert_runs = usage_store._insert_runs

    def insert_slowly(*args: Any) -> Iterator[bytes]:
        counting.set()
        time.sleep(0.5)
        return insert_runs(*args)

    monkeypatch.setattr(usage_store, "_insert_runs", insert_slowly)

    def send() -> None:
        with sender.charged("acme", [bytes([1] * 16)], 10):
            pass

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        assert counting.wait(10)
        eraser.erase("acme")
        sent.result()
    assert eraser.today() == []


def test_many_runs_of_a_request_count_once(state: State) -> None:
    """However many they are, and whether or not they were counted before."""
    usage = state.usage()
    some, others = ([number.to_bytes(16, "little") for number in range(start, start + 1200)] for start in (0, 600))
    for runs in (some, others, some):
        with usage.charged("", runs, 1):
            pass
    assert usage.today() == [Usage("", 1800, 3)]


def test_the_usage_survives_a_kill(tmp_path: Path) -> None:
    """What was acknowledged is counted after a SIGKILL, and a tenant may have a quota of its own."""
    if time.time() % 86_400 > 86_400 - 300:
        pytest.skip("the day of the quotas ends in less than five minutes")
    keys = {}
    for tenant in ("acme", "beta"):
        made = runspan("keys", "create", "--data", tmp_path, "--name", "x", "--tenant", tenant, "--json")
        keys[tenant] = {"x-api-key": json.loads(made.stdout)["key"]}
    args = ("--runs-per-day", 2, "--tenant-quota", "beta=3,0", "--tenant-usage")

    def statuses(url: str, tenant: str, *run_ids: str) -> list[int]:
        with httpx.Client(headers=keys[tenant], trust_env=False, timeout=60) as client:
            return [client.post(f"{url}/api/v1/runs", json=document(run_id)).status_code for run_id in run_ids]

    with server(tmp_path, *args) as (url, child):
        assert statuses(url, "acme", "1", "2", "3") == [201, 201, 429]
        assert statuses(url, "beta", "1", "2") == [201, 201]
        child.end(signal.SIGKILL)
    with server(tmp_path, *args) as (url, child):
        assert statuses(url, "acme", "3", "1") == [429, 200]
        assert statuses(url, "beta", "3", "4") == [201, 429]
        metrics = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
        assert 'runspan_tenant_runs_today{runspan_tenant="acme"} 2.0' in metrics
        assert 'runspan_tenant_runs_today{runspan_tenant="beta"} 3.0' in metrics
        child.end()
    runspan("erase", "--data", tmp_path, "--tenant", "acme", "--yes")
    assert b"acme" not in (tmp_path / "usage.sqlite3").read_bytes()
    assert b"beta" in (tmp_path / "usage.sqlite3").read_bytes()


def test_what_is_forwarded_counts_too(tmp_path: Path) -> None:
    """Over a remote backend runs are counted by their trace ids; what the Collector does not take is not."""
    with (
        SqliteStore(tmp_path / "target") as store,
        serving(create_app(store, store)) as target,
        closing(UsageStore(tmp_path / "usage.sqlite3", Quotas(Quota(runs=2)), clock=Clock())) as usage,
        closing(Forwarder(store, exporter_config({}, endpoint=str(target.base_url)))) as forwarder,
        closing(Forwarder(store, exporter_config({}, endpoint="http://127.0.0.1:1"))) as broken,
    ):
        with serving(create_app(store, broken, usage=usage)) as client:
            assert client.post("/v1/traces", content=otlp(document("1")), headers=PROTOBUF).status_code == 503
            error_of(push(client, "2"), 503, "BACKEND_UNREACHABLE")
        with serving(create_app(store, forwarder, usage=usage)) as client:
            assert client.post("/v1/traces", content=otlp(document("3")), headers=PROTOBUF).status_code == 200
            assert push(client, "4").status_code == 202
            assert client.post("/v1/traces", content=otlp(document("5")), headers=PROTOBUF).status_code == 429
            error_of(push(client, "6"), 429, "RATE_LIMITED")
        assert store.stats().runs == 2


def test_the_metrics_name_a_bounded_number_of_tenants(tmp_path: Path) -> None:
    """The tenants with the most bytes have series of their own, the others one together; by default none has."""
    with counting(tmp_path, Quota(), tenant_usage=True) as (client, _, usage):
        for number in range(MAX_TENANTS + 50):
            with usage.charged(f"tenant-{number:03d}", [bytes(16)], 1000 - number):
                pass
        lines = [
            line for line in client.get("/metrics").text.splitlines() if line.startswith("runspan_tenant_runs_today")
        ]
        assert len(lines) == MAX_TENANTS + 1
        assert 'runspan_tenant_runs_today{runspan_tenant=""} 50.0' in lines
        assert 'runspan_tenant_runs_today{runspan_tenant="tenant-000"} 1.0' in lines
    with counting(tmp_path, Quota()) as (client, _, _):
        assert "tenant-000" not in client.get("/metrics").text


def test_what_is_older_than_yesterday_is_forgotten(state: State) -> None:
    """By any tenant that sends something; the tables do not grow with the days, nor with tenants that are gone."""
    clock = Clock()
    usage = state.usage(clock=clock)
    for day in range(5):
        for tenant in ("acme", f"tenant-{day}"):
            with usage.charged(tenant, [bytes([number]) * 16 for number in range(100)], 1):
                pass
        clock.now += DAY
    assert state.execute("SELECT count(*), count(DISTINCT day) FROM counted_runs", USAGE_FILE) == [(400, 2)]
    assert state.execute("SELECT count(*) FROM usage", USAGE_FILE) == [(4,)]


@pytest.mark.parametrize("quota", ["acme", "acme=1", "acme=1,x", "acme=-1,2"])
def test_a_quota_in_another_form_is_refused(tmp_path: Path, quota: str) -> None:
    """Before the server listens."""
    refused = runspan("serve", "--data", tmp_path, "--port", 0, "--tenant-quota", quota, code=2)
    assert "--tenant-quota: expected TENANT=RUNS,MIB" in refused.stderr
