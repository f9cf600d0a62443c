"""The platform with faults: a proxy before a real server that limits, fails, stalls, truncates and repeats.

The responses come from the server behind it, so documents, lists and cursors are real; the faults are drawn from a
seed. It records when each request arrived, and enforces a rate limit of its own as the platform documents it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

LIST = "/api/v1/runs"


@dataclass
class Faults:
    """How often each fault happens, as a share of the requests."""

    limited: float = 0.0
    """429 with Retry-After, in seconds or as a date."""
    error: float = 0.0
    """500."""
    gateway: float = 0.0
    """502 with a page of text."""
    slow: float = 0.0
    """A response after a pause."""
    cut: float = 0.0
    """JSON that ends too early, with a matching length."""
    torn: float = 0.0
    """A connection that closes within the body."""
    reset: float = 0.0
    """A connection that closes without a response."""
    repeated: float = 0.0
    """The page of a list that came before this one."""
    refused_cursor: float = 0.0
    """400 for a page that is not the first."""
    dripped: float = 0.0
    """A body that comes in small pieces over a pause."""

    def draw(self, chance: random.Random) -> str:
        """Return the fault of a request, or ""."""
        point = chance.random()
        for name, share in vars(self).items():
            if point < share:
                return str(name)
            point -= share
        return ""


EVERY_KIND = Faults(limited=0.004, error=0.02, gateway=0.01, slow=0.01, cut=0.01, torn=0.01, reset=0.01, repeated=0.05)


@dataclass
class FaultyPlatform:
    """What the platform does, and what it has seen."""

    upstream: str
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    limit: int = 0
    """Requests that are served in any ``window`` seconds; 0: all."""
    window: float = 60.0
    vanished: set[str] = field(default_factory=set)
    """Ids that are listed and have no document."""
    replaced: dict[str, bytes] = field(default_factory=dict)
    """Run ids to texts of ``data`` that replace their own."""
    gateway: tuple[int, bytes] | None = None
    """Status and body with which a gateway responds to every request for a document."""
    keys: set[str] = field(default_factory=set)
    """The API keys that are accepted; empty: any or none."""
    down: bool = False
    """Respond 503 to everything."""
    incomplete: int = 0
    """How many of the next documents are marked as older revisions."""
    pause: float = 0.3
    """Seconds of a slow response."""
    url: str = ""
    arrivals: list[float] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    over_limit: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self._chance = random.Random(self.seed)
        self._recent: deque[float] = deque()
        self._pages: list[bytes] = []
        self._client = httpx.Client(base_url=self.upstream, timeout=30, trust_env=False)

    def most_in(self, seconds: float) -> int:
        """Return the most requests that arrived within this many seconds."""
        most = first = 0
        for last, at in enumerate(self.arrivals):
            while at - self.arrivals[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def documents_asked(self) -> list[str]:
        """Return the run ids of the requested documents, in their order."""
        with self.lock:
            return [unquote(path.removeprefix(LIST + "/")) for path in self.paths if path.startswith(LIST + "/")]

    def pages_asked(self) -> list[dict[str, str]]:
        """Return the parameters of the requested pages, in their order."""
        with self.lock:
            found = [urlsplit(path) for path in self.paths]
        return [dict(httpx.QueryParams(url.query)) for url in found if url.path == LIST]

    def arrive(self, path: str) -> tuple[str, float]:
        """Record a request. Return its fault, and for a 429 of the limit the seconds to wait."""
        with self.lock:
            now = time.monotonic()
            self.arrivals.append(now)
            self.paths.append(path)
            while self._recent and now - self._recent[0] >= self.window:
                self._recent.popleft()
            if self.limit and len(self._recent) >= self.limit:
                self.over_limit += 1
                return "over", self.window - (now - self._recent[0])
            self._recent.append(now)
            fault = "down" if self.down else self.faults.draw(self._chance)
            if fault == "repeated" and not ("cursor=" in path and self._pages):
                fault = ""
            if fault == "refused_cursor" and "cursor=" not in path:
                fault = ""
            if fault:
                self.injected[fault] += 1
            return fault, 0.0

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return the status and body without a fault."""
        if self.keys and headers.get("x-api-key") not in self.keys:
            return 401, failure("UNAUTHORIZED", "no such key")
        place = urlsplit(path).path
        if self.gateway and place != LIST:
            return self.gateway
        run_id = unquote(place.removeprefix(LIST + "/"))
        if place != LIST and run_id in self.vanished:
            return 404, failure("NOT_FOUND", "no such run")
        if place != LIST and run_id in self.replaced:
            return 200, b'{"success":true,"data":' + self.replaced[run_id] + b"}"
        answer = self._client.get(path, headers={k: v for k, v in headers.items() if k == "x-api-key"})
        if place == LIST and answer.is_success:
            with self.lock:
                self._pages.append(answer.content)
        return answer.status_code, answer.content

    def last_page(self) -> bytes:
        """Return the last page."""
        with self.lock:
            return self._pages[-1]

    def close(self) -> None:
        self._client.close()


def failure(code: str, message: str) -> bytes:
    return json.dumps({"success": False, "error": {"code": code, "message": message}}).encode()


@contextmanager
def platform(upstream: str, **options: Any) -> Iterator[FaultyPlatform]:
    """Serve a faulty platform until the block ends."""
    mock = FaultyPlatform(upstream, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            fault, wait = mock.arrive(self.path)
            if fault in ("over", "limited"):
                body = failure("RATE_LIMITED", "more than the limit")
                seconds = max(1, -int(-wait // 1)) if fault == "over" else 1
                dated = fault == "limited" and len(mock.arrivals) % 2
                self.reply(429, body, {"Retry-After": formatdate(time.time() + 1.5) if dated else str(seconds)})
            elif fault == "down":
                self.reply(503, failure("UNAVAILABLE", "down"))
            elif fault == "error":
                self.reply(500, failure("INTERNAL", "something broke"))
            elif fault == "gateway":
                self.reply(502, b"<html>bad gateway</html>")
            elif fault == "refused_cursor":
                self.reply(400, failure("VALIDATION_ERROR", "the cursor has expired"))
            elif fault == "reset":
                self.close_connection = True
            else:
                self.respond(fault)

        def respond(self, fault: str) -> None:
            if fault == "slow":
                time.sleep(mock.pause)
            if fault == "repeated":
                self.reply(200, mock.last_page())
                return
            status, body = mock.answer(self.path, {key.lower(): value for key, value in self.headers.items()})
            if fault == "cut":
                body = body[: len(body) * 2 // 3]
            if fault == "torn":
                self.reply(status, body[: len(body) // 2], length=len(body))
                self.close_connection = True
                return
            if fault == "dripped":
                self.drip(status, body)
                return
            older = mock.incomplete > 0 and "?" not in self.path
            mock.incomplete -= older
            self.reply(status, body, {"X-Runspan-Incomplete": "1 step is missing"} if older else None)

        def drip(self, status: int, body: bytes) -> None:
            self.reply(status, b"", length=len(body))
            for piece in range(20):
                first, last = (len(body) * number // 20 for number in (piece, piece + 1))
                self.wfile.write(body[first:last])
                time.sleep(mock.pause / 20)

        def reply(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Ignore the connections of clients that were killed."""

    server = Server(("127.0.0.1", 0), Handler)
    mock.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield mock
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        mock.close()
