"""The store finds the runs that contain a text: all of them, no others, the newest first."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.index import facts_index, search
from runspan.codec.full_text import MAX_TEXT, MIN_TEXT, find_text
from runspan.contracts import RunQuery
from runspan.errors import QueryError, QueryUnsupported
from runspan.model.timestamps import SECOND, rfc3339
from support.corpus import PAYLOADS

START = 1_790_000_000 * SECOND


def make_run(number: int, content: object = "cus_4711", **members: Any) -> Run:
    """Return a run that started this many seconds after the first, with a step whose output is the content."""
    begun = rfc3339(START + number * SECOND)
    step = {"id": "charge", "name": "Charge the card", "type": "stripe", "status": "completed", "output": content}
    document = {"id": f"run_{number:03}", "workflowId": "billing", "status": "completed", "startedAt": begun}
    return Run.from_json(json.dumps(document | members | {"steps": [step]}))


@contextmanager
def filled(runs: Sequence[Run], **options: Any) -> Iterator[SqliteStore]:
    """Yield a store with runs."""
    with tempfile.TemporaryDirectory() as directory, SqliteStore(Path(directory), index=True, **options) as store:
        for run in runs:
            store.put(run, observed_at=START)
        yield store


def found(store: SqliteStore, text: str, **filters: Any) -> list[str]:
    """Return the ids of all runs with a text, page by page."""
    query = RunQuery(text=text, **filters)
    ids: list[str] = []
    while True:
        page = store.search(query)
        listed = [str(json.loads(item)["id"]) for item in page.items]
        assert list(page.matches) == listed
        ids += listed
        if page.cursor is None:
            return ids
        query = replace(query, cursor=page.cursor)


CONTENTS = st.text("aA ßé_'\"*^:()-\0\n😀47", max_size=10)


def test_large_documents_are_found_without_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of their own tenant reads them: in the index they would delay the runs of all others."""
    monkeypatch.setattr(facts_index, "_MAX_TEXT", 1000)
    runs = [make_run(number, {"customer": "cus_4711", "more": "x" * 100 * number}) for number in range(20)]
    with filled(runs) as store:
        found = [json.loads(item)["id"] for item in store.search(RunQuery(text="cus_4711")).items]
        assert found == [run.id for run in reversed(runs)]
        with store._index.connection() as connection:
            indexed = [row_id for (row_id,) in connection.execute("SELECT run FROM text_rows")]
        assert len(indexed) == sum(len(run.text) <= 1000 for run in runs) > 5
        assert list(store.index_faults()) == []


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(CONTENTS, max_size=3), min_size=1, max_size=12),
    st.lists(st.text("aA_'\"*47", min_size=3, max_size=5), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_exactly_the_runs_that_contain_it(contents: list[list[str]], wanted: list[str], limit: int) -> None:
    """On pages of any size; quotes and operators of the full-text language are letters as all others."""
    runs = [make_run(number // 2, content, id=f"r{number}") for number, content in enumerate(contents)]
    with filled(runs) as store:
        parts = [text[:MIN_TEXT] for content in contents for text in content if len(text) >= MIN_TEXT]
        for text in [*wanted, *parts[:5]]:
            expected = [run for run in runs if find_text(run, text)]
            expected.sort(key=lambda run: (json.loads(run.text)["startedAt"], run.id), reverse=True)
            assert found(store, text, limit=limit) == [run.id for run in expected]


@pytest.mark.parametrize(
    "text", ['"', '""" OR """', 'a" NEAR "b', "run_001*", "content:run", "-run", "^run", "NOT cus", "'; DROP TABLE--"]
)
def test_a_query_is_no_language(text: str) -> None:
    """What the full-text language means by it is not meant."""
    with filled([make_run(1), make_run(2, f"x {text}   y")]) as store:
        assert found(store, text.ljust(3, " ")) == ["run_002"]
        assert store._index.rebuilt == 0


@pytest.mark.parametrize("name", PAYLOADS)
def test_any_payload_is_indexed(name: str) -> None:
    """A run with it is found by what follows it."""
    run = Run.from_json(make_run(1).text.replace(b'"cus_4711"', b"[" + PAYLOADS[name].encode() + b',"cus_4711"]'))
    with filled([run]) as store:
        assert found(store, "CUS_47") == ["run_001"]


def test_where_the_text_is() -> None:
    """A page says for each run which member of which step contains the text, and shows what is around it."""
    with filled([make_run(1, {"customer": "cus_4711"})]) as store:
        match = store.search(RunQuery(text="cus_4711")).matches["run_001"]
    assert (match.step_index, match.step_id, match.execution, match.member) == (0, "charge", 1, "output")
    assert match.snippet[match.start : match.start + match.length] == "cus_4711"


@pytest.mark.parametrize("few_read", [0, 2, 500])
def test_with_other_filters(monkeypatch: pytest.MonkeyPatch, few_read: int) -> None:
    """All of them apply, whichever candidates come from; the list is sorted by start, or by what is asked for."""
    monkeypatch.setattr(facts_index, "_FEW_READ", few_read)
    runs = [
        make_run(1, triggerType="webhook", durationMs=3000),
        make_run(2, triggerType="cron", durationMs=9000, status="failed", error={"code": "DECLINED"}),
        make_run(3, triggerType="webhook", durationMs=6000, workflowId="refund"),
        make_run(4, "cus_1", triggerType="webhook"),
    ]
    with filled(runs) as store:
        assert found(store, "cus_4711") == ["run_003", "run_002", "run_001"]
        assert found(store, "cus_4711", trigger="webhook") == ["run_003", "run_001"]
        assert found(store, "cus_4711", workflow_id="billing", status="failed") == ["run_002"]
        assert found(store, "cus_4711", error_code="DECLINED") == ["run_002"]
        assert found(store, "cus_4711", step_type="stripe", min_duration=6 * SECOND) == ["run_003", "run_002"]
        assert found(store, "cus_4711", since=START + 2 * SECOND, until=START + 3 * SECOND) == ["run_002"]
        assert found(store, "cus_4711", order="duration", limit=1) == ["run_002", "run_003", "run_001"]
        assert found(store, "cus_4711", order="duration", limit=1, workflow_id="billing") == ["run_002", "run_001"]
        assert found(store, "cus_4711", limit=1, trigger="webhook") == ["run_003", "run_001"]
        assert found(store, "cus_4711", tenant="other") == []


def test_a_rare_filter_is_read_instead_of_a_common_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs contain the text, also sorted: those that meet the filter are few."""
    monkeypatch.setattr(facts_index, "_FEW", 3)
    runs = [make_run(number, durationMs=number, triggerType="api" if number % 4 else "event") for number in range(12)]
    with filled(runs) as store:
        with pytest.raises(QueryUnsupported, match="at most 3 runs"):
            store.search(RunQuery(text="cus_4711", order="duration"))
        wanted = ["run_008", "run_004", "run_000"]
        assert found(store, "cus_4711", trigger="event") == wanted
        assert found(store, "cus_4711", trigger="event", order="duration", limit=2) == wanted


def test_an_order_of_too_many_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs that may contain the text are sorted, so they must be a bounded number."""
    monkeypatch.setattr(facts_index, "_FEW", 3)
    with filled([make_run(number, durationMs=1000 * number) for number in range(4)]) as store:
        with pytest.raises(QueryUnsupported, match="at most 3 runs may contain"):
            store.search(RunQuery(text="cus_4711", order="duration"))
        assert found(store, "cus_4711", order="duration", since=START + SECOND) == ["run_003", "run_002", "run_001"]


def test_an_order_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sorted has to be found as a whole: without the time for it there is no first page."""
    monkeypatch.setattr(search, "_MAX_SECONDS", 0.0)
    with filled([make_run(1)]) as store, pytest.raises(QueryUnsupported, match="found in time"):
        store.search(RunQuery(text="cus_4711", order="duration"))


@pytest.mark.parametrize("order", ["duration", "cost"])
def test_an_ordered_search_that_takes_too_long_is_continued(monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    """Documents that may contain the text are read for a bounded time: the next page begins behind the last of them."""
    runs = [
        make_run(number, "cus_4711" if number % 3 else "47 11 cus_471", durationMs=number // 2) for number in range(60)
    ]
    with filled(runs) as store:
        expected = found(store, "cus_4711", order=order)
        # The time is up once the first runs have been read: after the start and one look while they were sorted.
        monkeypatch.setattr(search, "monotonic", partial(next, cycle([0.0, 0.0, 10.0])))
        monkeypatch.setattr(search, "_CHUNK", 7)
        page = store.search(RunQuery(text="cus_4711", order=order))
        assert len(page.items) <= 7
        assert re.search("stopped after 2 seconds, at run run_0[0-9]{2}: the next page", page.partial[0])
        assert found(store, "cus_4711", order=order) == expected
        assert sorted(expected) == [run.id for number, run in enumerate(runs) if number % 3]


def test_an_order_does_not_depend_on_other_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs of others contain the text, those of the tenant are few."""
    monkeypatch.setattr(facts_index, "_FEW", 3)
    with filled([make_run(number, durationMs=1000 * number) for number in range(9)]) as store:
        for number in range(3):
            store.put(make_run(number, durationMs=1000 * number), tenant="small", observed_at=START)
        assert found(store, "cus_4711", tenant="small", order="duration") == ["run_002", "run_001", "run_000"]


def test_runs_that_change_and_go() -> None:
    """A correction is found by its own text and no longer by the former; a deleted run is not found."""
    runs = [make_run(1), make_run(2)]
    with filled(runs) as store:
        assert found(store, "cus_4711") == ["run_002", "run_001"]
        store.put(make_run(1, "cus_4712"), observed_at=START + SECOND)
        assert found(store, "cus_4711") == ["run_002"]
        assert found(store, "cus_4712") == ["run_001"]
        assert store.purge([(sha256(runs[1].text).digest(), "run_002")]).deleted == 1
        assert found(store, "cus_4711") == []


def test_unfinished_runs_are_read() -> None:
    """They are found by what they have now, among the others."""
    runs = [make_run(1), make_run(2, status="running"), make_run(3), make_run(4, "cus_1", status="suspended")]
    with filled(runs) as store:
        assert found(store, "cus_4711", limit=1) == ["run_003", "run_002", "run_001"]
        store.put(make_run(2, "cus_4712", status="running"), observed_at=START + SECOND)
        assert found(store, "cus_4711") == ["run_003", "run_001"]
        assert found(store, "cus_4712", status="running") == ["run_002"]


def test_a_search_that_takes_too_long_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with a page that says how far it came, and the next pages find the rest, each run once."""
    monkeypatch.setattr(search, "_MAX_SECONDS", 0.0)
    with filled([make_run(number, "cus_4711" if number % 3 else "47 11 cus_471") for number in range(300)]) as store:
        page = store.search(RunQuery(text="cus_4711"))
        assert len(page.items) < 51
        assert "the next page continues there" in page.partial[0]
        assert found(store, "cus_4711") == [f"run_{number:03}" for number in reversed(range(300)) if number % 3]


def test_a_search_among_runs_of_others_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs with the text cost time too: the page says how far it came, and the next ones go on."""
    monkeypatch.setattr(search, "_MAX_SECONDS", 0.0)
    monkeypatch.setattr(search, "_CHUNK", 4)
    monkeypatch.setattr(facts_index, "_CHUNK", 2)
    with filled([make_run(number) for number in range(1, 60)]) as store:
        store.put(make_run(0), tenant="small", observed_at=START)
        page = store.search(RunQuery(text="cus_4711", tenant="small"))
        assert page.items == []
        assert page.cursor is not None
        assert "the next page continues there" in page.partial[0]
        assert found(store, "cus_4711", tenant="small") == ["run_000"]


def test_texts_that_cannot_be_searched_for() -> None:
    """Too short, too long, and any text in a store without an index are refused with the reason."""
    for text in ("", "ab", "x" * (MAX_TEXT + 1)):
        with pytest.raises(QueryError, match="3 to 200 characters"):
            RunQuery(text=text)
    with tempfile.TemporaryDirectory() as directory, SqliteStore(Path(directory), index=False) as store:
        assert store.capabilities.searches == ""
        with pytest.raises(QueryUnsupported, match="index"):
            store.search(RunQuery(text="cus_4711"))
