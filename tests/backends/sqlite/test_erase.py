"""A tenant that was erased is in no file of the data directory, and the others have all they had."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.compression import TRAINING_RUNS
from runspan.backends.sqlite.erase import TenantContent, copies_in, erase_tenant, tenant_content
from runspan.contracts import RunQuery
from runspan.errors import NotFound, StoreError
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import runspan

NOW = 1_768_467_700_000_000_000
RUNS = TRAINING_RUNS // 2 + 50
"""Of each of the two tenants: together enough for a dictionary."""
SLICE = 24
"""Bytes of what was stored that are looked for: too many to be there by chance."""


def run_of(tenant: str, number: int, **members: Any) -> Run:
    secret = f"{tenant}-secret-{number * 7919 % 1_000_003:06d}"
    step = {"id": "a", "status": "completed", "input": {f"{tenant}Account": secret}, "output": [secret, tenant] * 4}
    return Run.from_dict(
        {
            "id": f"{tenant}-run-{number}",
            "workflowId": f"{tenant}-workflow",
            "status": "completed",
            "startedAt": "2026-01-15T09:00:01.000Z",
            "completedAt": "2026-01-15T09:00:04.500Z",
            "error": {"code": f"{tenant}-code", "message": secret},
            "steps": [step],
        }
        | members
    )


def send(store: SqliteStore, spans: list[Span], tenant: str) -> None:
    body = request_bytes(Resource(f"{tenant}-service"), map(scoped_bytes, spans))
    assert not store.write(read_protobuf(body), tenant).rejected


def foreign_span(tenant: str) -> Span:
    trace_id = run_ids(f"{tenant}-run-1", tenant).trace_id
    own = [("db.statement", f"select {tenant}")]
    return Span(trace_id, b"\x01" * 8, b"", f"{tenant}-query", 1, NOW, NOW + 1, 0, "", (), own)


@pytest.fixture
def directory(filled: Path, tmp_path: Path) -> Path:
    """A copy of the store."""
    return Path(shutil.copytree(filled, tmp_path / "data"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two tenants with everything that it keeps: a dictionary, an index, spans of other instrumentation,
    spans that wait, steps that a later revision does not have, and free pages with what was deleted before."""
    folder = tmp_path_factory.mktemp("erase") / "data"
    with SqliteStore(folder, index=True) as store:
        for start in range(0, RUNS, 50):
            for tenant in ("acme", "beta"):
                runs = [run_of(tenant, number) for number in range(start, start + 50)]
                send(store, [span for run in runs for span in encode(run, tenant=tenant)], tenant)
        while store._training is None:
            store.put(run_of("beta", RUNS), tenant="beta", observed_at=NOW)
        store._training.join()
        for tenant in ("acme", "beta"):
            store.put(run_of(tenant, RUNS + 1), tenant=tenant, observed_at=NOW)
            send(store, [foreign_span(tenant)], tenant)
            *_, waiting = encode(run_of(tenant, RUNS + 2), tenant=tenant)
            send(store, [waiting], tenant)
            changed = run_of(tenant, 1, steps=[{"id": "b", "status": "completed", "output": f"{tenant} changed"}])
            store.put(changed, tenant=tenant, observed_at=NOW)
            send(store, encode(run_of(tenant, RUNS + 3), tenant=tenant), tenant)
        assert store.search(RunQuery("acme", text="acme-secret")).items
    return folder


def stored_bytes(directory: Path, tenant: str) -> set[bytes]:
    """Parts of everything that is stored of a tenant, as it is in the file, and of its texts in the dictionaries."""
    found: set[bytes] = {f"{tenant}-{part}".encode() for part in ("run-1", "secret", "workflow", "code", "service")}
    owner = tenant.encode()
    with closing(sqlite3.connect(directory / "runspan.sqlite3")) as connection:
        for table, column in (("runs", "document"), ("foreign_spans", "otlp"), ("fragments", "content")):
            rows = connection.execute(f"SELECT {column} FROM {table} WHERE tenant = ?", (owner,)).fetchall()
            assert rows, table
            found |= {row[0][-SLICE - 8 : -8] for row in rows[::20]}
        for (content,) in connection.execute("SELECT content FROM dictionaries"):
            texts = {content[place.start() : place.start() + SLICE] for place in re.finditer(owner, content)}
            assert texts
            found |= texts
    return found


def in_files(directory: Path, parts: set[bytes]) -> set[bytes]:
    """Which of these are in a file of the directory."""
    contents = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    return {part for part in parts if any(part in content for content in contents)}


def documents(directory: Path, tenant: str) -> Iterator[tuple[str, bytes]]:
    with SqliteStore(directory) as store:
        for number in (*range(0, RUNS, 10), RUNS + 1, RUNS + 3):
            yield f"{number}", store.document(f"{tenant}-run-{number}", tenant).text


def spans_of_changed_run(store: SqliteStore) -> list[tuple[bytes, str, dict[str, Any]]]:
    found = store.spans(run_ids("beta-run-1", "beta").trace_id, "beta")
    return sorted((span.span_id, span.name, span.attributes()) for span in found)


