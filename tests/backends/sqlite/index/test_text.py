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


def add_all(connection: sqlite3.Connection, runs: dict[int, Run]) -> list[int]:
    """Add runs by their ids in one transaction; return their rows."""
    connection.execute("BEGIN")
    rows = [text.add(connection, row_id, searchable_text(run)) for row_id, run in runs.items()]
    connection.execute("COMMIT")
    return rows


def tables(connection: sqlite3.Connection) -> int:
    """Return the number of full-text tables."""
    found = connection.execute("SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%fts5%'").fetchone()
    return int(found[0])


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
    """It is found by its new text only."""
    (row,) = add_all(connection, {1000: make_run("cus_4711")})
    text.remove(connection, row)
    add_all(connection, {1000: make_run("cus_4712")})
    assert list(text.candidates(connection, "cus_4712", END)) == [1000]
    assert list(text.candidates(connection, "cus_4711", END)) == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["cus_4711", "cus_4712", "x"])), min_size=1, max_size=20),
    st.lists(st.lists(st.integers(0, 19), max_size=8), max_size=4),
    st.integers(0, 20),
)
def test_the_rows_that_are_left_are_moved(
    added: list[tuple[int, str]], removals: list[list[int]], arrivals: int
) -> None:
    """Every run is found all the time, also those that arrive meanwhile, and those that are gone have left nothing."""
    with closing(make_index()) as connection:
        runs = {JANUARY + week * 7 * DAY + number: make_run(word) for number, (week, word) in enumerate(added)}
        rows = dict(zip(runs, add_all(connection, runs), strict=True))
        for removal in removals:
            for run in {list(runs)[number % len(runs)] for number in removal} if runs else ():
                text.remove(connection, rows.pop(run))
                del runs[run]
            text.leave_tables(connection)
            for step in range(arrivals):
                new = JANUARY + step % 3 * 7 * DAY + 1000 + len(rows) + step
                if new not in runs:
                    runs[new] = make_run("cus_4711")
                    rows[new] = text.add(connection, new, searchable_text(runs[new]))
                for row, run in text.rows_to_move(connection, 2):
                    text.remove(connection, row)
                    rows[run] = text.add(connection, run, searchable_text(runs[run]))
                expected = sorted((run for run in runs if find_text(runs[run], "cus_4711")), reverse=True)
                assert list(text.candidates(connection, "cus_4711", END)) == expected
            while text.is_any_left(connection):
                for row, run in text.rows_to_move(connection, 2):
                    text.remove(connection, row)
                    rows[run] = text.add(connection, run, searchable_text(runs[run]))
            assert not text.leave_tables(connection)
            assert sorted(rows.items()) == sorted(connection.execute("SELECT run, id FROM text_rows").fetchall())
            assert tables(connection) == len({(run - JANUARY) // (7 * DAY) for run in runs})


def test_longest_text(connection: sqlite3.Connection) -> None:
    """A query of as many trigrams as a text may have is answered."""
    wanted = "".join(chr(0x4E00 + number) for number in range(MAX_TEXT))
    add_all(connection, {1: make_run(wanted), 2: make_run(wanted[1:])})
    assert list(text.candidates(connection, wanted, END)) == [1]


def test_weeks_without_runs_are_dropped(connection: sqlite3.Connection) -> None:
    """Their tables go with the last run, and other weeks stay."""
    rows = add_all(connection, {JANUARY + day * DAY: make_run("cus_4711") for day in range(100)})
    assert tables(connection) == 15
    for row in rows[:60]:  # up to Monday, March 2
        text.remove(connection, row)
    assert list(text.candidates(connection, "cus_4711", END)) == [JANUARY + day * DAY for day in range(99, 59, -1)]
    assert tables(connection) == 6
    assert not text.leave_tables(connection)
    add_all(connection, {JANUARY: make_run("cus_4711")})
    assert list(text.candidates(connection, "cus_4711", JANUARY + DAY)) == [JANUARY]


def test_runs_of_any_time(connection: sqlite3.Connection) -> None:
    """They are in a bounded number of tables."""
    moments = [0, 1, 10**12, 10**12 + 9 * DAY, 3 * 10**12, 9 * 10**12]
    add_all(connection, {moment: make_run("cus_4711") for moment in moments})
    assert list(text.candidates(connection, "cus_4711", END)) == moments[::-1]
    assert tables(connection) == 4
