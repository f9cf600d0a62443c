"""The API against its OpenAPI document: schemathesis sends valid and invalid requests and checks the responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from runspan.backends.sqlite import SqliteStore
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.web import JSON, document, serving


@schemathesis.serializer("application/x-protobuf")
def as_bytes(context: Any, value: Any) -> bytes:
    """Serialize any value as bytes, which must not break the receiver."""
    return bytes(value) if isinstance(value, (bytes, bytearray)) else str(getattr(value, "data", value)).encode()


@dataclass(frozen=True)
class Live:
    """A running server, and the headers of a key with all permissions."""

    url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory: Path = tmp_path_factory.mktemp("data")
    keys = ApiKeyStore(directory / "keys.sqlite3")
    headers = {"x-api-key": keys.create("test")[0]}
    config = WebConfig(reads_per_minute=0, writes_per_minute=0)
    with (
        SqliteStore(directory, index=True) as store,
        serving(create_app(store, store, keys=keys, config=config)) as client,
    ):
        client.post("/api/v1/runs", content=json.dumps(document("run_1")), headers=JSON | headers)
        yield Live(str(client.base_url), headers)
    keys.close()


def openapi_document(directory: Path) -> dict[str, Any]:
    """Return the OpenAPI document, which pytest needs to collect one test per operation."""
    with SqliteStore(directory) as store:
        found: dict[str, Any] = create_app(store, store).test_client().get("/api/v1/openapi.json").get_json()
    return found


with TemporaryDirectory() as temporary:
    schema = schemathesis.openapi.from_dict(openapi_document(Path(temporary)))


@schema.parametrize()
@settings(max_examples=settings.default.max_examples // 2, suppress_health_check=list(HealthCheck))
def test_responses_match_the_openapi_document(case: schemathesis.Case[Any], live: Live) -> None:
    """Status codes, content types, headers and bodies are documented, and no request causes a server error.

    Requests that match the schema may be refused: JSON Schema can describe neither cursors, nor documents without
    repeated keys.
    """
    case.call_and_validate(base_url=live.url, headers=live.headers, excluded_checks=[positive_data_acceptance])