def test_nothing_of_an_erased_tenant_is_left_in_any_file(directory: Path) -> None:
    """Neither texts, nor compressed rows, nor parts of the dictionary, nor the index; the other tenant's documents are
    the same, its spans and what waits too, and everything is sound."""
    parts = stored_bytes(directory, "acme")
    assert len(in_files(directory, parts)) > 60  # and the others lie across the ends of pages
    kept, others = dict(documents(directory, "beta")), tenant_content(directory, "beta")
    with SqliteStore(directory) as store:
        spans = spans_of_changed_run(store)
    erased = erase_tenant(directory, "acme", lambda what, done, total: None)
    assert erased == TenantContent(RUNS + 2, 1, others.fragments)
    assert in_files(directory, parts) == set()
    assert tenant_content(directory, "acme") == TenantContent(0, 0, 0)
    assert dict(documents(directory, "beta")) == kept
    assert tenant_content(directory, "beta") == others
    with SqliteStore(directory, index=True) as store:
        assert list(store.find_damage()) == []
        assert spans_of_changed_run(store) == spans
        with pytest.raises(NotFound):
            store.document("acme-run-1", "acme")
        assert store.search(RunQuery("acme", text="acme-secret")).items == []
        assert len(store.search(RunQuery("beta", text="beta-secret")).items) == 50
        # The steps that the newer revision does not have are still there: without it the older one is complete.
        send(store, encode(run_of("beta", RUNS + 2), tenant="beta"), "beta")
        assert store.document(f"beta-run-{RUNS + 2}", "beta").text == run_of("beta", RUNS + 2).text
    assert in_files(directory, parts) == set()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("point", ["deleting from runs", "compressing runs", "compressing foreign_spans", "writing"])
def test_an_interrupted_erasure_is_finished_by_the_next_one(directory: Path, point: str) -> None:
    """Wherever it ends, the other tenant can be read, and a repeated call leaves nothing."""
    parts = stored_bytes(directory, "acme")
    kept = dict(documents(directory, "beta"))

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith(point):
            raise Stopped

    with pytest.raises(Stopped):
        erase_tenant(directory, "acme", stop)
    assert dict(documents(directory, "beta")) == kept
    erase_tenant(directory, "acme", lambda what, done, total: None)
    assert in_files(directory, parts) == set()
    assert dict(documents(directory, "beta")) == kept


def test_a_store_that_is_open_is_not_changed(directory: Path) -> None:
    """Its server would have parts of the tenant in memory, and write them again."""
    before = tenant_content(directory, "acme")
    with SqliteStore(directory), pytest.raises(StoreError, match="in use"):
        erase_tenant(directory, "acme", lambda what, done, total: None)
    assert tenant_content(directory, "acme") == before


def test_the_command_says_what_it_erases_and_what_it_leaves(directory: Path) -> None:
    """Without --yes nothing is erased; keys are revoked; what was put aside is named, and deleted with --copies."""
    runspan("keys", "create", "--data", directory, "--name", "theirs", "--tenant", "acme")
    runspan("keys", "create", "--data", directory, "--name", "ours", "--tenant", "beta")
    planned = runspan("erase", "--data", directory, "--tenant", "acme", code=1)
    assert f"{RUNS + 2} runs, 1 span of other instrumentation" in planned.stderr
    assert "would be erased" in planned.stderr
    assert tenant_content(directory, "acme").runs == RUNS + 2
    (directory / "replaced-1").mkdir()
    (directory / "replaced-1" / "runspan.sqlite3").write_bytes(b"acme-secret")
    (directory / "set-aside-1.ndjson").write_bytes(b"acme-secret")
    done = runspan("erase", "--data", directory, "--tenant", "acme", "--yes", code=1)
    assert "1 API key revoked" in done.stderr
    assert "set-aside-1.ndjson was put aside" in done.stderr
    done = runspan("erase", "--data", directory, "--tenant", "acme", "--yes", "--copies", "--json")
    assert '"erased": true' in done.stdout
    assert copies_in(directory) == []
    assert in_files(directory, {b"acme-secret"}) == set()
    keys = runspan("keys", "list", "--data", directory).stdout
    assert keys.count("revoked") == 1
    assert "no runs" in runspan("list", "--data", directory, "--tenant", "acme").stderr.lower()


def test_the_keys_of_a_server_that_keeps_them_elsewhere_are_revoked_too(directory: Path, tmp_path: Path) -> None:
    """`serve --backend sqlite:DIR --data KEYS`: with its keys a client would send the tenant's runs again."""
    for folder in (directory, tmp_path / "keys"):
        runspan("keys", "create", "--data", folder, "--name", "theirs", "--tenant", "acme")
    args = ("--backend", f"sqlite:{directory}", "--data", tmp_path / "keys", "--tenant", "acme", "--yes")
    assert "2 API keys revoked" in runspan("erase", *args).stderr
    for folder in (directory, tmp_path / "keys"):
        assert runspan("keys", "list", "--data", folder).stdout.count("revoked") == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--backend", "tempo+http://127.0.0.1:1"), 6, "block_retention"),
        (("--backend", "jaeger+http://127.0.0.1:1"), 6, "ttl"),
        (("--backend", "http://127.0.0.1:1"), 6, "on the machine of that server"),
        ((), 2, "no runs are kept here"),
    ],
)
def test_other_backends_are_told_apart(tmp_path: Path, args: tuple[str, ...], code: int, message: str) -> None:
    """What cannot be erased is never reported as erased: the error says what can be done."""
    refused = runspan("erase", "--data", tmp_path, *args, "--tenant", "acme", "--yes", code=code)
    assert message in refused.stderr
