"""The client and the config of remote backends, against small servers on loopback that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runspan import connect
from runspan.backends.remote.client import RemoteClient
from runspan.backends.remote.config import RemoteConfig, remote_config
from runspan.backends.tempo import TempoReader
from runspan.contracts import RunQuery
from runspan.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable, ConfigError, QueryError

DEEP = b'{"traces":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

Respond = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each GET to the test's own function."""

    server: Any

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.respond(self)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Server:
    """A server on loopback. release: set when the test ends, so that a handler may wait for it."""

    def __init__(self, respond: Respond) -> None:
        self.release = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.respond, self._http.seen = respond, []  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def seen(self) -> list[tuple[str, dict[str, str]]]:
        return list(self._http.seen)  # type: ignore[attr-defined]

    def stop(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], Server]]:
    """Starts servers."""
    servers: list[Server] = []

    def start(respond: Respond) -> Server:
        servers.append(Server(respond))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def client_of(url: str, **variables: str) -> RemoteClient:
    return RemoteClient(config_of(url, **variables))


def config_of(url: str, **variables: str) -> RemoteConfig:
    return remote_config(f"tempo+{url}", {f"RUNSPAN_BACKEND_{name}": value for name, value in variables.items()})


def test_prefix_headers_and_logins_reach_the_backend(serve: Callable[[Respond], Server]) -> None:
    """What the environment says goes with every request, below the URL's path."""
    server = serve(lambda handler: handler.reply(200, b"{}"))
    for variables, expected in (
        ({"USER": "me", "PASSWORD": "x:y"}, "Basic bWU6eDp5"),
        ({"TOKEN": "t0k"}, "Bearer t0k"),
    ):
        client = client_of(server.url + "/a/tempo/", TENANT="acme", HEADERS="X-Extra=a%2Cb, x-more=2", **variables)
        client.get("/api/echo", {"q": '{ "ü" }'})
        client.close()
        path, headers = server.seen[-1]
        lower = {name.lower(): value for name, value in headers.items()}
        assert path.startswith("/a/tempo/api/echo?q=%7B")
        assert lower["authorization"] == expected
        assert (lower["x-scope-orgid"], lower["x-extra"], lower["x-more"]) == ("acme", "a,b", "2")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, BackendRefused, "RUNSPAN_BACKEND_TENANT"),
        (403, BackendRefused, "RUNSPAN_BACKEND_TOKEN"),
        (404, BackendRefused, "path of the backend's URL"),
        (302, BackendRefused, "path of the backend's URL"),
        (400, BackendRefused, "no such thing"),
        (500, BackendRefused, "no such thing"),
        (429, BackendBusy, "no such thing"),
        (503, BackendBusy, "no such thing"),
        (502, BackendUnreachable, "gateway"),
        (504, BackendUnreachable, "gateway"),
    ],
)
def test_each_failure_has_its_error(
    serve: Callable[[Respond], Server], status: int, kind: type[BackendError], words: str
) -> None:
    """The error names the backend, quotes its message, and repeats no secret."""
    server = serve(lambda handler: handler.reply(status, b"no such thing for s3cr3t\n" + b"x" * 5000, Retry_After="7"))
    client = client_of(server.url, TOKEN="s3cr3t")
    with pytest.raises(kind, match=words) as caught:
        client.get("/")
    client.close()
    text = str(caught.value)
    assert f"Tempo at {server.url}" in text
    assert "s3cr3t" not in text
    assert len(text) < 1000
    if isinstance(caught.value, BackendBusy):
        assert caught.value.retry_after == 7


def test_a_port_without_a_listener(serve: Callable[[Respond], Server]) -> None:
    """It is BackendUnreachable."""
    server = serve(lambda handler: handler.reply(200))
    server.stop()
    client = client_of(server.url)
    with pytest.raises(BackendUnreachable, match="is it running"):
        client.get("/")
    client.close()


def test_a_backend_that_does_not_respond(serve: Callable[[Respond], Server]) -> None:
    """It is BackendUnreachable, and the hint names the variable that extends the time."""
    server = serve(lambda _: server.release.wait(20))  # type: ignore[arg-type, return-value]
    client = client_of(server.url, TIMEOUT="0.2")
    with pytest.raises(BackendUnreachable, match="RUNSPAN_BACKEND_TIMEOUT"):
        client.get("/")
    client.close()


def test_a_backend_that_trickles(serve: Callable[[Respond], Server]) -> None:
    """The timeout is for the complete response, not for each piece of it."""

    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not server.release.wait(0.05):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    server = serve(trickle)
    client = client_of(server.url, TIMEOUT="0.4")
    with pytest.raises(BackendUnreachable, match="complete response"):
        client.get("/")
    client.close()


def test_a_response_that_is_too_large(serve: Callable[[Respond], Server]) -> None:
    """It is not read to its end."""
    server = serve(lambda handler: handler.reply(200, b"x" * 3_000_000))
    client = client_of(server.url, MAX_BYTES="1000000")
    with pytest.raises(BackendRefused, match="RUNSPAN_BACKEND_MAX_BYTES"):
        client.get("/")
    client.close()


