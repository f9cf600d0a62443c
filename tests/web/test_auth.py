"""Keys, tenants, permissions and rate limits, on a real server and with other processes at the same keys."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan import web
from runspan.backends.sqlite import SqliteStore
from runspan.codec.copies import copy_for_caller
from runspan.errors import BackendUnreachable, ConfigError, NotFound, RateLimited, StoreError
from runspan.model.span import Link, Span, run_ids
from runspan.otlp.json import read_spans
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.auth import RateLimiter
from runspan.web.config import WebConfig
from runspan.web.windows import Change, LocalWindows, SharedWindows
from support.states import State
from support.web import JSON, PROTOBUF, document, error_of, otlp, serving, spans_of

SECOND = 1_000_000_000


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(state: State, clock: Clock) -> ApiKeyStore:
    return state.keys(clock)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "data") as store:
        yield store


@pytest.fixture
def client(store: SqliteStore, state: State, keys: ApiKeyStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store, keys=keys, windows=state.windows())) as client:
        yield client


def list_runs(client: httpx.Client, secret: str) -> httpx.Response:
    return client.get("/api/v1/runs", headers={"x-api-key": secret})


def push(client: httpx.Client, secret: str, run_id: str = "run_1") -> httpx.Response:
    return client.post("/api/v1/runs", content=json.dumps(document(run_id)), headers=JSON | {"x-api-key": secret})


# The key store


def test_a_key_has_the_documented_form_and_only_its_digest_is_stored(
    state: State, keys: ApiKeyStore, tmp_path: Path
) -> None:
    """wfk_ and 32 letters or digits; neither the table, nor the file and its log, hold them."""
    secret, key = keys.create("ci", tenant="acme", permissions=["runs:read"])
    assert re.fullmatch("wfk_[A-Za-z0-9]{32}", secret)
    assert secret not in repr(key)
    assert secret not in repr(state.execute("SELECT * FROM keys"))
    for file in tmp_path.glob("keys.sqlite3*"):
        assert secret.encode() not in file.read_bytes()
    assert keys.find(secret) == key
    assert keys.list() == [key]


def test_secrets_and_ids_never_repeat(keys: ApiKeyStore) -> None:
    """Fifty keys of one name are fifty keys."""
    made = [keys.create("same") for _ in range(50)]
    assert len({secret for secret, _ in made}) == len({key.id for _, key in made}) == 50


@pytest.mark.parametrize("secret", ["", "wfk_", "wfk_" + "a" * 32, "ü", "\ud800"])
def test_other_text_is_not_a_key(keys: ApiKeyStore, secret: str) -> None:
    """Arbitrary text is only looked up."""
    keys.create("one")
    assert keys.find(secret) is None


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Other users cannot read digests and tenants."""
    ApiKeyStore(tmp_path / "keys.sqlite3").close()
    assert stat.S_IMODE(os.stat(tmp_path / "keys.sqlite3").st_mode) == 0o600


def test_a_key_ends_when_it_expires(keys: ApiKeyStore, clock: Clock) -> None:
    """Valid before that moment, not from then on."""
    secret, key = keys.create("short", expires=clock.now + 10 * SECOND)
    clock.now += 10 * SECOND - 1
    assert keys.find(secret) == key
    clock.now += 1
    assert keys.find(secret) is None
    assert keys.list()[0].state(clock.now) == "expired"


def test_a_revoked_key_ends_at_once_and_stays_listed(keys: ApiKeyStore, clock: Clock) -> None:
    """Revoking it again keeps the first time."""
    secret, key = keys.create("gone")
    revoked = keys.revoke(key.id)
    assert keys.find(secret) is None
    assert (revoked.state(clock.now), revoked.revoked) == ("revoked", clock.now)
    clock.now += SECOND
    assert keys.revoke(key.id) == revoked
    with pytest.raises(NotFound):
        keys.revoke("none")


def test_rotation_keeps_both_keys_for_the_grace_period(keys: ApiKeyStore, clock: Clock) -> None:
    """The new key has the old one's name, tenant and permissions; the old one expires with the period."""
    old_secret, old = keys.create("ci", tenant="acme", permissions=["runs:read"])
    new_secret, new = keys.rotate(old.id, grace=60 * SECOND)
    assert (new.name, new.tenant, new.permissions, new.expires) == ("ci", "acme", old.permissions, None)
    assert keys.find(old_secret) is not None
    assert keys.find(new_secret) == new
    clock.now += 60 * SECOND
    assert keys.find(old_secret) is None
    assert keys.find(new_secret) == new


