"""A backend with tenants of its own: each request carries that of the runs it is about, and no other is ever read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runspan.backends.remote.config import remote_config
from runspan.errors import ConfigError, Forbidden
from runspan.model.span import run_ids
from support.cli import runspan, server
from support.servers.finding import require
from support.servers.tempo import IMAGE, Tempo, start_tempo
from support.web import document, error_of

URL = "tempo+http://127.0.0.1:3200"


def test_the_tenant_of_the_runs_becomes_that_of_the_backend() -> None:
    """The header and the name around the tenant are configured."""
    env = {"RUNSPAN_BACKEND_TENANT": "runs-{tenant}", "RUNSPAN_BACKEND_TENANT_HEADER": "X-Company"}
    config = remote_config(URL, env)
    assert config.headers == ()
    assert config.tenant_headers("acme") == (("x-company", "runs-acme"),)


def test_a_fixed_tenant_is_that_of_all_runs() -> None:
    """Without the placeholder every request has the same header, also a forwarded one; without any there is none."""
    config = remote_config(URL, {"RUNSPAN_BACKEND_TENANT": "prod"})
    assert config.headers == config.tenant_headers("acme") == config.tenant_headers("") == (("x-scope-orgid", "prod"),)
    assert remote_config(URL, {}).tenant_headers("acme") == ()


@pytest.mark.parametrize("tenant", ["", "a|b", "..", "a/b", "a b", "ä", "a\r\nb", "x" * 151])
def test_a_tenant_that_is_no_name_for_the_backend_is_refused(tenant: str) -> None:
    """Tempo reads several tenants for ``a|b``, and none without a header."""
    with pytest.raises(Forbidden, match="tenant"):
        remote_config(URL, {"RUNSPAN_BACKEND_TENANT": "{tenant}"}).tenant_headers(tenant)


def test_what_no_header_can_carry_is_refused_at_the_start() -> None:
    """A wrong variable is no reason for errors of requests."""
    with pytest.raises(ConfigError, match="RUNSPAN_BACKEND_TENANT"):
        remote_config(URL, {"RUNSPAN_BACKEND_TENANT": "ä{tenant}"})


@pytest.fixture(scope="module")
def tempo_of_tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempo]:
    """A Tempo that keeps tenants apart."""
    place = require("tempo", IMAGE)
    if place.urls is not None:
        pytest.skip("a Tempo that is named may have no tenants")
    tempo = start_tempo(place, tmp_path_factory.mktemp("tempo"), {"multitenancy_enabled": True})
    yield tempo
    tempo.stop()


def test_companies_share_a_server_and_no_tenant_of_tempo(tmp_path: Path, tempo_of_tenants: Tempo) -> None:
    """Runs of two companies, written and read through one server, lie in two tenants of Tempo; a key without a tenant
    reads nothing, and the commands read what they name."""
    tempo = tempo_of_tenants
    env = {"RUNSPAN_BACKEND_TENANT": "runs-{tenant}", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    args = ("--backend", f"tempo+{tempo.url}", "--forward-to", tempo.otlp)
    keys = {}
    for tenant in ("acme", "beta", "", "a|b"):
        made = runspan("keys", "create", "--data", tmp_path, "--name", "x", "--tenant", tenant, "--json")
        keys[tenant] = {"x-api-key": json.loads(made.stdout)["key"]}
    with server(tmp_path, *args, **env) as (url, _), httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for tenant in ("acme", "beta"):
            run = document("run_1", output=tenant)
            assert client.post("/api/v1/runs", json=run, headers=keys[tenant]).status_code == 202
            deadline = time.monotonic() + 60
            while client.get("/api/v1/runs", headers=keys[tenant]).json()["data"] == []:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert client.get("/api/v1/runs/run_1", headers=keys[tenant]).json()["data"] == run
        for tenant in ("", "a|b"):
            for path in ("/api/v1/runs", "/api/v1/runs/run_1", "/api/v1/traces/" + "a" * 32):
                error_of(client.get(path, headers=keys[tenant]), 403, "FORBIDDEN")
            error_of(client.post("/api/v1/runs", json=document(), headers=keys[tenant]), 403, "FORBIDDEN")
        assert client.get("/readyz").status_code == 200
    for tenant, other in (("acme", "beta"), ("beta", "acme")):
        trace = f"{tempo.url}/api/traces/{run_ids('run_1', tenant).trace_id.hex()}"
        for name, status in ((tenant, 200), (other, 404)):
            assert httpx.get(trace, headers={"X-Scope-OrgID": f"runs-{name}"}, trust_env=False).status_code == status
        found = runspan("get", "run_1", "--backend", f"tempo+{tempo.url}", "--tenant", tenant, **env)
        assert json.loads(found.stdout)["output"] == tenant
