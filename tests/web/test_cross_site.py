"""Cross-site requests and DNS rebinding: other sites neither read nor write through a user's browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from runspan.backends.sqlite import SqliteStore
from runspan.errors import ConfigError
from runspan.model.span import run_ids
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.auth import OriginGuard
from runspan.web.config import WebConfig
from support.web import JSON, PROTOBUF, document, error_of, otlp, raw, serving

EVIL = "evil.example:8321"
TRACE = run_ids("run_1").trace_id.hex()
HINT = "allow it with `runspan serve --allow-host NAME`, or make a key with `runspan keys create`"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """A store with one run, whose workflow id occurs nowhere else."""
    with SqliteStore(tmp_path_factory.mktemp("data")) as store:
        with serving(create_app(store, store)) as client:
            assert client.post("/api/v1/runs", json=document(workflowId="wf_secret")).status_code == 201
        yield store


@pytest.fixture(scope="module")
def client(store: SqliteStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that could have keys and has none."""
    keys = ApiKeyStore(tmp_path_factory.mktemp("keys") / "keys")
    with serving(create_app(store, store, keys=keys)) as client:
        yield client
    keys.close()


def get_as(client: httpx.Client, name: str, path: str = "/api/v1/runs", **headers: str) -> httpx.Response:
    return client.get(path, headers={"Host": name, **headers})


LOOPBACK = [
    "localhost",
    "localhost:8321",
    "LOCALHOST:1",
    "localhost.",
    "runs.localhost:8321",
    "127.0.0.1",
    "127.0.0.1:8321",
    "127.1.2.3:80",
    "[::1]",
    "[::1]:8321",
    "[0:0:0:0:0:0:0:1]:8321",
]

FOREIGN_HOSTS = [
    EVIL,
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example:8321",
    "evillocalhost",
    "0.0.0.0:8321",
    "192.0.2.1:8321",
    "[2001:db8::1]:8321",
    "::1",
    "127.1",
    "2130706433",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost:8321:80",
    "localhost:http",
    "localhost, evil.example",
    "localhost/evil.example",
    "localhost evil.example",
    "[]",
]


@pytest.mark.parametrize("name", LOOPBACK)
def test_an_open_server_answers_to_the_names_of_loopback(client: httpx.Client, name: str) -> None:
    """The port, the case and the spelling of an address do not matter."""
    assert get_as(client, name).json()["data"][0]["workflowId"] == "wf_secret"


@pytest.mark.parametrize("name", FOREIGN_HOSTS)
def test_an_open_server_answers_to_no_other_name(client: httpx.Client, name: str) -> None:
    """A site whose name resolves to this machine (DNS rebinding) is refused, and the message says what to do."""
    message = error_of(get_as(client, name), 403, "FORBIDDEN")["message"]
    assert f"Host: expected localhost, 127.0.0.1, [::1] or an allowed name, got {name!r}" in message
    assert HINT in message


def test_a_second_host_header_changes_nothing(client: httpx.Client) -> None:
    """The first header is checked."""
    lines = f"Host: {EVIL}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    error_of(raw(client, f"GET /api/v1/runs HTTP/1.1\r\n{lines}".encode()), 403, "FORBIDDEN")