def test_rotation_never_makes_a_key_live_longer(keys: ApiKeyStore, clock: Clock) -> None:
    """A key that ends before the grace period does keeps its end, and its successor gets the same lifetime."""
    secret, old = keys.create("ci", expires=clock.now + 30 * SECOND)
    clock.now += 10 * SECOND
    _, new = keys.rotate(old.id, grace=3600 * SECOND)
    assert new.expires == clock.now + 30 * SECOND
    assert next(key.expires for key in keys.list() if key.id == old.id) == old.expires
    clock.now += 20 * SECOND
    assert keys.find(secret) is None
    with pytest.raises(ConfigError, match="expired"):
        keys.rotate(old.id, grace=SECOND)


@pytest.mark.parametrize("permissions", [[], ["runs:delete"], ["runs:read", "x"]])
def test_unknown_permissions_are_refused(keys: ApiKeyStore, permissions: list[str]) -> None:
    """A typing error would create a key without any use."""
    with pytest.raises(ConfigError, match="permissions"):
        keys.create("x", permissions=permissions)


def test_a_file_that_is_not_a_key_store_is_refused(tmp_path: Path) -> None:
    """StoreError names the file."""
    path = tmp_path / "keys.sqlite3"
    path.write_text("no database, and long enough to have a header that could be one" * 3)
    with pytest.raises(StoreError, match=r"keys\.sqlite3"):
        ApiKeyStore(path)
    with pytest.raises(StoreError, match="missing"):
        ApiKeyStore(tmp_path / "missing" / "keys.sqlite3")


def test_processes_write_at_once_and_lose_nothing(state: State, keys: ApiKeyStore) -> None:
    """Four processes make ten keys each while this one reads."""
    script = (
        "import sys\nfrom runspan.web.api_keys import ApiKeyStore\n"
        "from runspan.web.shared_state import connect_shared_state\nwhere = sys.argv[1]\n"
        "keys = ApiKeyStore(connect_shared_state(where) if where.startswith('postgresql:') else where)\n"
        "[keys.create(sys.argv[2]) for _ in range(10)]\nkeys.close()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(state.location), f"p{number}"]) for number in range(4)
    ]
    while any(process.poll() is None for process in processes):
        keys.list()
    assert [process.returncode for process in processes] == [0] * 4
    names = [key.name for key in keys.list()]
    assert sorted(names) == sorted(f"p{number}" for number in range(4) for _ in range(10))


# The server


def test_without_any_key_the_server_is_open(client: httpx.Client, keys: ApiKeyStore) -> None:
    """The first key closes it without a restart, and revoking the last key does not open it again."""
    assert list_runs(client, "").status_code == 200
    _, key = keys.create("first")
    error_of(list_runs(client, ""), 401, "UNAUTHORIZED")
    keys.revoke(key.id)
    error_of(list_runs(client, ""), 401, "UNAUTHORIZED")


def test_a_key_made_by_another_process_counts_at_once(client: httpx.Client, keys: ApiKeyStore, state: State) -> None:
    """And so does its revocation."""
    keys.create("first")
    other = state.keys(Clock())
    secret, key = other.create("second")
    assert list_runs(client, secret).status_code == 200
    other.revoke(key.id)
    error_of(list_runs(client, secret), 401, "UNAUTHORIZED")


def test_a_key_may_come_as_a_bearer_token(client: httpx.Client, keys: ApiKeyStore) -> None:
    """x-api-key counts first; other schemes are no key."""
    secret, _ = keys.create("one")

    def status(**headers: str) -> int:
        return client.get(
            "/api/v1/runs", headers={name.replace("_", "-"): text for name, text in headers.items()}
        ).status_code

    assert status(Authorization=f"Bearer {secret}") == 200
    assert status(Authorization=f"bearer {secret}") == 200
    assert status(Authorization=f"Basic {secret}") == 401
    assert status(x_api_key="wrong", Authorization=f"Bearer {secret}") == 401
    assert "bearer" in client.get("/api/v1/runs").headers["www-authenticate"].lower()


