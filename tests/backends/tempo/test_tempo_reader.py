"""Against a real Tempo: documents by id, and lists that equal the embedded store's."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.harness import MS, SECOND, T0, all_pages, ids, make_run, running
from conformance.remote import POLL_SECONDS, VISIBLE_SECONDS, visible_revision_spans
from runspan import Run, encode
from runspan.backends.remote.config import remote_config as remote_settings
from runspan.backends.remote.filters import match_document
from runspan.backends.sqlite import SqliteStore
from runspan.backends.tempo import TempoReader, search
from runspan.contracts import Page, RunQuery, TraceReader
from runspan.delivery import connect, exporter_config
from runspan.errors import BackendRefused, BackendUnreachable, NotFound, TraceIncomplete
from runspan.export import export
from runspan.forward import Forwarder
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_writer import Resource
from runspan.testing import generate
from support.corpus import cases
from support.servers import Tempo, require, start_tempo
from support.servers.tempo import IMAGE

DAYS = 90
DAY = 86_400 * SECOND
CASES = cases()


def reader_of(server: Tempo, **variables: str) -> TempoReader:
    """Return a reader of the server, with ``RUNSPAN_BACKEND_…`` variables."""
    env = {f"RUNSPAN_BACKEND_{name}": value for name, value in variables.items()}
    return TempoReader(remote_settings(f"tempo+{server.url}", env))


@pytest.fixture
def reader(tempo: Tempo) -> Iterator[TempoReader]:
    """A reader of the shared server."""
    reader = reader_of(tempo)
    yield reader
    reader.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Start servers of this test alone, with changed settings."""
    servers: list[Tempo] = []

    def start(**options: Any) -> Tempo:
        place = require("tempo", IMAGE)
        if place.urls is not None:
            pytest.skip("needs a Tempo with its own settings, and the environment names one")
        servers.append(start_tempo(place, tmp_path, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def send(
    server: Tempo, *runs: Run, tenant: str = "", observed_at: int = T0, headers: dict[str, str] | None = None
) -> None:
    """Export the runs; all are accepted."""
    with connect(exporter_config({}, endpoint=server.otlp, headers=headers or {})) as delivery:
        report = export(runs, delivery, tenant=tenant, observed_at=lambda: observed_at, resource=Resource())
    assert report.complete, report.summary_lines()


def wait_for(server: Tempo, runs: Sequence[Run], tenant: str = "", observed_at: int = T0) -> None:
    """Return when a search of Tempo finds the revision spans of all these runs."""
    spans = [encode(run, tenant=tenant, observed_at=observed_at)[-1] for run in runs]
    sent = {(span.trace_id.hex(), span.span_id.hex()) for span in spans}
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := sent - visible_revision_spans(server.url, tenant):
        assert time.monotonic() < deadline, f"{len(missing)} of {len(sent)} runs are not visible"
        time.sleep(POLL_SECONDS)


def pages(reader: TraceReader, query: RunQuery, at_most: int = 1000) -> list[Page]:
    """Return the pages of a list, at most so many."""
    found: list[Page] = []
    while len(found) < at_most:
        page = reader.search(query)
        found.append(page)
        if page.cursor is None:
            break
        query = RunQuery(query.tenant, query.workflow_id, query.status, query.since, query.limit, page.cursor)
    return found


def renamed(text: bytes, name: str) -> Run:
    """Return the document under another id."""
    run = Run.from_json(text)
    return Run.from_json(b'{"id":' + repr_json(name) + run.text[len(b'{"id":' + repr_json(run.id)) :])


def repr_json(text: str) -> bytes:
    """Return the text as the canonical document has it."""
    return Run.from_dict({"id": text}).text[len(b'{"id":') : -1]


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_back_by_id(tempo: Tempo, reader: TempoReader, name: str) -> None:
    """Each document of the corpus is read from Tempo byte for byte."""
    run = renamed(CASES[name], f"tempo {name}")
    send(tempo, run)
    document = reader.document(run.id)
    assert document.text == run.text
    assert document.incomplete == ()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tempo, SqliteStore, list[Run]]]:
    """300 runs over 90 days, searched in blocks on disk as in production, and the embedded store with the same runs.

    Its blocks have the dedicated columns of ``deploy/tempo.yaml``, the shared server has none.
    """
    place = require("tempo", IMAGE)
    if place.urls is not None:
        pytest.skip("needs an empty Tempo, and the environment names one")
    deployed = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "tempo.yaml").read_text())
    changes = {"storage.trace.block": deployed["storage"]["trace"]["block"]}
    server = start_tempo(place, tmp_path_factory.mktemp("tempo"), changes, from_blocks=True)
    try:
        began = datetime.now(UTC) - timedelta(days=DAYS)
        runs = [Run.from_json(text) for text in generate(300, seed=9, start=began, span_days=DAYS, unfinished=True)]
        now = time.time_ns()
        send(server, *runs, observed_at=now)
        with SqliteStore(tmp_path_factory.mktemp("store")) as store:
            for run in runs:
                store.put(run, observed_at=now)
            wait_for(server, runs, observed_at=now)
            yield server, store, runs
    finally:
        server.stop()


