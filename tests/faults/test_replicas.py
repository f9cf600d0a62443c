"""Three servers behind a balancer share one backend and one PostgreSQL. They are killed one at a time under load."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.testing import generate
from runspan.web.api_keys import RUNS_READ, ApiKeyStore
from runspan.web.shared_state import connect_shared_state
from support.balancer import Balancer
from support.cli import WAIT, Running, running, runspan, write_ndjson
from support.servers.postgres import PASSWORD, OwnPostgres

pytestmark = pytest.mark.timeout(900)

CLIENTS = 8
RUNS = 30
KEYS = 20
PAUSE = 0.05
"""Seconds of a client between two requests, in which servers can start."""
ENOUGH = 1_000_000
"""Requests of a key a minute that are counted and never reached."""
LIMIT = 60
"""The same where the limit is what is tested."""


@dataclass
class Answer:
    """status: 0 if the connection was lost. server: which one had it. sent, at: seconds of a clock that nobody sets."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    server: str
    sent: float
    at: float


@dataclass
class Site:
    """The servers, and what they must answer."""

    balancer: Balancer
    options: list[object]
    state: list[object]
    tenant: str
    texts: dict[str, bytes]
    stack: ExitStack
    servers: dict[str, Running] = field(default_factory=dict)
    """By URL."""
    secrets: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    """The ids of all runs, as a list must have them."""

    def start(self, count: int = 1, limit: int = ENOUGH) -> list[str]:
        """Start so many servers more, all at once; return their URLs. limit: requests of a key a minute."""
        options = [*self.options, *self.state, "--port", 0, "--reads-per-minute", limit]
        env = {"RUNSPAN_BACKEND_TIMEOUT": "60"}  # of a machine that has much else to do
        children = [self.stack.enter_context(running("serve", *options, env=env)) for _ in range(count)]
        started = {child.wait_for(r"is serving \S+ at (http://\S+)")[1]: child for child in children}
        self.servers |= started
        return list(started)

    def kill(self, url: str) -> None:
        self.servers.pop(url).process.kill()

    def make_key(self, *args: object) -> tuple[str, str]:
        made = runspan("keys", "create", *self.state, "--name", "a", "--tenant", self.tenant, "--json", *args)
        key = json.loads(made.stdout)
        return key["key"], key["id"]

    def get(self, path: str, secret: str = "", base: str = "", **headers: str) -> Answer:
        """GET on a connection of its own, of the balancer unless a server is named."""
        parts = urlsplit(base or self.balancer.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT)
        sent = time.monotonic()
        port = 0
        try:
            connection.connect()
            port = connection.sock.getsockname()[1]
            connection.request("GET", path, headers=headers | ({"x-api-key": secret} if secret else {}))
            response = connection.getresponse()
            body = response.read()
            status, found = response.status, {name.lower(): text for name, text in response.getheaders()}
        except (OSError, http.client.HTTPException):
            status, body, found = 0, b"", {}
        finally:
            connection.close()
        return Answer(status, body, found, base or self.balancer.route(port), sent, time.monotonic())

    def list(self, secret: str) -> list[str]:
        """The ids of all pages, each from the server whose turn it is."""
        ids: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = json.loads(self.get(f"/api/v1/runs?{urlencode({'limit': '7'} | cursor)}", secret).body)
            ids += [run["id"] for run in page["data"]]
            if not page["meta"]["hasMore"]:
                return ids
            cursor = {"cursor": page["meta"]["cursor"]}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(
    params=["embedded", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("tempo", "jaeger_memory"))]
)
def site(request: pytest.FixtureRequest, tmp_path: Path, own_postgres: OwnPostgres) -> Iterator[Site]:
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
    file = tmp_path / "state.url"
    file.write_text(own_postgres.database())
    none = tmp_path / "none"
    options: list[object] = ["--backend", url, "--data", none, "--no-search"]
    with ExitStack() as stack:
        opened = Site(Balancer([]), options, ["--state-url-file", file], tenant, texts, stack)
        with closing(ApiKeyStore(connect_shared_state(file.read_text()))) as keys:
            opened.secrets += [keys.create("a", tenant=tenant, permissions=[RUNS_READ])[0] for _ in range(KEYS)]
        opened.balancer = stack.enter_context(Balancer(opened.start(3)))
        until(lambda: len(opened.list(opened.secrets[0])) == RUNS)
        opened.order += opened.list(opened.secrets[0])
        assert sorted(opened.order) == sorted(texts)
        yield opened
        for child in opened.servers.values():
            assert child.end() == 0
            assert PASSWORD not in "".join(child.lines)
    assert not none.exists(), "the servers need no disk"