@pytest.mark.parametrize("path", ["/api/v1/runs/x", "/api/v1/runs/x/trace", "/api/v1/runs?limit=0", "/api/v1/traces/x"])
def test_a_wrong_key_reveals_nothing(client: httpx.Client, keys: ApiKeyStore, path: str) -> None:
    """401 comes before anything is said about parameters or runs."""
    keys.create("one")
    error_of(client.get(path, headers={"x-api-key": "wfk_" + "x" * 32}), 401, "UNAUTHORIZED")
    error_of(client.get(path), 401, "UNAUTHORIZED")


def test_permissions_are_separate(client: httpx.Client, keys: ApiKeyStore) -> None:
    """A reading key cannot write, a writing one cannot read: 403, on every route."""
    reading, _ = keys.create("r", permissions=["runs:read"])
    writing, _ = keys.create("w", permissions=["runs:write"])
    error_of(push(client, reading), 403, "FORBIDDEN")
    headers = PROTOBUF | {"x-api-key": reading}
    assert client.post("/v1/traces", content=otlp(document()), headers=headers).status_code == 403
    assert push(client, writing).status_code == 201
    error_of(list_runs(client, writing), 403, "FORBIDDEN")
    trace = run_ids("run_1").trace_id.hex()
    for path in ("/api/v1/runs/run_1", "/api/v1/runs/run_1/trace", f"/api/v1/traces/{trace}"):
        error_of(client.get(path, headers={"x-api-key": writing}), 403, "FORBIDDEN")
        assert client.get(path, headers={"x-api-key": reading}).status_code == 200


def test_tenants_do_not_see_each_other(client: httpx.Client, keys: ApiKeyStore) -> None:
    """One run id in two tenants means two runs; each key finds its own, as document, in lists and as trace."""
    acme, _ = keys.create("a", tenant="acme")
    umbrella, _ = keys.create("u", tenant="umbrella")
    assert push(client, acme, "shared").status_code == 201
    assert push(client, acme, "only-acme").status_code == 201
    assert push(client, umbrella, "shared").status_code == 201
    for secret, count in ((acme, 2), (umbrella, 1)):
        assert len(list_runs(client, secret).json()["data"]) == count
    error_of(client.get("/api/v1/runs/only-acme", headers={"x-api-key": umbrella}), 404, "NOT_FOUND")
    trace = "/api/v1/traces/" + run_ids("only-acme", "acme").trace_id.hex()
    assert client.get(trace, headers={"x-api-key": acme}).status_code == 200
    error_of(client.get(trace, headers={"x-api-key": umbrella}), 404, "NOT_FOUND")


