"""The text index yields every run that contains a text, the newest first."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run
from runspan.backends.sqlite.index import text
from runspan.codec.full_text import MAX_TEXT, MIN_TEXT, find_text, searchable_text
from runspan.storage.sqlite_file import read_statements

DAY = 86_400_000
JANUARY = 20_454 * DAY
"""Thursday, January 1, 2026, in milliseconds since 1970."""
END = 2**62


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Return a database with an empty text index."""
    with closing(make_index()) as connection:
        yield connection


def make_index() -> sqlite3.Connection:
    """Return a database with an empty text index."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in read_statements("runspan.backends.sqlite.index", "text.sql"):
        connection.execute(statement)
    return connection


def make_run(content: object) -> Run:
    """Return a run whose step has this output."""
    return Run.from_dict({"id": "run_1", "steps": [{"id": "a", "output": content}]})


def add_all(connection: sqlite3.Connection, runs: dict[int, Run]) -> None:
    """Add runs by their ids in one transaction."""
    connection.execute("BEGIN")
    for row_id, run in runs.items():
        text.add(connection, row_id, searchable_text(run))
    connection.execute("COMMIT")


@given(
    st.lists(st.text("aAßéÉ\0\"'*-^:()😀", min_size=1, max_size=12), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
    st.text("aAßéÉ\0\"'*-^:()😀", min_size=MIN_TEXT, max_size=5),
)
def test_every_run_with_the_text_is_a_candidate(contents: list[str], random: object, wanted: str) -> None:
    """Whatever the order of arrival, and in descending order; letters that are operators of FTS5 are letters."""
    runs = {JANUARY + index * 9 * DAY // 2: make_run([content]) for index, content in enumerate(contents)}
    order = list(runs)
    random.shuffle(order)  # type: ignore[attr-defined]
    with closing(make_index()) as connection:
        add_all(connection, {row_id: runs[row_id] for row_id in order})
        for before in (END, order[0]):
            found = list(text.candidates(connection, wanted, before))
            assert found == sorted(set(found), reverse=True)
            assert set(found) <= {row_id for row_id in runs if row_id < before}
            assert set(found) >= {row_id for row_id in runs if row_id < before and find_text(runs[row_id], wanted)}


def test_newest_first_among_many_blocks(connection: sqlite3.Connection) -> None:
    """The first candidate comes before the others are read if runs arrived in about the order of their times."""
    moments = [number * 1000 + (number * 7919) % 50_000 for number in range(3000)]
    add_all(connection, {moment: make_run("cus_4711") for moment in moments})
    assert list(text.candidates(connection, "cus_4711", END)) == sorted(moments, reverse=True)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(count, 100)
    first = next(text.candidates(connection, "cus_4711", END))
    few, steps = steps, 0
    assert first == max(moments)
    list(text.candidates(connection, "cus_4711", END))
    assert few * 4 < steps


def test_run_that_changed(connection: sqlite3.Connection) -> None:
    """It is found by its new text, once."""
    add_all(connection, {1000: make_run("cus_4711")})
    add_all(connection, {1000: make_run("cus_4712")})
    assert list(text.candidates(connection, "cus_4712", END)) == [1000]
    assert list(text.candidates(connection, "cus_471", END)) == [1000]


def test_longest_text(connection: sqlite3.Connection) -> None:
    """A query of as many trigrams as a text may have is answered."""
    wanted = "".join(chr(0x4E00 + number) for number in range(MAX_TEXT))
    add_all(connection, {1: make_run(wanted), 2: make_run(wanted[1:])})
    assert list(text.candidates(connection, wanted, END)) == [1]


def test_weeks_before_a_time_are_dropped(connection: sqlite3.Connection) -> None:
    """Their tables go, and later runs stay."""
    add_all(connection, {JANUARY + day * DAY: make_run("cus_4711") for day in range(100)})
    before = connection.execute("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%fts5%'").fetchone()
    text.drop_before(connection, JANUARY + 60 * DAY)  # Monday, March 2
    assert list(text.candidates(connection, "cus_4711", END)) == [JANUARY + day * DAY for day in range(99, 59, -1)]
    text.drop_before(connection, JANUARY + 66 * DAY)
    assert list(text.candidates(connection, "cus_4711", END)) == [JANUARY + day * DAY for day in range(99, 59, -1)]
    after = connection.execute("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%fts5%'").fetchone()
    assert (before, after) == ((15,), (6,))
    add_all(connection, {JANUARY: make_run("cus_4711")})
    assert list(text.candidates(connection, "cus_4711", JANUARY + DAY)) == [JANUARY]


def test_runs_of_any_time(connection: sqlite3.Connection) -> None:
    """They are in a bounded number of tables."""
    moments = [0, 1, 10**12, 10**12 + 9 * DAY, 3 * 10**12, 9 * 10**12]
    add_all(connection, {moment: make_run("cus_4711") for moment in moments})
    assert list(text.candidates(connection, "cus_4711", END)) == moments[::-1]
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%fts5%'").fetchone() == (4,)
    text.drop_before(connection, 2 * 10**12)
    assert list(text.candidates(connection, "cus_4711", END)) == moments[:3:-1]