def test_a_history_comes_back_by_id(history: tuple[Tempo, SqliteStore, list[Run]]) -> None:
    """Every one of 300 runs is read byte for byte from blocks on disk."""
    server, _, runs = history
    reader = reader_of(server)
    for run in runs:
        assert reader.document(run.id).text == run.text
    reader.close()


@pytest.mark.parametrize(
    ("days", "limit"),
    [
        *((None, 7), (89, 50), (30, 7), (1, 50)),
        *(pytest.param(*other, marks=pytest.mark.campaign) for other in ((None, 50), (89, 7), (30, 50), (1, 7))),
    ],
)
def test_lists_of_a_history_equal_the_stores(
    history: tuple[Tempo, SqliteStore, list[Run]], days: int | None, limit: int
) -> None:
    """Every query's pages have the same items and the same cursors as the embedded store's."""
    server, store, runs = history
    reader = reader_of(server)
    since = None if days is None else time.time_ns() - days * DAY
    workflows = [None, *sorted({str(run.workflow_id) for run in runs})[:4], "wf_none"]
    statuses = [None, "completed", "failed", "cancelled", "running", "suspended", "pending", "unheard of"]
    for workflow, status in product(workflows, statuses):
        query = RunQuery("", workflow, status, since, limit)
        expected, found = pages(store, query, 5), pages(reader, query, 5)
        assert [list(page.items) for page in found] == [list(page.items) for page in expected], query
        assert [page.cursor for page in found] == [page.cursor for page in expected], query
        assert not any(page.partial for page in found)
    reader.close()


def test_statuses_that_changed_while_blocks_were_written(history: tuple[Tempo, SqliteStore, list[Run]]) -> None:
    """Runs whose snapshots lie in other blocks than their run span are listed with their final status only."""
    server, _, _ = history
    reader, tenant = reader_of(server), "changing"
    at = time.time_ns() // MS * MS - 20 * DAY
    names = [f"r{number:02}" for number in range(20)]
    stages = [
        [running(name, at + number * SECOND, done=0, status="pending") for number, name in enumerate(names)],
        [running(name, at + number * SECOND) for number, name in enumerate(names)],
        [make_run(name, at + number * SECOND) for number, name in enumerate(names) if number % 2],
    ]
    for number, runs in enumerate(stages):
        observed_at = at + DAY + number * SECOND
        send(server, *runs, tenant=tenant, observed_at=observed_at)
        wait_for(server, runs, tenant, observed_at)
    ended = sorted(names[1::2], reverse=True)
    open_ = sorted(names[0::2], reverse=True)
    for limit in (3, 50):
        lists = {
            status: [name for page in all_pages(reader, RunQuery(tenant, None, status, limit=limit)) for name in page]
            for status in ("pending", "running", "completed", None)
        }
        assert lists == {
            "pending": [],
            "running": open_,
            "completed": ended,
            None: sorted(names, reverse=True),
        }
    reader.close()


def test_hundreds_of_runs_in_one_millisecond(tempo: Tempo, reader: TempoReader) -> None:
    """They are listed in the order of their ids, each once, page by page, while others arrive."""
    tenant, order = "crowd", random.Random(1)
    names = [f"{number:03}" for number in range(400)]
    runs = [make_run(name) for name in names]
    order.shuffle(runs)
    send(tempo, *runs, tenant=tenant)
    wait_for(tempo, runs, tenant)
    assert [name for page in all_pages(reader, RunQuery(tenant, limit=37)) for name in page] == sorted(names)[::-1]
    first = reader.search(RunQuery(tenant, limit=100))
    late = [make_run("zzz"), make_run("later", T0 + SECOND)]
    send(tempo, *late, tenant=tenant)
    wait_for(tempo, late, tenant)
    rest = all_pages(reader, RunQuery(tenant, limit=100, cursor=first.cursor))
    assert [*ids(first), *[name for page in rest for name in page]] == sorted(names)[::-1]


