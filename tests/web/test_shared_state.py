"""Several servers over one PostgreSQL: what they share, and what they answer while it is away."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from runspan import web
from runspan.backends.sqlite import SqliteStore
from runspan.errors import ConfigError, RateLimited, RunspanError, StateUnreachable, StoreError
from runspan.web.api_keys import ApiKey, ApiKeyStore
from runspan.web.app import create_app
from runspan.web.auth import RateLimiter
from runspan.web.config import WebConfig
from runspan.web.sessions import SessionStore
from runspan.web.shared_state import connect_shared_state
from runspan.web.windows import SharedWindows
from support.cli import WAIT, runspan, server
from support.servers.postgres import PASSWORD, OwnPostgres, Postgres
from support.web import PROTOBUF, document, error_of, otlp, serving

CONNECT = "import sys; from runspan.web.shared_state import connect_shared_state; connect_shared_state(sys.argv[1])"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "data") as store:
        yield store


class Replica(NamedTuple):
    """A server with connections of its own to the shared database."""

    client: httpx.Client
    keys: ApiKeyStore

    def list(self, secret: str = "", **headers: str) -> httpx.Response:
        return self.client.get("/api/v1/runs", headers=headers | ({"x-api-key": secret} if secret else {}))

    def login(self, secret: str) -> httpx.Response:
        return self.client.post("/login", data={"key": secret})


@contextmanager
def replica(store: SqliteStore, url: str, config: WebConfig | None = None) -> Iterator[Replica]:
    with closing(connect_shared_state(url)) as database:
        keys = ApiKeyStore(database)
        sessions, windows = SessionStore(database, keys), SharedWindows(database)
        app = create_app(store, store, config=config, keys=keys, sessions=sessions, windows=windows)
        with serving(app) as client:
            yield Replica(client, keys)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# The tables


def test_servers_that_start_at_once_create_the_tables_once(postgres: Postgres) -> None:
    """Six processes find a new database, and each of them can use it."""
    url = postgres.database()
    processes = [subprocess.Popen([sys.executable, "-c", CONNECT, url]) for _ in range(6)]
    assert [process.wait(WAIT) for process in processes] == [0] * 6
    with closing(connect_shared_state(url)) as database:
        assert database.execute("SELECT version FROM format") == [(1,)]
        assert ApiKeyStore(database).unused


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE format SET version = 2", "another version of runspan, expected format 1, got format 2"),
        ("DELETE FROM format", "expected format 1, got format unknown"),
        ("DROP TABLE format", "another application's schema"),
    ],
)
def test_tables_of_another_version_are_refused(postgres: Postgres, statement: str, message: str) -> None:
    """The server does not start, and changes nothing."""
    url = postgres.database()
    with closing(connect_shared_state(url)) as database:
        database.execute(statement)
        with pytest.raises(StoreError, match=message):
            connect_shared_state(url)
        assert database.execute("SELECT count(*) FROM keys") == [(0,)]


# Secrets


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://runspan:se%2Fcret@127.0.0.1:1/runspan", StateUnreachable),
        ("postgresql://runspan@127.0.0.1:1/runspan?password=se%2Fcret", StateUnreachable),
        ("postgresql://runspan:se/cret@127.0.0.1/runspan", ConfigError),
        ("postgresql://runspan:5/cret@127.0.0.1/runspan", ConfigError),
        ("postgresql://runspan:cret@[::1/runspan", ConfigError),
        ("postgresql://runspan:%cret@db/runspan", ConfigError),
        ("mysql://runspan:cret@db/runspan", ConfigError),
        ("host=db password=cret", ConfigError),
    ],
)
def test_errors_hide_the_password(url: str, kind: type[RunspanError], caplog: pytest.LogCaptureFixture) -> None:
    """Of a database that does not answer, and of a URL that is none."""
    pytest.importorskip("psycopg")
    with caplog.at_level(logging.DEBUG), pytest.raises(RunspanError) as raised:
        connect_shared_state(url)
    assert type(raised.value) is kind
    assert "cret" not in f"{raised.value} {raised.value!r} {caplog.text}"


def test_a_wrong_password_is_reported_and_not_shown(postgres: Postgres) -> None:
    url = postgres.database().replace("%40seen", "%40wrong")
    with pytest.raises(StateUnreachable, match="password authentication failed") as raised:
        connect_shared_state(url)
    assert "wrong" not in str(raised.value)


def test_servers_share_the_quotas_of_tenants(postgres: Postgres, tmp_path: Path) -> None:
    """What one has counted, another one refuses; each has the usage of all in its metrics."""
    if time.time() % 86_400 > 86_400 - 300:
        pytest.skip("the day of the quotas ends in less than five minutes")
    file = tmp_path / "url"
    file.write_text(postgres.database())
    options = ["--state-url-file", file, "--runs-per-day", 3, "--tenant-usage"]
    with (
        server(tmp_path / "a", *options) as (first, _),
        server(tmp_path / "b", *options) as (second, _),
        httpx.Client(trust_env=False, timeout=60) as client,
    ):
        urls = [first, second, first, second, first]
        found = [
            client.post(f"{url}/api/v1/runs", json=document(f"run_{number}")).status_code
            for number, url in enumerate(urls)
        ]
        assert found == [201, 201, 201, 429, 429]
        for url in (first, second):
            assert 'runspan_tenant_runs_today{runspan_tenant=""} 3.0' in client.get(f"{url}/metrics").text


def test_the_command_line_takes_no_password(tmp_path: Path) -> None:
    """Every process of the machine reads arguments. A file or the variable may have it."""
    for url in ("postgresql://me:cret@db/runspan", "postgresql://me@db/runspan?sslmode=require&password=cret"):
        refused = runspan("keys", "list", "--state", url, code=2)
        assert "RUNSPAN_STATE" in refused.stderr
        assert "cret" not in refused.stderr
    file = tmp_path / "url"
    for text, message in ((None, "No such file"), ("", "an empty file"), ("nonsense", "expected postgresql://")):
        if text is not None:
            file.write_text(text)
        assert message in runspan("keys", "list", "--state-url-file", file, code=2).stderr


def test_a_database_that_is_away_ends_the_command_with_its_code() -> None:
    pytest.importorskip("psycopg")
    away = runspan("keys", "list", code=10, RUNSPAN_STATE="postgresql://me:cret@127.0.0.1:1/runspan")
    assert "PostgreSQL database runspan at 127.0.0.1:1" in away.stderr
    assert "refused" in away.stderr
    assert "cret" not in away.stderr


# What is shared


def test_a_limit_counts_the_requests_to_all_servers(store: SqliteStore, postgres: Postgres) -> None:
    """Two servers and eight clients at once: in no minute more requests than allowed, and not one less."""
    url, limit = postgres.database(), 40
    with ExitStack() as stack:
        config = WebConfig(reads_per_minute=limit)
        replicas = [stack.enter_context(replica(store, url, config)) for _ in range(2)]
        secret, _ = replicas[0].keys.create("a")
        answered: list[tuple[float, float, int]] = []

        def work(number: int) -> None:
            for _ in range(10):
                begin = time.monotonic()
                status = replicas[number % 2].list(secret).status_code
                answered.append((begin, time.monotonic(), status))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {status for *_, status in answered} <= {200, 429}
    taken = [(begin, end) for begin, end, status in answered if status == 200]
    assert len(answered) == 80
    assert len(taken) >= limit
    for first, _ in taken:
        assert sum(first <= begin and end < first + 60 for begin, end in taken) <= limit


def test_wrong_keys_count_at_all_servers(store: SqliteStore, postgres: Postgres) -> None:
    """Whoever was throttled at one server is throttled at the other."""
    url = postgres.database()
    with replica(store, url, WebConfig(logins_per_minute=4)) as one, replica(store, url) as other:
        config = [one, other]
        secret, _ = one.keys.create("a")
        assert [config[number % 2].login("wfk_wrong").status_code for number in range(4)] == [401] * 4
        refused = one.login(secret)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 60


def test_a_session_is_one_at_all_servers(store: SqliteStore, postgres: Postgres) -> None:
    """A browser logs in at one, reads at the other, and logs out there; a revoked key ends it everywhere."""
    url = postgres.database()
    with replica(store, url) as one, replica(store, url) as other:
        secret, key = one.keys.create("a")

        def cookie() -> dict[str, str]:
            value = one.login(secret).cookies.popitem()[1]
            one.client.cookies.clear()
            # Behind a balancer the host, which is part of the name, is the same.
            return {"Cookie": f"runspan={value}", "Host": "runs.example.com"}

        first, second = cookie(), cookie()
        assert {each.list(**first).status_code for each in (one, other)} == {200}
        other.client.post("/logout", headers=first)
        assert {each.list(**first).status_code for each in (one, other)} == {401}
        assert {each.list(**second).status_code for each in (one, other)} == {200}
        other.keys.revoke(key.id)
        assert {each.list(**second).status_code for each in (one, other)} == {401}


def test_a_key_that_is_rotated_or_revoked_ends_at_all_servers_at_once(store: SqliteStore, postgres: Postgres) -> None:
    url = postgres.database()
    with replica(store, url) as one, replica(store, url) as other:
        secret, key = one.keys.create("a")
        assert {each.list(secret).status_code for each in (one, other)} == {200}
        new, _ = other.keys.rotate(key.id, grace=0)
        assert {each.list(secret).status_code for each in (one, other)} == {401}
        assert {each.list(new).status_code for each in (one, other)} == {200}


def test_a_clock_that_is_set_back_begins_a_new_window(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a client would be refused until the clock is there again. A little back is a request of now."""
    with closing(connect_shared_state(postgres.database())) as database:
        limiter = RateLimiter("reads", 1, SharedWindows(database))
        monkeypatch.setattr(web.windows, "_NOW", "5000.0::float8")
        limiter.check("client")
        monkeypatch.setattr(web.windows, "_NOW", "4990.0::float8")
        with pytest.raises(RateLimited):
            limiter.check("client")
        monkeypatch.setattr(web.windows, "_NOW", "1000.0::float8")
        limiter.check("client")
        with pytest.raises(RateLimited):
            limiter.check("client")


