"""Three servers behind a balancer share one backend and one PostgreSQL. They are killed one at a time under load."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.testing import generate
from runspan.web.api_keys import RUNS_READ
from support.cli import WAIT, runspan, write_ndjson
from support.replicas import CLIENTS, Answer, Crowd, Site, kill_each, open_site, run_path, until
from support.servers.postgres import PASSWORD, OwnPostgres

pytestmark = pytest.mark.timeout(900)

RUNS = 30
LIMIT = 60
"""Requests of a key a minute where the limit is what is tested."""


@dataclass
class Stored:
    """A site, and the runs that its backend has."""

    site: Site
    texts: dict[str, bytes]
    """By run id."""
    order: list[str]
    """The ids of all runs, as a list must have them."""


@pytest.fixture(
    params=["embedded", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("tempo", "jaeger_memory"))]
)
def stored(request: pytest.FixtureRequest, tmp_path: Path, own_postgres: OwnPostgres) -> Iterator[Stored]:
    """Three servers over one backend that has some runs: Tempo, Jaeger, or the directory of an embedded store."""
    start = datetime.now(UTC) - timedelta(days=1)
    texts = {run.id: run.text for run in map(Run.from_json, generate(RUNS, seed=7, start=start, span_days=0.5))}
    tenant = "" if request.param == "embedded" else f"tenant-{uuid4().hex}"
    runs = write_ndjson(tmp_path / "runs.ndjson", texts)
    if request.param == "embedded":
        url = f"sqlite:{tmp_path / 'store'}"
        with SqliteStore(tmp_path / "store") as store:
            for text in texts.values():
                store.put(Run.from_json(text), observed_at=time.time_ns())
    else:
        backend: Any = request.getfixturevalue(request.param)
        url = f"{request.param.partition('_')[0]}+{backend.url}"
        runspan("export", runs, "--endpoint", backend.otlp, "--tenant", tenant)
    with open_site(tmp_path, own_postgres, url, tenant, [RUNS_READ], "--no-search") as site:
        until(lambda: len(site.list(site.secrets[0])) == RUNS)
        order = site.list(site.secrets[0])
        assert sorted(order) == sorted(texts)
        yield Stored(site, texts, order)


class Readers(Crowd):
    """Clients that read."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored.site)
        self._stored = stored
        self._run_ids = list(stored.texts)
        self._revoked = stored.site.make_revoked_key()
        self._cookies = [self._login(secret) for secret in stored.site.secrets]
        self._cursors = [""] * CLIENTS

    def _login(self, secret: str) -> str:
        parts = urlsplit(self.site.balancer.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", urlencode({"key": secret}), form)
        cookie = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
        connection.close()
        return cookie

    def step(self, number: int, chance: random.Random) -> bool:
        kind, secret = chance.choice("rrrllscwv"), chance.choice(self.site.secrets)
        run_id = chance.choice(self._run_ids)
        path, text = run_path(run_id), self._stored.texts[run_id]
        if kind == "r":
            return self.has(self.site.get(path, secret), 200, lambda body: text in body)
        if kind == "s":
            return self.has(self.site.get(path, Cookie=chance.choice(self._cookies)), 200, lambda body: text in body)
        if kind == "l":
            cursor = {"cursor": self._cursors[number]} if self._cursors[number] else {}
            answer = self.site.get(f"/api/v1/runs?{urlencode({'limit': '7'} | cursor)}", secret)
            right = self.has(answer, 200, self._is_page)
            if right and answer.status == 200:
                self._cursors[number] = json.loads(answer.body)["meta"].get("cursor") or ""
            return right
        refused = {"c": "", "w": "wfk_" + "w" * 32, "v": self._revoked}[kind]
        return self.has(self.site.get(path, refused), 401, lambda body: b"UNAUTHORIZED" in body)

    def is_away(self, answer: Answer) -> bool:
        return answer.status == 503 and b"STATE_UNREACHABLE" in answer.body and "retry-after" in answer.headers

    def _is_page(self, body: bytes) -> bool:
        """Whether it is a part of the list, with all that stands between its first and its last run."""
        page, order = json.loads(body), self._stored.order
        ids = [run["id"] for run in page["data"]]
        first = order.index(ids[0]) if ids else len(order)
        last = first + len(ids) == len(order)
        return ids == order[first : first + 7] and page["meta"]["hasMore"] is not last


def revoke_everywhere(stored: Stored) -> None:
    """A key that all servers took is refused by each of them at its next request."""
    site = stored.site
    secret, key_id = site.make_key("--permission", "runs:read")
    path = run_path(stored.order[0])
    assert {site.get(path, secret, url).status for url in site.servers} == {200}
    runspan("keys", "revoke", *site.state, key_id)
    revoked = time.monotonic()
    answers = [site.get(path, secret, url) for url in site.servers]
    assert {answer.status for answer in answers} == {401}
    assert all(answer.sent >= revoked for answer in answers)


def reach_limit(stored: Stored) -> None:
    """A key gets as many requests a minute from all servers together as it may, and no more."""
    site = stored.site
    servers = site.start(3, LIMIT)
    secret, _ = site.make_key("--permission", "runs:read")
    path = run_path(stored.order[0])
    answers: list[Answer] = []

    def work(number: int) -> None:
        for turn in range(2 * LIMIT // CLIENTS):
            answers.append(site.get(path, secret, servers[(number + turn) % 3]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} <= {200, 429}
    taken = [answer for answer in answers if answer.status == 200]
    assert len(taken) >= LIMIT
    for first in taken:
        assert sum(first.sent <= answer.sent and answer.at < first.sent + 60 for answer in taken) <= LIMIT


def test_servers_that_are_killed_cost_only_the_requests_that_they_had(stored: Stored) -> None:
    """Eight clients get right answers all the time, from whichever server; a revoked key is refused by all."""
    site = stored.site
    with Readers(stored) as crowd:
        lost = kill_each(crowd)
        revoke_everywhere(stored)
    assert crowd.wrong == []
    # A machine that gives PostgreSQL no processor for seconds has it away.
    assert len(crowd.away) <= sum(crowd.statuses.values()) / 20
    assert lost <= 3 * CLIENTS
    for child in site.servers.values():
        assert quote(PASSWORD, safe="").encode() not in Path(f"/proc/{child.process.pid}/cmdline").read_bytes()


@pytest.mark.campaign
def test_servers_and_their_database_fail_for_minutes(stored: Stored, own_postgres: OwnPostgres) -> None:
    """Kills, revocations, restarts, crashes and hangs of PostgreSQL, again and again: no wrong answer, none lost but at
    the server that was killed, and 503 only while PostgreSQL is away. At the end the limit counts exactly."""
    site = stored.site
    with Readers(stored) as crowd:
        for number in range(3):
            kill_each(crowd)
            revoke_everywhere(stored)
            before = len(crowd.away)
            with outage(own_postgres, number):
                until(lambda before=before: len(crowd.away) >= before + 3 * CLIENTS)
                assert all(site.get("/readyz", base=url).status == 503 for url in site.servers)
                assert all(site.get("/healthz", base=url).status == 200 for url in site.servers)
            until(lambda: all(site.get("/readyz", base=url).status == 200 for url in site.servers))
            recovered = len(crowd.away)
            crowd.go_on()
            assert len(crowd.away) <= recovered + CLIENTS, "requests that were sent before"
    assert crowd.wrong == []
    reach_limit(stored)


@contextmanager
def outage(postgres: OwnPostgres, number: int) -> Iterator[None]:
    """A restart, a crash or a hang of the database, in turn."""
    if number % 3 == 2:
        with postgres.frozen():
            yield
        return
    postgres.halt("immediate" if number % 3 else "fast")
    try:
        yield
    finally:
        postgres.start()
