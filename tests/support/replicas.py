"""Servers behind a balancer that share one backend and one PostgreSQL, and clients that judge their answers."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

from runspan.web.api_keys import ApiKeyStore
from runspan.web.shared_state import connect_shared_state
from support.balancer import Balancer
from support.cli import WAIT, Running, running, runspan
from support.servers.postgres import PASSWORD, OwnPostgres

REPLICAS = 3
CLIENTS = 8
KEYS = 20
PAUSE = 0.05
"""Seconds of a client between two requests, in which servers can start."""
ENOUGH = 1_000_000
"""Requests of a key a minute that are counted and never reached."""


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
    stack: ExitStack
    servers: dict[str, Running] = field(default_factory=dict)
    """By URL."""
    secrets: list[str] = field(default_factory=list)

    def start(self, count: int = 1, limit: int = ENOUGH) -> list[str]:
        """Start so many servers more, all at once; return their URLs. limit: requests of a key a minute."""
        limits = ["--reads-per-minute", limit, "--writes-per-minute", limit]
        options = [*self.options, *self.state, "--port", 0, *limits]
        # Of a machine that has much else to do.
        env = {"RUNSPAN_BACKEND_TIMEOUT": "60", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
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

    def make_revoked_key(self) -> str:
        secret, key_id = self.make_key()
        runspan("keys", "revoke", *self.state, key_id)
        return secret

    def get(self, path: str, secret: str = "", base: str = "", **headers: str) -> Answer:
        """GET on a connection of its own, of the balancer unless a server is named."""
        return self.ask("GET", path, secret, base, None, headers)

    def post(self, path: str, secret: str, body: bytes, content_type: str) -> Answer:
        """POST on a connection of its own, of the balancer."""
        return self.ask("POST", path, secret, "", body, {"Content-Type": content_type})

    def ask(
        self, method: str, path: str, secret: str, base: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        parts = urlsplit(base or self.balancer.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT)
        sent = time.monotonic()
        port = 0
        try:
            connection.connect()
            port = connection.sock.getsockname()[1]
            connection.request(method, path, body, {**headers, **({"x-api-key": secret} if secret else {})})
            response = connection.getresponse()
            content = response.read()
            status, found = response.status, {name.lower(): text for name, text in response.getheaders()}
        except (OSError, http.client.HTTPException):
            status, content, found = 0, b"", {}
        finally:
            connection.close()
        return Answer(status, content, found, base or self.balancer.route(port), sent, time.monotonic())

    def list(self, secret: str, limit: int = 7) -> list[str]:
        """The ids of all pages, each from the server whose turn it is."""
        ids: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = json.loads(self.get(f"/api/v1/runs?{urlencode({'limit': str(limit)} | cursor)}", secret).body)
            ids += [run["id"] for run in page["data"]]
            if not page["meta"]["hasMore"]:
                return ids
            cursor = {"cursor": page["meta"]["cursor"]}


@contextmanager
def open_site(
    directory: Path, postgres: OwnPostgres, backend: str, tenant: str, permissions: Collection[str], *options: object
) -> Iterator[Site]:
    """Servers over the backend with this URL, and keys with these permissions. options: more ones of ``serve``."""
    file = directory / "state.url"
    file.write_text(postgres.database())
    none = directory / "none"
    state: list[object] = ["--state-url-file", file]
    with ExitStack() as stack:
        site = Site(Balancer([]), ["--backend", backend, "--data", none, *options], state, tenant, stack)
        with closing(ApiKeyStore(connect_shared_state(file.read_text()))) as keys:
            site.secrets += [keys.create("a", tenant=tenant, permissions=permissions)[0] for _ in range(KEYS)]
        site.balancer = stack.enter_context(Balancer(site.start(REPLICAS)))
        yield site
        for child in site.servers.values():
            assert child.end() == 0
            assert PASSWORD not in "".join(child.lines)
    assert not none.exists(), "the servers need no disk"


def until(holds: Callable[[], bool], left: object = "") -> None:
    """Return once it holds. left: what the failure shows if it does not in time."""
    deadline = time.monotonic() + 2 * WAIT
    while not holds():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def run_path(run_id: str) -> str:
    return f"/api/v1/runs/{quote(run_id, safe='')}"


class Crowd(ABC):
    """Clients that send requests all the time, and judge every answer."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]
        self.done = [0] * CLIENTS
        """How many steps of each client were right."""
        self.wrong: list[str] = []
        self.lost: list[Answer] = []
        """Without an answer."""
        self.away: list[Answer] = []
        """503, which may be sent again."""
        self.statuses: Counter[int] = Counter()

    def __enter__(self) -> Self:
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

    @abstractmethod
    def step(self, number: int, chance: random.Random) -> bool:
        """Send a request of the client with this number. Return whether the answer is right."""

    @abstractmethod
    def is_away(self, answer: Answer) -> bool:
        """Whether the answer says that something behind the servers does not answer."""

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.is_set():
            try:
                right = self.step(number, chance)
            except Exception as error:
                self.wrong.append(repr(error))
                raise
            if not right:
                return
            self.done[number] += 1
            self._stop.wait(PAUSE)

    def has(self, answer: Answer, status: int, holds: Callable[[bytes], bool] = bool) -> bool:
        """Whether an answer is right: lost, away, or of this status and with such a body. It is counted."""
        with self._lock:
            self.statuses[answer.status] += 1
            if answer.status == 0:
                self.lost.append(answer)
            elif self.is_away(answer):
                self.away.append(answer)
            elif answer.status != status or not holds(answer.body):
                self.wrong.append(f"expected {status}, got {answer}")
                return False
        return True


def kill_each(crowd: Crowd) -> int:
    """Kill every server in turn, and start another one in its place. Return how many answers were lost with them."""
    site = crowd.site
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