def test_clients_that_are_gone_leave_no_rows(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(connect_shared_state(postgres.database())) as database:
        monkeypatch.setattr(web.windows, "_NOW", "1000.0::float8")
        for number in range(20):
            RateLimiter("reads", 1, SharedWindows(database)).check(str(number))
        assert database.execute("SELECT count(*) FROM windows") == [(20,)]
        monkeypatch.setattr(web.windows, "_NOW", "1200.0::float8")
        RateLimiter("reads", 1, SharedWindows(database)).check("new")
        assert database.execute("SELECT client FROM windows") == [("reads new",)]


# Outages


def test_connections_that_were_closed_meanwhile_are_replaced(postgres: Postgres) -> None:
    """By a restart, an administrator or a firewall: the next request does not notice."""
    with (
        closing(connect_shared_state(postgres.database())) as database,
        closing(connect_shared_state(postgres.database())) as admin,
    ):
        for _ in range(3):
            ((process,),) = database.execute("SELECT pg_backend_pid()")
            admin.execute("SELECT pg_terminate_backend(?)", process)
            until(lambda process=process: not admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ?", process))
            ((other,),) = database.execute("SELECT pg_backend_pid()")
            assert other != process
        assert database.failures == 0


def test_one_connection_that_hangs_does_not_keep_the_others_out(
    own_postgres: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is found out about one, an answer on another shows that the database is there."""
    from runspan.storage import postgres

    with closing(connect_shared_state(own_postgres.database())) as database:
        with database.transaction() as execute:
            execute("SELECT 1")
            ((process,),) = database.execute("SELECT pg_backend_pid()")
            os.kill(process, signal.SIGSTOP)
            try:
                with monkeypatch.context() as patched:
                    patched.setattr(postgres, "TIMEOUT", 0.5)
                    with pytest.raises(StateUnreachable, match=r"no answer within 0\.5 seconds"):
                        database.execute("SELECT 1")
            finally:
                os.kill(process, signal.SIGCONT)
        for _ in range(20):
            database.execute("SELECT 1")
        assert database.failures == 1


def test_a_database_that_became_a_standby_is_left(own_postgres: OwnPostgres) -> None:
    """Its connections are closed, so that the next ones may find the host that takes writes."""
    with closing(connect_shared_state(own_postgres.database())) as database:
        ((process,),) = database.execute("SELECT pg_backend_pid()")
        database.execute("SET default_transaction_read_only = on")
        with pytest.raises(StateUnreachable, match="read-only"):
            ApiKeyStore(database).create("a")
        assert database.execute("SELECT pg_backend_pid()") != [(process,)]
        ApiKeyStore(database).create("a")


class Site(NamedTuple):
    client: httpx.Client
    secret: str
    revoked: str
    writer: str
    key: ApiKey


@pytest.fixture
def site(store: SqliteStore, own_postgres: OwnPostgres) -> Iterator[Site]:
    """A server with three keys, of which one is revoked."""
    with replica(store, own_postgres.database()) as server:
        secret, key = server.keys.create("a")
        revoked, ended = server.keys.create("b")
        server.keys.revoke(ended.id)
        writer, _ = server.keys.create("c", permissions=["runs:write"])
        yield Site(server.client, secret, revoked, writer, key)


def status(site: Site, secret: str) -> int:
    return site.client.get("/api/v1/runs", headers={"x-api-key": secret} if secret else {}).status_code


def test_while_the_database_is_away_nobody_is_let_in(
    site: Site, own_postgres: OwnPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that needs a key gets 503 with Retry-After and the reason, and readiness and metrics say so. The
    server goes on by itself, and what was revoked is revoked."""
    client, key = site.client, {"x-api-key": site.secret}
    session = {"Cookie": "=".join(client.post("/login", data={"key": site.secret}).cookies.popitem())}
    client.cookies.clear()
    assert (status(site, site.secret), status(site, site.revoked), status(site, "")) == (200, 401, 401)
    assert client.get("/api/v1/runs", headers=session).status_code == 200
    assert "runspan_state_reachable 1.0" in client.get("/metrics").text
    own_postgres.halt()
    bodies = []
    for secret in (site.secret, site.revoked, site.writer, "wfk_wrong", ""):
        response = client.get("/api/v1/runs", headers={"x-api-key": secret} if secret else {})
        assert "does not answer" in error_of(response, 503, "STATE_UNREACHABLE")["message"]
        assert int(response.headers["Retry-After"]) >= 1
        bodies.append(response.text)
    sent = client.post("/v1/traces", content=otlp(), headers=PROTOBUF | key)
    pages = [
        client.get("/", headers=session),
        client.post("/login", data={"key": site.secret}),
        client.get("/api/v1/runs", headers=session),
        client.get("/readyz"),
        client.get("/readyz", headers=key),
    ]
    for response in (sent, *pages):
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
        bodies.append(response.text)
    assert "The database with the API keys does not answer" in pages[0].text
    assert "You cannot log in now" in pages[1].text
    assert client.get("/healthz").status_code == 200
    metrics = client.get("/metrics").text
    assert "runspan_state_reachable 0.0" in metrics
    assert "runspan_state_failures_total 0.0" not in metrics
    assert "Connection refused" in caplog.text
    for text in (*bodies, caplog.text):
        assert PASSWORD not in text
        assert "seen" not in text
    assert all("127.0.0.1" not in body and "refused" not in body for body in bodies)
    own_postgres.start()
    until(lambda: status(site, site.secret) == 200)
    assert (status(site, site.revoked), status(site, ""), status(site, site.writer)) == (401, 401, 403)
    assert client.get("/api/v1/runs", headers=session).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert "answers again" in caplog.text


def test_a_database_that_hangs_holds_no_request_for_long(site: Site, own_postgres: OwnPostgres) -> None:
    """Many clients at once are refused, all of them; health is there; and then they go on."""
    assert status(site, site.secret) == 200
    statuses: Counter[int] = Counter()

    def work() -> None:
        for _ in range(3):
            statuses[status(site, site.secret)] += 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    with own_postgres.frozen():
        for thread in threads:
            thread.start()
        assert site.client.get("/healthz").status_code == 200
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
    assert statuses == {503: 60}
    until(lambda: status(site, site.secret) == 200)


def test_a_crash_of_the_database_loses_no_key(site: Site, own_postgres: OwnPostgres) -> None:
    own_postgres.halt("immediate")
    assert status(site, site.secret) == 503
    own_postgres.start()
    until(lambda: status(site, site.secret) == 200)
    assert status(site, site.revoked) == 401


def test_a_server_does_not_start_while_the_database_is_away(tmp_path: Path, own_postgres: OwnPostgres) -> None:
    """Nor does it make a data directory: what it needs is in the backend and in the database."""
    url = own_postgres.database()
    own_postgres.halt()
    data = tmp_path / "data"
    options = ["--data", data, "--backend", "tempo+http://127.0.0.1:1"]
    try:
        away = runspan("serve", *options, "--port", 0, code=10, RUNSPAN_STATE=url)
    finally:
        own_postgres.start()
    assert "does not answer" in away.stderr
    assert PASSWORD not in away.stderr
    assert not data.exists()
    beyond = runspan("serve", *options, "--host", "0.0.0.0", "--port", 0, code=2, RUNSPAN_STATE=url)
    assert "runspan keys create --name NAME" in beyond.stderr
    made = runspan("keys", "create", "--name", "a", "--data", data, "--json", RUNSPAN_STATE=url)
    assert json.loads(made.stdout)["key"].startswith("wfk_")
    assert not data.exists()