class Senderless:
    """A reader that knows of no span who sent it, as that of Tempo or Jaeger."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        return self._store.spans(trace_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_the_trace_of_a_caller_shows_each_tenant_its_own_spans(
    client: httpx.Client, store: SqliteStore, keys: ApiKeyStore
) -> None:
    """It has copies of runs, and no run; a backend that does not know who sent them does not show it."""
    caller = Link(bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7"))
    secrets = {tenant: keys.create(tenant, tenant=tenant)[0] for tenant in ("acme", "umbrella", "nobody")}
    copies = {}
    for tenant in ("acme", "umbrella"):
        spans = [copy_for_caller(span, caller) for span in spans_of(document(f"of {tenant}"), tenant=tenant)]
        copies[tenant] = {span.span_id for span in spans if span is not None}
        body = request_bytes(Resource(), [scoped_bytes(span) for span in spans if span is not None])
        headers = PROTOBUF | {"x-api-key": secrets[tenant]}
        assert ExportTraceServiceResponse.FromString(
            client.post("/v1/traces", content=body, headers=headers).content
        ) == (ExportTraceServiceResponse())
    path = f"/api/v1/traces/{caller.trace_id.hex()}"
    for tenant, expected in copies.items():
        found = read_spans(client.get(path, headers={"x-api-key": secrets[tenant]}).content)
        assert {span.span_id for span in found} == expected
    error_of(client.get(path, headers={"x-api-key": secrets["nobody"]}), 404, "NOT_FOUND")
    with serving(create_app(Senderless(store), keys=keys)) as other:
        for secret in secrets.values():
            error_of(other.get(path, headers={"x-api-key": secret}), 404, "NOT_FOUND")


def test_spans_of_another_tenant_are_rejected(client: httpx.Client, keys: ApiKeyStore) -> None:
    """Runs of another tenant are rejected by name; the rest of the request is stored."""
    acme, _ = keys.create("a", tenant="acme")
    headers = PROTOBUF | {"x-api-key": acme}
    foreign = otlp(document("theirs"), tenant="umbrella") + otlp(document("without_tenant"))
    response = client.post("/v1/traces", content=foreign + otlp(document("ours"), tenant="acme"), headers=headers)
    result = ExportTraceServiceResponse.FromString(response.content)
    assert result.partial_success.rejected_spans == 6
    assert "tenant" in result.partial_success.error_message
    assert [item["id"] for item in list_runs(client, acme).json()["data"]] == ["ours"]


def test_a_key_that_was_found_is_looked_up_again_after_any_change(state: State) -> None:
    """Also after one by another process, which has a connection of its own; and however many keys are in use."""
    now = 0
    server, other = (state.keys(lambda: now) for _ in range(2))
    (first, key), (second, old), (third, _) = (other.create(name) for name in "abc")
    found = [server.find(secret) for secret in (first, second, third) for _ in range(2)]
    assert all(found)
    other.revoke(key.id)
    assert server.find(first) is None
    replacement, _ = other.rotate(old.id, grace=10)
    assert server.find(second) is not None
    now = 10
    assert server.find(second) is None
    new = server.find(replacement)
    assert new is not None
    server.revoke(new.id)
    assert server.find(replacement) is None
    assert server.find(third) is not None


class SetWindows:
    """The windows of a state, at the second that the test sets."""

    def __init__(self, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._now = 0.0
        self._windows = SharedWindows(state.database()) if state.is_shared else LocalWindows(lambda: self._now)

    def set(self, now: float) -> None:
        self._now = now
        self._monkeypatch.setattr(web.windows, "_NOW", f"{now}::float8")

    def change(self, client: str, change: Change) -> int:
        return self._windows.change(client, change)


@pytest.fixture
def windows(state: State, monkeypatch: pytest.MonkeyPatch) -> SetWindows:
    return SetWindows(state, monkeypatch)


def test_the_window_of_a_limit_moves(windows: SetWindows) -> None:
    """Each request counts for a minute. One that was refused does not count."""
    limiter = RateLimiter("reads", 2, windows)
    windows.set(1000.0)
    limiter.check("client")
    windows.set(1030.0)
    limiter.check("client")
    for now, wait in ((1030.0, 30), (1059.5, 1)):
        windows.set(now)
        with pytest.raises(RateLimited) as limited:
            limiter.check("client")
        assert limited.value.retry_after == limiter.retry_after("client") == wait
    limiter.check("other")
    RateLimiter("writes", 2, windows).check("client")
    windows.set(1060.0)
    limiter.check("client")
    with pytest.raises(RateLimited) as limited:
        limiter.check("client")
    assert limited.value.retry_after == 30


def test_requests_of_one_second_are_one_number_and_none_is_let_through(windows: SetWindows) -> None:
    """However many they are, a client takes little memory; and in no minute there are more than allowed."""
    limiter = RateLimiter("reads", 100, windows)
    allowed: list[float] = []
    sizes: list[int] = []
    for tick in range(800):
        now = 1000 + tick / 10
        windows.set(now)
        with suppress(RateLimited):
            limiter.check("client")
            allowed.append(now)
    for now in allowed:
        assert sum(now - 60 < other <= now for other in allowed) <= 100
    assert len(allowed) >= 150
    windows.change("reads client", lambda window, _: sizes.append(len(window)) or 0)
    assert sizes[0] <= 62


def test_clients_that_are_gone_take_no_memory() -> None:
    """A limiter by address sees any number of them."""
    now = 0.0
    windows = LocalWindows(lambda: now)
    limiter = RateLimiter("reads", 2, windows)
    for number in range(10_000):
        limiter.check(str(number))
    now = 61.0
    limiter.check("new")
    assert len(windows._windows) == 1


def test_reads_and_writes_have_separate_limits_per_key(store: SqliteStore, state: State, keys: ApiKeyStore) -> None:
    """429 with Retry-After once a key has reached its limit; other keys and the other kind are not affected."""
    first, _ = keys.create("a")
    second, _ = keys.create("b")
    config = WebConfig(reads_per_minute=3, writes_per_minute=2)
    with serving(create_app(store, store, keys=keys, config=config, windows=state.windows())) as client:
        assert [list_runs(client, first).status_code for _ in range(4)] == [200, 200, 200, 429]
        response = list_runs(client, first)
        error_of(response, 429, "RATE_LIMITED")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert [push(client, first).status_code for _ in range(3)] == [201, 200, 429]
        assert list_runs(client, second).status_code == 200
        headers = PROTOBUF | {"x-api-key": first}
        statuses = [client.post("/v1/traces", headers=headers).status_code for _ in range(5)]
        assert statuses == [200] * 5


def test_spans_and_open_servers_can_be_limited(store: SqliteStore, state: State, keys: ApiKeyStore) -> None:
    """/v1/traces has a limit of its own, and without keys the address counts."""
    windows = state.windows()
    config = WebConfig(open_reads_per_minute=1)
    with serving(create_app(store, store, config=config, windows=windows)) as client:
        assert [list_runs(client, "").status_code for _ in range(2)] == [200, 429]
        assert push(client, "").status_code == 201
    secret, _ = keys.create("a")
    config = WebConfig(traces_per_minute=1)
    with serving(create_app(store, store, keys=keys, config=config, windows=windows)) as client:
        headers = PROTOBUF | {"x-api-key": secret}
        responses = [client.post("/v1/traces", headers=headers) for _ in range(2)]
        assert [response.status_code for response in responses] == [200, 429]
        assert int(responses[1].headers["retry-after"]) >= 1


def test_operations_need_no_key_unless_configured(store: SqliteStore, keys: ApiKeyStore) -> None:
    """Probes and scrapers have none; metrics can be closed."""
    secret, _ = keys.create("a")
    with serving(create_app(store, store, keys=keys)) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"):
            assert client.get(path).status_code == 200
    with serving(create_app(store, store, keys=keys, config=WebConfig(metrics_open=False))) as client:
        error_of(client.get("/metrics"), 401, "UNAUTHORIZED")
        assert client.get("/metrics", headers={"x-api-key": secret}).status_code == 200


def test_keys_are_never_logged_or_returned(
    store: SqliteStore, keys: ApiKeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither logs, errors nor metrics repeat what was sent as a key; the access log quotes the path."""
    keys.create("a")
    wrong = "wfk_" + "Q" * 32
    app = create_app(store, store, keys=keys, config=WebConfig(access_log=True))
    with caplog.at_level(logging.DEBUG), serving(app) as client:
        responses = [list_runs(client, wrong), client.get("/metrics", headers={"x-api-key": wrong})]
        responses.append(client.get("/api/v1/runs/a%0Ab?key=secret"))
    lines = [record.getMessage() for record in caplog.records if record.name == "runspan.access"]
    assert "127.0.0.1 GET '/api/v1/runs/a\\nb' 401" in lines[-1]
    assert len(lines) == 3
    logged = "".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("runspan", "waitress"))
    )
    assert wrong not in logged
    assert "secret" not in logged
    assert all(wrong not in response.text for response in responses)


def test_readiness_names_the_backend_to_callers_who_may_read(
    keys: ApiKeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a key there are neither the backend's address nor its words, and still the status and the code."""

    class Down:
        def check(self) -> None:
            raise BackendUnreachable(where="Jaeger at http://jaeger.internal:16686", got="ConnectError: private words")

    secret, _ = keys.create("a")
    with serving(create_app(Down(), keys=keys)) as client:  # type: ignore[arg-type]
        refused = client.get("/readyz")
        error_of(refused, 503, "BACKEND_UNREACHABLE")
        assert "internal" not in refused.text
        assert "private" not in refused.text
        assert "not ready: Jaeger at http://jaeger.internal:16686" in caplog.text
        shown = client.get("/readyz", headers={"x-api-key": secret})
    assert "jaeger.internal" in error_of(shown, 503, "BACKEND_UNREACHABLE")["message"]


def test_damaged_keys_deny_access(client: httpx.Client, keys: ApiKeyStore, state: State) -> None:
    """If the keys cannot be read, every request fails."""
    keys.create("a")
    state.execute("DROP TABLE keys")
    error_of(list_runs(client, "wfk_" + "x" * 32), 503, "STORE_ERROR")
    error_of(list_runs(client, ""), 503, "STORE_ERROR")