def test_concurrency_is_bounded(serve: Callable[[Respond], Server]) -> None:
    """A caller without a place gets BackendBusy; one that waits long enough is served."""
    inside, leave = threading.Semaphore(0), threading.Event()

    def hold(handler: Handler) -> None:
        inside.release()
        leave.wait(20)
        handler.reply(200, b"done")

    server = serve(hold)
    client = client_of(server.url, CONCURRENCY="2", TIMEOUT="15")
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(client.get, "/") for _ in range(2)]
        assert inside.acquire(timeout=10)
        assert inside.acquire(timeout=10)
        with pytest.raises(BackendBusy, match="RUNSPAN_BACKEND_CONCURRENCY"):
            client.get("/", timeout=0.05)
        late = pool.submit(client.get, "/")
        leave.set()
        assert [future.result().content for future in (*held, late)] == [b"done"] * 3
    client.close()


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"traces": 7}', b'{"traces": [{"traceID": "xyz"}]}', DEEP])
def test_a_response_that_is_not_tempos(serve: Callable[[Respond], Server], body: bytes) -> None:
    """Something else at the address is refused, and never an empty list."""
    server = serve(lambda handler: handler.reply(200, body))
    reader = TempoReader(config_of(server.url))
    with pytest.raises(BackendRefused, match="is this a Tempo"):
        reader.search(RunQuery())
    reader.close()


def test_a_search_that_left_out_data_says_so(serve: Callable[[Respond], Server]) -> None:
    """Jobs that did not complete make the page partial."""
    server = serve(
        lambda handler: handler.reply(200, b'{"traces": [], "metrics": {"completedJobs": 3, "totalJobs": 5}}')
    )
    reader = TempoReader(config_of(server.url))
    page = reader.search(RunQuery())
    reader.close()
    assert list(page.items) == []
    assert page.partial == ("Tempo left out 2 parts of its data",)


def test_the_check_passes_where_only_the_query_api_is_reachable(serve: Callable[[Respond], Server]) -> None:
    """Hosted ones have no ``/ready``; then the echo is used."""
    server = serve(lambda handler: handler.reply(200 if handler.path.endswith("/api/echo") else 404))
    reader = TempoReader(config_of(server.url + "/tempo"))
    reader.check()
    reader.close()
    assert [path for path, _ in server.seen] == ["/tempo/ready", "/tempo/api/echo"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tempo+http://me:pw@host:3200", "RUNSPAN_BACKEND_USER"),
        ("tempo+http://token@host", "RUNSPAN_BACKEND_TOKEN"),
        ("tempo+http://host/?key=pw", "RUNSPAN_BACKEND_HEADERS"),
        ("tempo+ftp://host", "HOST:PORT"),
        ("tempo+http://", "HOST:PORT"),
        ("tempo+http://host:99999999", "cannot be read"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    """Secrets are no part of a URL, and a refusal does not repeat them."""
    with pytest.raises(ConfigError, match=words) as caught:
        connect(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TOKEN": "s3cr3t", "USER": "me"}, "RUNSPAN_BACKEND_TOKEN"),
        ({"PASSWORD": "s3cr3t"}, "RUNSPAN_BACKEND_USER"),
        ({"HEADERS": "s3cr3t"}, "item 1"),
        ({"HEADERS": "a b=s3cr3t"}, "header names"),
        ({"HEADERS": "a=s3cr3t%0A"}, "printable ASCII"),
        ({"TIMEOUT": "soon"}, "RUNSPAN_BACKEND_TIMEOUT"),
        ({"TIMEOUT": "nan"}, "RUNSPAN_BACKEND_TIMEOUT"),
        ({"CONCURRENCY": "0"}, "RUNSPAN_BACKEND_CONCURRENCY"),
        ({"CERTIFICATE": "/no/such/file.pem"}, "TLS files"),
    ],
)
def test_variables_that_are_refused(variables: dict[str, str], words: str) -> None:
    """The error names the variable and repeats no secret."""
    with pytest.raises(ConfigError, match=words) as caught:
        connect("tempo+https://host", env={f"RUNSPAN_BACKEND_{name}": value for name, value in variables.items()})
    assert "s3cr3t" not in str(caught.value)


def test_a_config_shows_no_secret() -> None:
    """Its repr has none of the headers and no tenant, and messages have none."""
    config = config_of("http://host", TOKEN="s3cr3t", HEADERS="k=h1dd3n", TENANT="0wn-t3nant")
    assert not any(secret in repr(config) for secret in ("s3cr3t", "h1dd3n", "0wn-t3nant"))
    assert {"Bearer s3cr3t", "s3cr3t", "h1dd3n", "0wn-t3nant"} == set(config.secrets)
    assert config_of("http://host").secrets == config_of("http://host", TENANT="runs-{tenant}").secrets == ()


@pytest.mark.parametrize("kind", ["tempo", "jaeger"])
def test_connect_opens_remote_backends(kind: str) -> None:
    """The URL's scheme decides; no request is sent yet."""
    reader = connect(f"{kind}+http://127.0.0.1:9/prefix")
    assert type(reader).__name__ == f"{kind.title()}Reader"
    reader.close()


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("tempo", RunQuery("t" * 70_000)),
        ("jaeger", RunQuery("t" * 70_000)),
    ],
    ids=["tenant", "tenant in Jaeger"],
)
def test_a_query_too_long_for_a_url(serve: Callable[[Respond], Server], kind: str, query: RunQuery) -> None:
    """The query is wrong, not the backend."""
    server = serve(lambda handler: handler.reply(200, b'{"services":["runspan"],"traces":[],"summaries":[]}'))
    reader = connect(f"{kind}+{server.url}")
    with pytest.raises(QueryError, match="fit into a URL"):
        reader.search(query)
    reader.close()