class Crowd:
    """Clients that read all the time, and judge every answer."""

    def __init__(self, site: Site, revoked: str) -> None:
        self._site = site
        self._revoked = revoked
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(random.Random(n),)) for n in range(CLIENTS)]
        self._cookies = [self._login(secret) for secret in site.secrets]
        self.done = [0] * CLIENTS
        self.wrong: list[str] = []
        self.lost: list[Answer] = []
        """Without an answer."""
        self.away: list[Answer] = []
        """503, since the database did not answer."""
        self.statuses: Counter[int] = Counter()

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * WAIT)
            assert not thread.is_alive()

    def go_on(self, count: int = 4) -> None:
        """Return when each client has had so many answers more."""
        goal = [done + count for done in self.done]
        until(lambda: all(done >= least for done, least in zip(self.done, goal, strict=True)) or bool(self.wrong))
        assert self.wrong == []

    def _login(self, secret: str) -> str:
        parts = urlsplit(self._site.balancer.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", urlencode({"key": secret}), form)
        cookie = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
        connection.close()
        return cookie

    def _work(self, chance: random.Random) -> None:
        number = self._threads.index(threading.current_thread())
        site = self._site
        run_ids = list(site.texts)
        cursor = ""
        while not self._stop.is_set():
            kind, secret = chance.choice("rrrllscwv"), chance.choice(site.secrets)
            run_id = chance.choice(run_ids)
            path = f"/api/v1/runs/{quote(run_id, safe='')}"
            if kind == "r":
                right = self._has(self._ask(path, secret), 200, lambda body, text=site.texts[run_id]: text in body)
            elif kind == "l":
                answer = self._ask(
                    f"/api/v1/runs?{urlencode({'limit': '7'} | ({'cursor': cursor} if cursor else {}))}", secret
                )
                right = self._has(answer, 200, self._is_page)
                if right and answer.status == 200:
                    cursor = json.loads(answer.body)["meta"].get("cursor") or ""
            elif kind == "s":
                right = self._has(
                    self._ask(path, Cookie=chance.choice(self._cookies)),
                    200,
                    lambda body, text=site.texts[run_id]: text in body,
                )
            else:
                refused = {"c": "", "w": "wfk_" + "w" * 32, "v": self._revoked}[kind]
                right = self._has(self._ask(path, refused), 401, lambda body: b"UNAUTHORIZED" in body)
            if not right:
                return
            self.done[number] += 1
            self._stop.wait(PAUSE)

    def _ask(self, path: str, secret: str = "", **headers: str) -> Answer:
        return self._site.get(path, secret, **headers)

    def _is_page(self, body: bytes) -> bool:
        """Whether it is a part of the list, with all that stands between its first and its last run."""
        page, order = json.loads(body), self._site.order
        ids = [run["id"] for run in page["data"]]
        first = order.index(ids[0]) if ids else len(order)
        last = first + len(ids) == len(order)
        return ids == order[first : first + 7] and page["meta"]["hasMore"] is not last

    def _has(self, answer: Answer, status: int, holds: Callable[[bytes], bool]) -> bool:
        with self._lock:
            self.statuses[answer.status] += 1
            if answer.status == 0:
                self.lost.append(answer)
            elif answer.status == 503 and b"STATE_UNREACHABLE" in answer.body and "retry-after" in answer.headers:
                self.away.append(answer)
            elif answer.status != status or not holds(answer.body):
                self.wrong.append(f"expected {status}, got {answer}")
                return False
        return True


def revoke_everywhere(site: Site) -> None:
    """A key that all servers took is refused by each of them at its next request."""
    secret, key_id = site.make_key("--permission", "runs:read")
    path = f"/api/v1/runs/{quote(site.order[0], safe='')}"
    assert {site.get(path, secret, url).status for url in site.servers} == {200}
    runspan("keys", "revoke", *site.state, key_id)
    revoked = time.monotonic()
    answers = [site.get(path, secret, url) for url in site.servers]
    assert {answer.status for answer in answers} == {401}
    assert all(answer.sent >= revoked for answer in answers)


def reach_limit(site: Site) -> None:
    """A key gets as many requests a minute from all servers together as it may, and no more."""
    servers = site.start(3, LIMIT)
    secret, _ = site.make_key("--permission", "runs:read")
    path = f"/api/v1/runs/{quote(site.order[0], safe='')}"
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


def kill_each(site: Site, crowd: Crowd) -> int:
    """Kill every server in turn, and start another one in its place. Return how many answers were lost with them."""
    for url in list(site.servers):
        crowd.go_on()
        before = len(crowd.lost)
        site.kill(url)
        crowd.go_on()
        assert {answer.server for answer in crowd.lost[before:]} <= {url}
        site.balancer.replace(url, *site.start())
    crowd.go_on()
    assert {answer.server for answer in crowd.lost} & set(site.servers) == set()
    return len(crowd.lost)


def test_servers_that_are_killed_cost_only_the_requests_that_they_had(site: Site) -> None:
    """Eight clients get right answers all the time, from whichever server; a revoked key is refused by all."""
    revoked, key_id = site.make_key()
    runspan("keys", "revoke", *site.state, key_id)
    with Crowd(site, revoked) as crowd:
        lost = kill_each(site, crowd)
        revoke_everywhere(site)
    assert crowd.wrong == []
    # A machine that gives PostgreSQL no processor for seconds has it away.
    assert len(crowd.away) <= sum(crowd.statuses.values()) / 20
    assert lost <= 3 * CLIENTS
    for child in site.servers.values():
        assert quote(PASSWORD, safe="").encode() not in Path(f"/proc/{child.process.pid}/cmdline").read_bytes()


@pytest.mark.campaign
def test_servers_and_their_database_fail_for_minutes(site: Site, own_postgres: OwnPostgres) -> None:
    """Kills, revocations, restarts, crashes and hangs of PostgreSQL, again and again: no wrong answer, none lost but at
    the server that was killed, and 503 only while PostgreSQL is away. At the end the limit counts exactly."""
    revoked, key_id = site.make_key()
    runspan("keys", "revoke", *site.state, key_id)
    with Crowd(site, revoked) as crowd:
        for number in range(3):
            kill_each(site, crowd)
            revoke_everywhere(site)
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
    reach_limit(site)


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
