"""A watch survives every error of one item: it is reported, the others are sent, and it is tried again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runspan import export
from runspan.backends.sqlite import SqliteStore
from runspan.sources import RawDocument
from runspan.telemetry.registry import REFUSED
from runspan.watch import service
from runspan.watch.service import WatchService
from runspan.watch.state_db import WatchState
from support.watch import Bench, run, stored

FAILING: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "parse": (service, "parse", lambda piece: b'"bad"' in piece.data),
    "plan_send": (WatchState, "plan_send", lambda state, each, *_: each.id == "bad"),
    "encode": (export, "encode", lambda each, **_: each.id == "bad"),
    "write_run": (export, "write_run", lambda each, **_: each.id == "bad"),
}
"""A function, and for which arguments it fails."""


@pytest.mark.parametrize("name", FAILING)
def test_a_defect_in_one_document_stops_no_other(
    bench: Bench, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Whatever fails, of reading, planning and encoding: the document is reported by its place, the others are sent,
    and it is tried again when its file changes."""
    owner, function, is_bad = FAILING[name]
    real = getattr(owner, function)

    def failing(*args: Any, **named: Any) -> Any:
        if is_bad(*args):
            raise ZeroDivisionError
        return real(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, failing)
        bad = run("bad", "running" if name == "encode" else "completed")
        path = bench.write("a.ndjson", run("before"), bad, run("after"))
        bench.poll(3)
    assert [stored(store, each)["id"] for each in ("before", "after")] == ["before", "after"]
    (note,) = bench.notes
    assert note.startswith(f"{path}:2: internal error" if name == "parse" else "run bad: internal error")
    assert "ZeroDivisionError" in note
    assert str(path) in caplog.text or name == "write_run"
    assert (bench.poller.pending, bench.metrics.collect()[REFUSED]) == (0, 1)
    bench.write("a.ndjson", run("again"), replaced=False)
    bench.poll(3)
    assert stored(store, "bad") == bad
    assert (bench.sent(), len(bench.notes)) == (4, 1)


def test_a_file_that_fails_as_a_whole_stops_no_other(
    bench: Bench, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it until then is sent, and the rest when it changes."""
    real = service.pieces

    def failing(path: str, **_: bool) -> Iterator[RawDocument]:
        for number, piece in enumerate(real(path)):
            if path.endswith("bad.ndjson") and number:
                raise MemoryError
            yield piece

    path = bench.write("bad.ndjson", run("a"), run("b"))
    bench.write("good.json", run("c"))
    with monkeypatch.context() as patch:
        patch.setattr(service, "pieces", failing)
        bench.poll(3)
    assert (bench.sent(), stored(store, "a")["id"], stored(store, "c")["id"]) == (2, "a", "c")
    (note,) = bench.notes
    assert note.startswith(f"{path} after byte ")
    bench.write("bad.ndjson", run("d"), replaced=False)
    bench.poll(3)
    assert [stored(store, name)["id"] for name in "bd"] == ["b", "d"]


@pytest.mark.parametrize("function", ["_settle", "_poll", "_note_unreadable", "_update_metrics"])
def test_a_defect_in_a_round_is_outlived(
    bench: Bench, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """It is reported, and the next round begins anew after a pause that grows; nothing is lost and nothing doubled."""
    bench.write("a.json", run("a"))
    left = [3]
    real = getattr(WatchService, function)

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise ZeroDivisionError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(WatchService, function, failing)
        bench.poll(8)
    assert stored(store, "a") == run("a")
    assert re.search("internal error at .*: ZeroDivisionError", bench.notes[0])
    assert [note.rpartition("again in ")[2] for note in bench.notes] == ["4 s", "8 s", "16 s"]
    bench.poll(2)
    assert bench.poller.pending == 0


@pytest.mark.parametrize("number", [100, 1100, 200_000])
def test_nesting(bench: Bench, store: SqliteStore, number: int) -> None:
    """However deep a document is nested, the watch goes on."""
    (bench.path / "a.ndjson").write_bytes(
        b'{"id":"deep","status":"completed","output":' + b"[" * number + b"]" * number + b"}\n"
    )
    bench.write("b.json", run("b"))
    bench.poll(20)
    assert stored(store, "b") == run("b")
    assert bench.poller.pending == 0
