"""Content codings, entity tags and conditional requests: the same bytes in every coding, or none if they are known."""

from __future__ import annotations

import gzip
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard

from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.codec.decode import decode
from runspan.contracts import Document
from runspan.model.document import Run
from runspan.model.span import run_ids
from runspan.platform_api.client import ApiClient
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.content_coding import negotiate
from support.web import JSON, document, error_of, serving

# A client that decodes a single frame gets everything.
DECODERS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "zstd": zstandard.ZstdDecompressor().decompress,
}
TEXTS = {
    "small": b'{"id":"small"}',
    "payloads": b'{"id":"payloads","output":{"b": 1, "a":[12.10,-0.0,1e400, "\\u0000\\ud800"], "b":"%b"}}'
    % ("ü💥" * 1000).encode(),
    "large": b'{"id":"large","output":%b}' % json.dumps([str(number) for number in range(300_000)], indent=1).encode(),
}


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store)) as client:
        for text in TEXTS.values():
            store.put(Run.from_json(text), observed_at=time.time_ns())
        yield client


def fetch(client: httpx.Client, path: str, method: str = "GET", **headers: str) -> tuple[Any, bytes]:
    """Return the response as it is on the wire, and its body."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def path_of(run_id: str) -> str:
    return f"/api/v1/runs/{quote(run_id, safe='')}"


@pytest.mark.parametrize(
    ("accept_encoding", "coding", "min_bytes"),
    [
        (None, None, 1024),
        ("", None, 1024),
        ("gzip", "gzip", 1024),
        ("GZip", "gzip", 1024),
        ("gzip, deflate, br, zstd", "zstd", 1024),
        ("gzip;q=0.5, zstd;q=0.4", "gzip", 1024),
        ("gzip;q=0.5, identity", None, 1024),
        ("gzip;q=0.5, identity;q=0.4", "gzip", 1024),
        ("gzip, identity", "gzip", 1024),
        ("*", "gzip", 1024),
        ("zstd, *;q=0.1", "zstd", 1024),
        ("gzip;q=0, *", "zstd", 1024),
        ("gzip;q=0", None, 1024),
        ("gzip;q=0, zstd;q=0", None, 1024),
        ("br", None, 1024),
        ("identity", None, 1024),
        ("identity;q=0, gzip", "gzip", 0),
        ("zstd, *;q=0", "zstd", 0),
        ("zstd, identity;q=0.001, *;q=0", "zstd", 1024),
        ("identity;q=0, *", "gzip", 0),
        ("identity;q=0", None, 1024),  # nothing else is left, so it is disregarded
        ("*;q=0", None, 1024),
        ("gzip;q=nonsense, zstd", "zstd", 1024),
        (";;,,=", None, 1024),
    ],
)
def test_a_coding_is_negotiated(accept_encoding: str | None, coding: str | None, min_bytes: int) -> None:
    """See RFC 9110, section 12.5.3."""
    found = negotiate(accept_encoding)
    assert (found.coding and found.coding.name, found.min_bytes) == (coding, min_bytes)


@pytest.mark.parametrize("run_id", TEXTS)
@pytest.mark.parametrize("coding", DECODERS)
def test_a_document_is_the_same_in_every_coding(client: httpx.Client, run_id: str, coding: str | None) -> None:
    """Byte for byte, from a real decoder, and shorter on the wire if it is compressed at all."""
    response, body = fetch(client, path_of(run_id), **({"Accept_Encoding": coding} if coding else {}))
    expected = b'{"success":true,"data":' + TEXTS[run_id] + b"}"
    used = coding if len(expected) >= 1024 else None
    assert response.headers["content-encoding"] == used
    assert DECODERS[used](body) == expected
    assert len(body) < len(expected) / 2 or used is None
    assert response.headers["content-length"] == str(len(body))
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    "path",
    [
        *map(path_of, TEXTS),
        "/api/v1/runs",
        f"/api/v1/traces/{run_ids('small').trace_id.hex()}",
        "/api/v1/runs/small/trace",
        "/api/v1/openapi.json",
    ],
)
@pytest.mark.parametrize("coding", DECODERS)
def test_head_has_the_headers_of_get(client: httpx.Client, path: str, coding: str | None) -> None:
    """All of them, and no body."""
    headers = {"Accept_Encoding": coding} if coding else {}
    got, _ = fetch(client, path, **headers)
    head, body = fetch(client, path, "HEAD", **headers)
    assert body == b""
    assert head.status == 200
    assert {**head.headers, "Date": ""} == {**got.headers, "Date": ""}


def test_runspans_own_client_takes_zstd(client: httpx.Client) -> None:
    """The document comes back byte for byte, at a fraction of its size on the wire."""
    url = str(client.base_url)
    with closing(ApiClient(url, key_hint="")) as api:
        response = api.get(path_of("large"), {}, None)
    assert response.headers["content-encoding"] == "zstd"
    assert int(response.headers["content-length"]) < len(response.content) / 2
    with closing(RunspanApiReader(url)) as reader:
        for run_id, text in TEXTS.items():
            assert reader.document(run_id).text == text
        assert decode(reader.spans(run_ids("large").trace_id)).text == TEXTS["large"]


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("run_id", TEXTS)
def test_curl_decodes_what_it_takes(client: httpx.Client, run_id: str) -> None:
    """With the codings that it was built with."""
    command = ["curl", "--silent", "--fail", "--compressed", f"{client.base_url}{path_of(run_id)}"]
    expected = b'{"success":true,"data":' + TEXTS[run_id] + b"}"
    assert subprocess.run(command, capture_output=True, check=True).stdout == expected


def test_an_identity_that_is_refused_is_not_sent(client: httpx.Client) -> None:
    """However short the body is."""
    response, body = fetch(client, path_of("small"), Accept_Encoding="gzip, identity;q=0")
    assert response.headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == b'{"success":true,"data":{"id":"small"}}'


@pytest.mark.parametrize("coding", DECODERS)
def test_lists_traces_and_the_openapi_document_are_encoded(client: httpx.Client, coding: str | None) -> None:
    """Also a trace that is made piece by piece."""
    trace = f"/api/v1/traces/{run_ids('large').trace_id.hex()}"
    headers = {"Accept_Encoding": coding} if coding else {}
    for path in ("/api/v1/runs?limit=50", trace, "/api/v1/openapi.json"):
        plain, expected = fetch(client, path)
        response, body = fetch(client, path, **headers)
        used = coding if len(expected) >= 1024 else None
        assert response.headers["content-encoding"] == used
        assert response.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        unpack = zstandard.ZstdDecompressor().decompressobj().decompress if used == "zstd" else DECODERS[used]
        assert unpack(body) == expected


def test_errors_are_not_encoded(client: httpx.Client) -> None:
    """They repeat parts of the request, which a page of another site may choose."""
    response, body = fetch(client, f"/api/v1/runs?cursor={'x' * 5000}&since=1", Accept_Encoding="gzip")
    assert response.status == 400
    assert response.headers["content-encoding"] is None
    assert json.loads(body)["success"] is False
    assert response.headers["cache-control"] == "no-store"


# Entity tags.


def test_the_tag_is_strong_only_for_the_bytes_themselves(client: httpx.Client) -> None:
    """It is the digest of the document, and weak for a client that takes a coding, whatever the size."""
    for run_id in TEXTS:
        strong = fetch(client, path_of(run_id))[0].headers["etag"]
        assert len(strong) == 34
        for coding in ("gzip", "zstd"):
            assert fetch(client, path_of(run_id), Accept_Encoding=coding)[0].headers["etag"] == f"W/{strong}"


@pytest.mark.parametrize("accept_encoding", ["", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{} , "x"', "*"])
def test_a_known_document_is_not_sent(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, form: str, accept_encoding: str
) -> None:
    """It is not even read, and the response has the headers of the full one, but for those of a body."""
    full, _ = fetch(client, path_of("large"), Accept_Encoding=accept_encoding)
    strong = full.headers["etag"].removeprefix("W/")
    monkeypatch.setattr(SqliteStore, "document", None)
    for method in ("GET", "HEAD"):
        response, body = fetch(
            client, path_of("large"), method, If_None_Match=form.format(strong), Accept_Encoding=accept_encoding
        )
        assert (response.status, body) == (304, b"")
        for name in ("etag", "vary", "cache-control", "x-content-type-options"):
            assert response.headers[name] == full.headers[name]
        assert "content-length" not in response.headers
        assert "content-type" not in response.headers


def test_a_connection_goes_on_after_304(client: httpx.Client) -> None:
    """A client that revalidates many runs needs one connection."""
    tag = client.get(path_of("small")).headers["etag"]
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    connection.connect()
    first = connection.sock
    for _ in range(3):
        connection.request("GET", path_of("small"), headers={"If-None-Match": tag})
        response = connection.getresponse()
        assert (response.status, response.read()) == (304, b"")
        assert connection.sock is first
    connection.close()


@pytest.mark.parametrize("tag", ['"other"', 'W/"other"', "", "nonsense", '"'])
def test_any_other_tag_gets_the_document(client: httpx.Client, tag: str) -> None:
    """Also what is no tag at all."""
    response, body = fetch(client, path_of("small"), If_None_Match=tag)
    assert (response.status, body) == (200, b'{"success":true,"data":{"id":"small"}}')


def test_a_changed_document_has_another_tag(client: httpx.Client) -> None:
    """The old tag gets the new document."""
    before = client.get(path_of("small")).headers["etag"]
    assert client.post("/api/v1/runs", content=b'{"id":"small","status":"failed"}', headers=JSON).status_code == 201
    response = client.get(path_of("small"), headers={"If-None-Match": before})
    assert response.json()["data"] == {"id": "small", "status": "failed"}
    assert response.headers["etag"] != before


def test_a_run_whose_id_ends_in_trace_is_revalidated_too(client: httpx.Client, store: SqliteStore) -> None:
    """Its route is another one."""
    store.put(Run.from_json(b'{"id":"a/trace"}'), observed_at=time.time_ns())
    full, body = fetch(client, path_of("a/trace"), Accept_Encoding="gzip")
    assert json.loads(body)["data"] == {"id": "a/trace"}
    assert full.headers["cache-control"] == "private, no-cache"
    known, body = fetch(client, path_of("a/trace"), If_None_Match=full.headers["etag"])
    assert (known.status, body) == (304, b"")
    assert "content-type" not in known.headers


def test_what_is_missing_is_part_of_the_tag() -> None:
    """A cache keeps the headers of a run too, which say that a newer revision is incomplete."""

    class Reader:
        notes: tuple[str, ...] = ()

        def document(self, run_id: str, tenant: str = "") -> Document:
            return Document(b'{"id":"x"}', self.notes)

    reader = Reader()
    with serving(create_app(reader)) as client:  # type: ignore[arg-type]
        tag = client.get(path_of("x")).headers["etag"]
        assert client.get(path_of("x"), headers={"If-None-Match": tag}).status_code == 304
        reader.notes = ("1 of 2 step spans",)
        response = client.get(path_of("x"), headers={"If-None-Match": tag})
        assert response.status_code == 200
        assert response.headers["x-runspan-incomplete"] == "1 of 2 step spans"
        again = client.get(path_of("x"), headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["x-runspan-incomplete"] == "1 of 2 step spans"


def test_a_tag_opens_nothing(tmp_path: Path) -> None:
    """A request with a tag needs a key as any other, and learns nothing of another tenant's runs."""
    keys = ApiKeyStore(tmp_path / "keys.sqlite3")
    (owner, key), (other, _) = (keys.create("x", tenant=tenant) for tenant in ("acme", "beta"))
    with SqliteStore(tmp_path) as store, serving(create_app(store, store, keys=keys)) as client:
        store.put(Run.from_dict(document("r")), tenant="acme", observed_at=time.time_ns())
        tag = client.get(path_of("r"), headers={"x-api-key": owner}).headers["etag"]
        condition = {"If-None-Match": tag}
        error_of(client.get(path_of("r"), headers=condition), 401, "UNAUTHORIZED")
        error_of(client.get(path_of("r"), headers=condition | {"x-api-key": other}), 404, "NOT_FOUND")
        assert client.get(path_of("r"), headers=condition | {"x-api-key": owner}).status_code == 304
        keys.revoke(key.id)
        error_of(client.get(path_of("r"), headers=condition | {"x-api-key": owner}), 401, "UNAUTHORIZED")
    keys.close()