def test_traces_of_runs_with_unusual_times_are_read_for_one_list_only(
    tempo: Tempo, reader: TempoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search does not select times that are not canonical until a list has shown that the platform writes them."""
    tenant, read = "unusual times", list[bytes]()
    runs = [
        make_run(f"r{second}", startedAt=f"2025-10-09T08:53:{second}Z", completedAt="2025-10-09T08:54:00Z")
        for second in range(10, 18)
    ]
    send(tempo, *runs, tenant=tenant)
    wait_for(tempo, runs, tenant)
    spans = reader.spans

    def read_spans(trace_id: bytes, tenant: str | None = None) -> list[Span]:
        read.append(trace_id)
        return spans(trace_id, tenant)

    monkeypatch.setattr(reader, "spans", read_spans)
    for expected in (len(runs), 0):
        read.clear()
        assert list(reader.search(RunQuery(tenant)).items) == [run.summary() for run in reversed(runs)]
        assert len(read) == expected


@pytest.mark.parametrize(
    ("query", "searches"),
    [
        (RunQuery(text="often", limit=10), 0),
        (RunQuery(text="often", limit=50), 20),
        (RunQuery(text="needle in", limit=10), 20),
    ],
    ids=["a page of what is common", "many of what is common", "what is rare"],
)
def test_searches_find_which_documents_a_list_has_to_read(
    tempo: Tempo,
    reader: TempoReader,
    monkeypatch: pytest.MonkeyPatch,
    query: RunQuery,
    searches: int,
) -> None:
    """The newest runs fill a page of what is common. What is rare is searched for, as the next list knows at once."""
    monkeypatch.setattr(search, "_MAX_CHECKED", 40)
    searched: list[str] = []
    runs, query = labelled_runs(tempo), replace(query, tenant=LABELLED)
    expected = [run.id for run in reversed(runs) if match_document(query, run).is_match]
    read = count_reads(reader, monkeypatch)
    complete_window = search.WindowSearcher.complete_window

    def search_all(searcher: search.WindowSearcher, text: str, *args: Any, **options: Any) -> Any:
        if options:
            searched.append(text)
        return complete_window(searcher, text, *args, **options)

    monkeypatch.setattr(search.WindowSearcher, "complete_window", search_all)
    assert ids(reader.search(query)) == expected[: query.limit]
    assert len(searched) == searches
    assert len(read) >= min(len(expected), query.limit)
    read.clear()
    searched.clear()
    assert ids(reader.search(query)) == expected[: query.limit]
    assert len(searched) == searches
    assert len(read) <= (len(expected) if searches else 40)


def test_a_text_that_searches_find_too_often(
    tempo: Tempo, reader: TempoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run is read then, so nothing of it was left out, and the page says no such thing."""
    monkeypatch.setattr(search, "_MAX_CHECKED", 40)
    monkeypatch.setattr(search, "_MAX_MATCHING", 10)
    runs, query = labelled_runs(tempo), RunQuery(LABELLED, text="often")
    page = reader.search(query)
    assert ids(page) == [run.id for run in reversed(runs) if match_document(query, run).is_match][:50]
    assert page.partial == ()


LABELLED = "labelled"


def labelled_runs(tempo: Tempo) -> list[Run]:
    """Return runs with a model, a step type and a text, of which the others are common and those of two are rare."""

    def step(number: int) -> dict[str, Any]:
        is_rare = number in (3, 140)
        usage = {"model": "rare" if is_rare else "common" if number % 2 else "other", "promptTokens": 1}
        kind, text = ("rare", "a needle in it") if is_rare else ("agent", "often" if number % 2 else "")
        ask = {"id": "ask", "type": "agent", "status": "completed", "output": {"usage": usage}}
        return {"steps": [ask, {"id": "do", "type": kind, "status": "completed", "input": text}]}

    runs = [make_run(f"r{number:03}", T0 + number * SECOND, **step(number)) for number in range(150)]
    send(tempo, *runs, tenant=LABELLED)
    wait_for(tempo, runs, LABELLED)
    return runs


def count_reads(reader: TempoReader, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which the reader appends the trace ids that it reads."""
    read: list[bytes] = []
    spans = reader.spans

    def read_spans(trace_id: bytes, tenant: str | None = None) -> list[Span]:
        read.append(trace_id)
        return spans(trace_id, tenant)

    monkeypatch.setattr(reader, "spans", read_spans)
    return read


@pytest.mark.parametrize("query", [RunQuery(model="common"), RunQuery(model="rare"), RunQuery(step_type="rare")])
def test_a_list_by_model_or_step_type_reads_no_document(
    tempo: Tempo, reader: TempoReader, monkeypatch: pytest.MonkeyPatch, query: RunQuery
) -> None:
    """The span of a run has both."""
    runs, query = labelled_runs(tempo), replace(query, tenant=LABELLED)
    read = count_reads(reader, monkeypatch)
    assert ids(reader.search(query)) == [run.id for run in reversed(runs) if match_document(query, run).is_match][:50]
    assert read == []


def test_runs_without_a_start_sort_where_the_store_sorts_them(
    tempo: Tempo, reader: TempoReader, tmp_path: Path
) -> None:
    """They sort by their creation, or last without one, on whatever page they are found."""
    created = "2025-10-09T08:53:%02d.500Z"
    runs = [make_run(f"started-{number}", T0 + number * SECOND) for number in range(6)]
    runs += [
        make_run("cancelled", startedAt=..., status="cancelled", createdAt=created % 22, completedAt=created % 59),
        make_run("pending", startedAt=..., completedAt=..., status="pending", createdAt=created % 21),
        make_run("end only", startedAt=..., completedAt=created % 23),
        make_run("odd", startedAt=7, completedAt=..., createdAt=created % 24),
    ]
    tenant = "startless"
    send(tempo, *runs, tenant=tenant)
    wait_for(tempo, runs, tenant)
    with SqliteStore(tmp_path) as store:
        for run in runs:
            store.put(run, tenant=tenant, observed_at=T0)
        for limit in (1, 2, 3, 50):
            query = RunQuery(tenant, limit=limit)
            assert all_pages(reader, query) == all_pages(store, query)
        since = RunQuery(tenant, since=T0 + SECOND)
        assert all_pages(reader, since) == all_pages(store, since)


def test_runs_with_any_times_are_read_and_listed(tempo: Tempo, reader: TempoReader, tmp_path: Path) -> None:
    """Runs without any time, with leap seconds or with times that no span can have sort as in the embedded store."""
    latest = "2262-04-11T23:47:16.854775807Z"
    step = {"id": "s", "status": "completed"}
    runs = [
        make_run("timeless", startedAt=..., completedAt=..., steps=[step]),
        make_run("timeless and running", startedAt=..., completedAt=..., status="running", steps=[step]),
        make_run("year 1", startedAt="0001-01-01T00:00:00Z", completedAt="0001-01-01T00:00:01Z"),
        make_run("year 9999", startedAt="9999-12-31T23:59:59Z", completedAt="9999-12-31T23:59:59Z"),
        make_run("leap second", startedAt="2016-12-31T23:59:60Z", completedAt="2017-01-01T00:00:00Z"),
        make_run("latest step", steps=[step | {"startedAt": latest, "completedAt": latest}]),
        make_run("latest end", completedAt=latest),
        make_run("usual"),
    ]
    tenant = "any times"
    send(tempo, *runs, tenant=tenant)
    wait_for(tempo, runs, tenant)
    with SqliteStore(tmp_path) as store:
        for run in runs:
            store.put(run, tenant=tenant, observed_at=T0)
            assert reader.document(run.id, tenant).text == run.text
        for query in (RunQuery(tenant), RunQuery(tenant, limit=2), RunQuery(tenant, status="completed", limit=3)):
            assert all_pages(reader, query) == all_pages(store, query)
        assert sum(map(len, all_pages(reader, RunQuery(tenant, limit=2)))) == len(runs)


def test_items_that_a_search_does_not_hold_are_listed(tempo: Tempo, reader: TempoReader) -> None:
    """Members that are not canonical, long texts and lost steps change nothing about the item of a run."""
    runs = [
        make_run("long error", T0, error={"message": "é" * 3000}),
        make_run("long workflow", T0 + SECOND, workflowId="w" * 700),
        make_run("not canonical", T0 + 2 * SECOND, triggerType=["x"], durationMs=1.5, createdAt=None, startedAt=None),
        make_run("nil", T0 + 3 * SECOND, triggerType="nil", createdAt="nil", error="nil"),
    ]
    tenant = "unusual items"
    for run in runs:
        _send_spans(tempo, encode(run, tenant=tenant, observed_at=T0)[1:])
    wait_for(tempo, runs, tenant)
    page = reader.search(RunQuery(tenant))
    assert sorted(page.items) == sorted(run.summary() for run in runs)
    assert page.partial == ()
    assert ids(reader.search(RunQuery(tenant, workflow_id="w" * 700))) == ["long workflow"]
    assert ids(reader.search(RunQuery(tenant, workflow_id="w" * 701))) == []
    with pytest.raises(TraceIncomplete, match="step spans"):
        reader.document("long error", tenant)


def test_runs_of_the_future_are_listed_with_the_deployed_cutoff(started: Any) -> None:
    """With the negative cutoff of ``deploy/tempo.yaml`` a search finds a run that starts a day from now."""
    deployed = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "tempo.yaml").read_text())
    server = started(changes={"query_frontend.query_end_cutoff": deployed["query_frontend"]["query_end_cutoff"]})
    now = time.time_ns() // MS * MS
    runs = [make_run("tomorrow", now + DAY), make_run("today", now)]
    send(server, *runs)
    wait_for(server, runs)
    reader = reader_of(server)
    assert all_pages(reader, RunQuery(limit=1)) == [["tomorrow"], ["today"]]
    assert ids(reader.search(RunQuery(since=now + SECOND))) == ["tomorrow"]
    reader.close()


def test_a_server_that_refuses_wide_ranges_and_many_results(started: Any, tmp_path: Path) -> None:
    """The reader keeps to its limits, and the lists are the same."""
    server = started(
        changes={"query_frontend.search.max_duration": "168h", "query_frontend.search.max_result_limit": 20}
    )
    now = time.time_ns() // MS * MS
    runs = [make_run(f"r{number:02}", now - number * 2 * DAY) for number in range(30)]
    send(server, *runs)
    wait_for_few(server, runs)
    reader = reader_of(server)
    with SqliteStore(tmp_path / "store") as store:
        for run in runs:
            store.put(run, observed_at=T0)
        for query in (RunQuery(limit=7), RunQuery(since=now - 31 * DAY), RunQuery(status="completed", limit=11)):
            assert all_pages(reader, query) == all_pages(store, query)
    assert reader.search(RunQuery(limit=7)).partial == ()
    assert "days ago" in reader.search(RunQuery(limit=200)).partial[0]
    assert reader.search(RunQuery(limit=200, since=now - 70 * DAY)).partial == ()
    reader.close()


def wait_for_few(server: Tempo, runs: Sequence[Run]) -> None:
    """Return when the reader's own list has all runs: such a server returns few results of one week at a time."""
    reader = reader_of(server)
    deadline = time.monotonic() + VISIBLE_SECONDS
    while len([name for page in all_pages(reader, RunQuery(limit=10)) for name in page]) < len(runs):
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
    reader.close()


def test_a_server_that_cuts_attributes_as_by_default(started: Any) -> None:
    """The pieces of a value are shorter than its limit, so every document is complete."""
    server = started(changes={"distributor.max_attribute_bytes": 2048})
    reader = reader_of(server)
    for name in ("payload 300 KB string", "envelope same step twice"):
        send(server, renamed(CASES[name], name))
        assert reader.document(name).text == renamed(CASES[name], name).text
    reader.close()


@pytest.mark.parametrize("filler", ["x", "é"])
def test_a_server_that_cuts_attributes_too_short(started: Any, filler: str) -> None:
    """No wrong document and no wrong item is returned, even where an attribute was cut inside a character."""
    server = started(changes={"distributor.max_attribute_bytes": 301})
    reader = reader_of(server)
    complete, cut = make_run("complete", T0 + SECOND), make_run("cut", error={"message": filler * 900})
    send(server, complete, cut)
    with pytest.raises(TraceIncomplete):
        reader.document("cut")
    assert reader.document("complete").text == complete.text
    wait_for(server, [complete, cut])
    page = reader.search(RunQuery())
    assert list(page.items) == [complete.summary()]
    assert len(page.partial) == 1
    reader.close()


def test_a_trace_past_the_servers_size(started: Any) -> None:
    """Tempo silently drops the spans past its limit: the run is reported as incomplete, not returned short."""
    server = started(changes={"overrides.defaults.global.max_bytes_per_trace": 20_000})
    reader = reader_of(server)
    steps = [{"id": f"s{number}", "status": "completed", "output": "x" * 1500} for number in range(60)]
    run = make_run("large", steps=steps)
    for part in range(0, 61, 10):
        _send_spans(server, encode(run)[::-1][part : part + 10])
    with pytest.raises(TraceIncomplete, match="step spans"):
        reader.document("large")
    reader.close()


def test_a_revision_is_not_ranked_by_a_part_of_a_trace(started: Any, tmp_path: Path) -> None:
    """A trace that was stored and is past a limit that was lowered since: the spans that Tempo returns may lack the
    newest revision, so nothing is forwarded that could rank below it."""
    if require("tempo", IMAGE).image is not None:
        pytest.skip("a container does not see the file of limits")
    limits = tmp_path / "limits.json"
    limits.write_text("{}")
    settings = {"per_tenant_override_config": str(limits), "per_tenant_override_period": "1s"}
    server = started(changes={f"overrides.{name}": value for name, value in settings.items()})
    reader = reader_of(server)
    steps = [{"id": f"s{number}", "status": "completed", "output": "x" * 1500} for number in range(20)]
    run = make_run("large", steps=steps)
    send(server, run)
    assert len(reader.run_spans("large")) == 21
    limits.write_text(json.dumps({"overrides": {"single-tenant": {"global": {"max_bytes_per_trace": 20_000}}}}))

    def read_until_the_limit_applies() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            reader.run_spans("large")
            time.sleep(0.2)

    with pytest.raises(TraceIncomplete, match=r"returns this trace in part: raise .*max_bytes_per_trace"):
        read_until_the_limit_applies()
    forwarder = Forwarder(reader, exporter_config({}, endpoint="http://127.0.0.1:1"))
    with closing(forwarder), pytest.raises(TraceIncomplete, match="run large"):
        forwarder.put(make_run("large", status="failed"), observed_at=T0)
    assert reader.spans(run_ids("large", "").trace_id)
    reader.close()


def _send_spans(server: Tempo, spans: Sequence[Any]) -> None:
    import httpx

    from conformance.harness import otlp

    headers = {"content-type": "application/x-protobuf"}
    httpx.post(f"{server.otlp}/v1/traces", content=otlp(spans), headers=headers, trust_env=False)


def test_tenants_of_the_backend(started: Any) -> None:
    """The backend's tenant is sent in a header; without it the error says what to set."""
    server = started(changes={"multitenancy_enabled": True})
    run = make_run("mine")
    send(server, run, headers={"x-scope-orgid": "acme"})
    reader, other, anonymous = reader_of(server, TENANT="acme"), reader_of(server, TENANT="other"), reader_of(server)
    assert reader.document("mine").text == run.text
    with pytest.raises(NotFound, match="not in this Tempo"):
        other.document("mine")
    for call in (lambda: anonymous.document("mine"), lambda: anonymous.search(RunQuery())):
        with pytest.raises(BackendRefused, match="RUNSPAN_BACKEND_TENANT"):
            call()
    for each in (reader, other, anonymous):
        each.close()


def test_a_server_that_is_stopped_in_the_middle_of_a_list(started: Any) -> None:
    """The next page is an error with the backend's name, not an empty page; so are a document and the check."""
    server = started()
    runs = [make_run(f"r{number}", T0 + number * SECOND) for number in range(6)]
    send(server, *runs)
    wait_for(server, runs)
    reader = reader_of(server)
    page = reader.search(RunQuery(limit=2))
    assert page.cursor is not None
    server.stop()
    calls = (
        lambda: reader.search(RunQuery(limit=2, cursor=page.cursor)),
        lambda: reader.document("r0"),
        lambda: reader.spans(bytes(range(16))),
        reader.check,
    )
    for call in calls:
        with pytest.raises(BackendUnreachable, match=f"Tempo at {server.url}"):
            call()
    reader.close()
