"""The embedded store: partly repeated deliveries, and reads during the write that completes a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conformance.harness import T0, make_run, write_spans
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.queries import add_digest, split_digests
from runspan.backends.sqlite.store import ConnectionPool

DAY = 86_400_000_000_000


def read(store: SqliteStore, run: Run) -> tuple[bytes, bool]:
    document = store.document(run.id)
    return document.text, document.incomplete == ()


def test_a_revision_span_that_is_repeated_after_a_correction_changes_nothing(store: SqliteStore) -> None:
    """A retry of a corrected document's revision span, without its steps, leaves the correction complete."""
    first, corrected = make_run("r"), make_run("r", steps=[{"id": "other", "status": "completed"}])
    write_spans(store, encode(first))
    write_spans(store, encode(corrected))
    for _ in range(2):
        write_spans(store, encode(first)[-1:])
        assert read(store, corrected) == (corrected.text, True)
    store.expire(2 * T0)
    assert store.stats().fragments == 0


def test_an_unknown_revision_span_says_what_is_missing(store: SqliteStore) -> None:
    """A second correction is incomplete until its steps arrive, also after a repeated revision span."""
    first, second = make_run("r"), make_run("r", steps=[{"id": "second", "status": "completed"}])
    third = make_run("r", steps=[{"id": "third", "status": "completed"}])
    write_spans(store, encode(first))
    write_spans(store, encode(second))
    write_spans(store, encode(first)[-1:])
    write_spans(store, encode(third)[-1:])
    assert read(store, second) == (second.text, False)
    write_spans(store, encode(third)[:-1])
    assert read(store, third) == (third.text, True)


def test_a_correction_taken_back_counts(store: SqliteStore) -> None:
    """In one request, or its revision span before its steps: the last document that was sent is the run."""
    first, corrected = make_run("r"), make_run("r", steps=[{"id": "other", "status": "completed"}])
    write_spans(store, encode(first))
    write_spans(store, encode(corrected))
    spans = encode(first)
    write_spans(store, spans[-1:])
    write_spans(store, spans[:-1])
    assert read(store, first) == (first.text, True)
    write_spans(store, encode(corrected))
    assert read(store, corrected) == (corrected.text, True)
    write_spans(store, encode(first))
    assert read(store, first) == (first.text, True)


def test_the_digests_of_corrections_are_bounded() -> None:
    """However often one run is corrected, its row stays small; the latest digests are kept, each once."""
    digests = [number.to_bytes(16, "big") for number in range(200)]
    column: bytes | None = None
    for digest in digests:
        column = add_digest(column, digest)
    assert split_digests(column) == digests[-32:]
    assert split_digests(add_digest(column, digests[-32])) == [*digests[-31:], digests[-32]]


class Interrupted:
    """A connection that calls a function after its first statement."""

    def __init__(self, connection: sqlite3.Connection, between: Callable[[], None]) -> None:
        self._connection = connection
        self._between: Callable[[], None] | None = between

    def execute(self, *arguments: Any) -> Any:
        rows = self._connection.execute(*arguments).fetchall()
        if self._between is not None:
            between, self._between = self._between, None
            between()
        return Rows(rows)


class Rows(list[Any]):
    """The rows of a statement."""

    def fetchone(self) -> Any:
        return self[0] if self else None


def test_a_run_that_becomes_complete_while_it_is_read_is_found(store: SqliteStore) -> None:
    """Between two statements the fragments may become the run: it is found in one of the two."""
    run = make_run("r")
    spans = encode(run)
    write_spans(store, spans[:1])

    class Between(ConnectionPool):
        @contextmanager
        def connection(self) -> Iterator[sqlite3.Connection]:
            with super().connection() as connection:
                yield Interrupted(connection, lambda: write_spans(store, spans[1:]))  # type: ignore[misc]

    readers, store._readers = store._readers, Between(store.path, lambda: None, lambda: None)
    assert store.document("r").text == run.text
    store._readers.close()
    store._readers = readers