def test_a_client_without_a_host_header_is_not_a_browser(client: httpx.Client) -> None:
    """HTTP/1.0 has no such header."""
    assert raw(client, b"GET /api/v1/runs HTTP/1.0\r\n\r\n").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/runs/run_1",
        "/api/v1/runs/run_1/trace",
        "/api/v1/runs/none",
        f"/api/v1/traces/{TRACE}",
        "/pages/totals?run=run_1",
        "/pages/spread",
    ],
)
def test_no_route_reveals_runs_under_another_name(client: httpx.Client, path: str) -> None:
    """Neither the content of a run, nor its existence."""
    error_of(get_as(client, EVIL, path), 403, "FORBIDDEN")
    assert client.head(path, headers={"Host": EVIL}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/runs/run_1", "/compare?a=run_1&b=run_1"])
def test_a_page_under_another_name_says_what_to_do(client: httpx.Client, path: str) -> None:
    """The page explains how to allow the name."""
    response = get_as(client, "<b>mine</b>", path, Accept="text/html")
    assert response.status_code == 403
    assert "You are not allowed to read runs here" in response.text
    assert "runspan serve --allow-host NAME" in response.text
    assert "<b>" not in response.text


def test_nothing_is_written_under_another_name(client: httpx.Client, store: SqliteStore) -> None:
    """This holds for documents and spans; OTLP senders get the error in their own form."""
    refused = client.post("/api/v1/runs", json=document("planted"), headers={"Host": EVIL})
    error_of(refused, 403, "FORBIDDEN")
    refused = client.post("/v1/traces", content=otlp(document("planted")), headers=PROTOBUF | {"Host": EVIL})
    assert refused.status_code == 403
    assert HINT in Status.FromString(refused.content).message
    assert stored_ids(store) == ["run_1"]


def test_probes_and_scrapers_use_any_name(client: httpx.Client) -> None:
    """Health checks and Prometheus may use any name of the server; the responses reveal nothing of runs."""
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"):
        response = get_as(client, "runspan:8321", path)
        assert response.status_code == 200
        assert "run_1" not in response.text
        assert "wf_secret" not in response.text


def test_names_can_be_allowed(store: SqliteStore) -> None:
    """Configured names and that of the public URL are accepted with any port, but not their subdomains."""
    allowed = ("host.docker.internal", "My-Box.", "192.0.2.7", "2001:db8::0:1")
    config = WebConfig(allowed_hosts=allowed, public_url="https://runs.example.com/runspan", metrics_open=False)
    with serving(create_app(store, store, config=config)) as client:
        for name in (*LOOPBACK, "host.docker.internal:8321", "my-box", "192.0.2.7:1", "[2001:db8::1]:80"):
            assert get_as(client, name).status_code == 200, name
        for name in ("runs.example.com", "RUNS.EXAMPLE.COM:443"):
            assert get_as(client, name, "/").status_code == 200, name
        for name in ("docker.internal", "x.my-box", "192.0.2.70", "example.com", "a.runs.example.com"):
            assert get_as(client, name).status_code == 403, name
        assert get_as(client, EVIL, "/metrics").status_code == 403
        posted = client.post(
            "/api/v1/runs", json=document(), headers={"Host": "10.0.0.1", "Origin": "https://runs.example.com"}
        )
        assert posted.status_code == 403


@pytest.mark.parametrize("name", ["", "a:80", "[::1]:80", "http://a", "*", "a b", "a/b", "u@a", "é.example", "[::1"])
def test_an_invalid_name_is_refused(name: str) -> None:
    """It would never match, while it seems to be allowed."""
    with pytest.raises(ConfigError, match="without a port, such as"):
        OriginGuard([name])


def test_with_keys_any_name_is_accepted(store: SqliteStore, tmp_path: Path) -> None:
    """No other site has a key, so a client with one may use any name; others get 401."""
    keys = ApiKeyStore(tmp_path / "keys")
    secret, _ = keys.create("a")
    with serving(create_app(store, store, keys=keys)) as client:
        assert get_as(client, EVIL, "/api/v1/runs", **{"x-api-key": secret}).status_code == 200
        error_of(get_as(client, EVIL), 401, "UNAUTHORIZED")
    keys.close()


# Pages of other sites that know the server's own address.

FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:1"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "null"},
    {"Origin": "http://["},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_writes_nothing(
    client: httpx.Client, store: SqliteStore, headers: dict[str, str]
) -> None:
    """Not even with a content type that requires a preflight request."""
    text = json.dumps(document("planted"))
    refused = client.post("/api/v1/runs", content=text, headers=JSON | headers)
    assert "no other site may write" in error_of(refused, 403, "FORBIDDEN")["message"]
    assert client.post("/v1/traces", content=otlp(document("planted")), headers=PROTOBUF | headers).status_code == 403
    assert stored_ids(store) == ["run_1"]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "multipart/form-data", ""],
)
def test_a_form_writes_nothing(client: httpx.Client, store: SqliteStore, kind: str) -> None:
    """A page may send these content types without a preflight request, and an old browser sends no origin."""
    for path, content in (("/api/v1/runs", json.dumps(document("planted")).encode()), ("/v1/traces", b"{}")):
        response = client.post(path, content=content, headers={"Content-Type": kind} if kind else {})
        assert response.status_code == 415
    assert stored_ids(store) == ["run_1"]


def test_own_pages_and_programs_write(store: SqliteStore, client: httpx.Client) -> None:
    """A page of this server, an action of the user, and clients that send neither header."""
    own = str(client.base_url).rstrip("/")
    for headers in ({"Origin": own}, {"Sec-Fetch-Site": "same-origin", "Origin": own}, {"Sec-Fetch-Site": "none"}, {}):
        assert client.post("/api/v1/runs", json=document(workflowId="wf_secret"), headers=headers).status_code == 200
    assert stored_ids(store) == ["run_1"]


@pytest.mark.parametrize("path", ["/api/v1/runs", "/v1/traces", "/api/v1/runs/run_1", "/login"])
def test_there_is_no_cors(client: httpx.Client, path: str) -> None:
    """Neither a preflight request nor a response permits another site anything."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (client.options(path, headers=headers), client.get(path, headers=headers)):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def stored_ids(store: SqliteStore) -> list[str]:
    with serving(create_app(store)) as client:
        return [run["id"] for run in client.get("/api/v1/runs").json()["data"]]
