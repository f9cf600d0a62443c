"""The platform with its troubles: a proxy before a real server that limits, fails, stalls, cuts and repeats.

What it answers comes from the server behind it, so documents, lists and cursors are real ones; the faults are drawn
from a seed. It notes when each request arrived, and keeps the limit of its own as the platform documents it.
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
    """How often each happens, as a share of the requests that come to it.

    limited: 429 with Retry-After, in seconds or as a date. error: 500. gateway: 502 with a page of text.
    slow: an answer after a pause. cut: JSON that ends too early under a right length. torn: a connection that closes
    within the body. reset: one that closes without an answer. repeated: the page of a list that came before this one.
    """

    limited: float = 0.0
    error: float = 0.0
    gateway: float = 0.0
    slow: float = 0.0
    cut: float = 0.0
    torn: float = 0.0
    reset: float = 0.0
    repeated: float = 0.0

    def draw(self, chance: random.Random) -> str:
        """The fault of a request, "" for none."""
        point = chance.random()
        for name, share in vars(self).items():
            if point < share:
                return str(name)
            point -= share
        return ""


EVERY_KIND = Faults(limited=0.004, error=0.02, gateway=0.01, slow=0.01, cut=0.01, torn=0.01, reset=0.01, repeated=0.05)


@dataclass
class FaultyPlatform:
    """limit: requests that are answered in any ``window`` seconds; 0: all. vanished: ids that are listed and answer
    404. replaced: the text of ``data`` of some runs, in place of their own. gateway: status and body that what stands
    before the platform answers in its place to whoever asks for a document. down: answers 503 to everything.
    keys: the API keys that are taken; empty: any or none. incomplete: so many documents to come are marked as older
    revisions. pause: seconds of a slow answer."""

    upstream: str
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    limit: int = 0
    window: float = 60.0
    vanished: set[str] = field(default_factory=set)
    replaced: dict[str, bytes] = field(default_factory=dict)
    gateway: tuple[int, bytes] | None = None
    keys: set[str] = field(default_factory=set)
    down: bool = False
    incomplete: int = 0
    pause: float = 0.3
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
        """The most requests that arrived in any so many seconds."""
        most = first = 0
        for last, at in enumerate(self.arrivals):
            while at - self.arrivals[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def documents_asked(self) -> list[str]:
        """The run ids of the documents that were asked for, in their order."""
        with self.lock:
            return [unquote(path.removeprefix(LIST + "/")) for path in self.paths if path.startswith(LIST + "/")]

    def pages_asked(self) -> list[dict[str, str]]:
        """The parameters of the pages that were asked for, in their order."""
        with self.lock:
            found = [urlsplit(path) for path in self.paths]
        return [dict(httpx.QueryParams(url.query)) for url in found if url.path == LIST]

    def arrive(self, path: str) -> tuple[str, float]:
        """Notes a request. Its fault, and for a 429 of the limit the seconds until there is room."""
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
            if fault:
                self.injected[fault] += 1
            return fault, 0.0

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body without a fault."""
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
        """The page that was answered last."""
        with self.lock:
            return self._pages[-1]

    def close(self) -> None:
        self._client.close()


def failure(code: str, message: str) -> bytes:
    return json.dumps({"success": False, "error": {"code": code, "message": message}}).encode()


@contextmanager
def platform(upstream: str, **options: Any) -> Iterator[FaultyPlatform]:
    """A mock that listens until the block ends."""
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
            elif fault == "reset":
                self.close_connection = True
            else:
                self.whole(fault)

        def whole(self, fault: str) -> None:
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
            older = mock.incomplete > 0 and "?" not in self.path
            mock.incomplete -= older
            self.reply(status, body, {"X-Runspan-Incomplete": "1 step is missing"} if older else None)

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
            """A client that is killed leaves its connections torn."""

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
