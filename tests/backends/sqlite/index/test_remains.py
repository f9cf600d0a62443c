"""Nothing of the text of a run that was deleted, or has changed, stays in the files of a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep

import pytest

from backends.sqlite.index.test_search import START, found, make_run
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.index import indexer
from runspan.model.timestamps import SECOND, rfc3339

DAY = 86_400 * SECOND
LETTERS = "\U00010348\U0001f600\U0001d11e"
"""Of four bytes each, which are nowhere by chance; as a text they are one entry of the index."""


def remains(folder: Path) -> set[str]:
    """Return the names of the files that have one of the letters."""
    # Logs before their databases, into which they are written meanwhile.
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir(), reverse=True)}
    return {name for name, content in contents.items() if any(letter.encode() in content for letter in LETTERS)}


def secret_run(number: int) -> Run:
    """Return a run with the letters in its output and its error."""
    return make_run(number, {"customer": f"cus_4711 {LETTERS}"}, status="failed", error={"message": LETTERS})


def purge(store: SqliteStore, run: Run) -> None:
    assert store.purge([(sha256(run.text).digest(), run.id)]).deleted == 1
    store.vacuum()


def expire(store: SqliteStore, run: Run) -> None:
    assert store.expire(START + 31 * DAY) == 1


def correct(store: SqliteStore, run: Run) -> None:
    """Replace the document by one without the letters."""
    document = json.loads(run.text)
    document["steps"][0]["output"] = document["error"]["message"] = "redacted"
    assert store.put(Run.from_json(json.dumps(document)), observed_at=START + SECOND).changed
    store.vacuum()


@pytest.mark.parametrize("delete", [purge, expire, correct])
def test_its_text_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delete: Callable[[SqliteStore, Run], None]
) -> None:
    """Also while other runs of its week stay, which are found as before."""
    monkeypatch.setattr(indexer, "_IDLE", 0.1)
    monkeypatch.setattr(indexer, "_PAUSES", 1)  # on a busy machine a hundred times as long is too long
    others = [make_run(number, f"cus_4711 and {number}" * 9) for number in range(1, 200)]
    secret = secret_run(0)
    with SqliteStore(tmp_path, index=True, retention_days=30, clock=lambda: START + 2 * DAY) as store:
        ended = {"completedAt": rfc3339(START + 2 * DAY)}
        for run in [Run.from_dict(run.to_dict() | ended) for run in others[:100]]:
            store.put(run, observed_at=START)
        store.put(secret, observed_at=START)
        assert found(store, LETTERS) == [secret.id]
        assert {"index.sqlite3", "index.sqlite3-wal"} & remains(tmp_path)
        for run in [Run.from_dict(run.to_dict() | ended) for run in others[100:]]:
            store.put(run, observed_at=START)
        assert len(found(store, "cus_4711")) == 200
        delete(store, secret)
        assert found(store, LETTERS) == []
        deadline = monotonic() + 60
        while remains(tmp_path) and monotonic() < deadline:
            sleep(0.05)
        assert remains(tmp_path) == set()
        assert [run_id for run_id in found(store, "cus_4711") if run_id != secret.id] == [
            run.id for run in reversed(others)
        ]
        assert store.index_faults() == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The next one that keeps the index goes on."""
    with SqliteStore(tmp_path, index=True) as store:
        store.put(secret_run(0), observed_at=START)
        store.put(make_run(1), observed_at=START)
        assert found(store, LETTERS) == ["run_000"]
    with SqliteStore(tmp_path) as store:  # brings the index up to date, and removes nothing
        purge(store, secret_run(0))
        assert found(store, LETTERS) == []
        assert remains(tmp_path) != set()
    with SqliteStore(tmp_path, index=True):
        deadline = monotonic() + 60
        while remains(tmp_path) and monotonic() < deadline:
            sleep(0.05)
        assert remains(tmp_path) == set()
