"""Runs read from a real Jaeger, in memory and in Badger: by id, in lists, after other readers, and when it is down."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, groupby, islice, product, repeat
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from conformance.harness import MS, SECOND, T0, all_pages, foreign_otlp, ids, make_run, running
from runspan import Run, encode
from runspan.backends.jaeger import JaegerReader
from runspan.backends.jaeger.reader import LIST_SECONDS
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import DIGEST
from runspan.contracts import RunQuery
from runspan.errors import BackendBusy, BackendRefused, BackendUnreachable, NotFound, TraceIncomplete
from runspan.model.document import sort_time
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.testing import generate
from support.corpus import cases
from support.jaeger import NOW, items_of_all_pages, proxy, reader_of, send, serving
from support.servers.finding import require
from support.servers.jaeger import IMAGE, MEMORY, Jaeger, start_jaeger

CASES = cases()
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture(params=["jaeger_memory", "jaeger_badger"])
def jaeger(request: pytest.FixtureRequest) -> Jaeger:
    server: Jaeger = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def reader(jaeger: Jaeger) -> Iterator[JaegerReader]:
    with reader_of(jaeger.url) as reader:
        yield reader


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone."""
    return f"tenant-{uuid4().hex}"


@pytest.fixture
def own_jaeger(tmp_path: Path) -> Iterator[Jaeger]:
    """A Jaeger with memory storage of this test alone, that holds forty traces."""
    server = start_jaeger(require("jaeger", IMAGE), tmp_path, MEMORY, max_traces=40)
    yield server
    server.stop()


def ui_reads(server: Jaeger, run_id: str, tenant: str) -> None:
    """Request what Jaeger's own pages request. Its memory storage keeps the adjusted traces."""
    trace_id = run_ids(run_id, tenant).trace_id.hex()
    window = {"start": 0, "end": 4_102_444_800_000_000, "limit": 1000}
    times = {"query.start_time_min": "1970-01-01T00:00:00Z", "query.start_time_max": "2100-01-01T00:00:00Z"}
    searches = {**times, "query.service_name": "runspan", "query.search_depth": 1000}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        for path, parameters in (
            (f"/api/traces/{trace_id}", {}),
            (f"/api/v3/traces/{trace_id}", {}),
            ("/api/traces", {**window, "service": "runspan", "tags": json.dumps({"runspan.tenant": tenant})}),
            ("/api/v3/trace-summaries", {**searches, "query.attributes": json.dumps({"runspan.tenant": tenant})}),
        ):
            response = client.get(path, params=parameters)
            assert response.status_code == 200, response.text[:300]
            assert trace_id in response.text


def stored_in(storage: str, name: str) -> Any:
    """The parameters of a case. Jaeger's pages change what is in memory; in Badger the campaign tries each payload."""
    is_long = storage == "jaeger_badger" and name.startswith("payload ")
    return pytest.param(storage, name, marks=[pytest.mark.campaign] if is_long else [])


EVERY_CASE = [stored_in(storage, name) for storage in ("jaeger_memory", "jaeger_badger") for name in CASES]


@pytest.mark.parametrize(("jaeger", "name"), EVERY_CASE, indirect=["jaeger"])
def test_every_case_of_the_corpus(jaeger: Jaeger, reader: JaegerReader, tenant: str, name: str) -> None:
    """A document that was exported comes back byte for byte and is the one item of the list, also after it was sent
    again and Jaeger's own pages were read."""
    run = Run.from_json(CASES[name])
    query = RunQuery(tenant)
    send(jaeger, [run], tenant)
    assert reader.document(run.id, tenant).text == run.text
    assert list(reader.search(query).items) == [run.summary()]
    ui_reads(jaeger, run.id, tenant)
    assert reader.document(run.id, tenant).text == run.text
    send(jaeger, [run], tenant)
    ui_reads(jaeger, run.id, tenant)
    document = reader.document(run.id, tenant)
    assert (document.text, document.incomplete) == (run.text, ())
    assert list(reader.search(query).items) == [run.summary()]


@pytest.mark.parametrize(
    ("jaeger", "legacy"),
    [
        pytest.param("jaeger_memory", False, id="memory-attributes"),
        pytest.param("jaeger_badger", True, id="badger-legacy-api"),
        pytest.param("jaeger_memory", True, id="memory-legacy-api", marks=pytest.mark.campaign),
        pytest.param("jaeger_badger", False, id="badger-attributes", marks=pytest.mark.campaign),
    ],
    indirect=["jaeger"],
)
def test_every_list_of_many_runs_is_the_embedded_stores(
    jaeger: Jaeger, tenant: str, tmp_path: Path, legacy: bool
) -> None:
    """Four hundred runs over ninety days, a third first seen running and some sent twice: every filter, alone and
    combined, gives the same items in the same order, on pages of every size."""
    runs = [Run.from_json(text) for text in generate(400, seed=17, unfinished=True)]
    order = random.Random(17)
    early = [seen_running(run) for run in runs[::3] if run.finished]
    again = runs[::10]
    order.shuffle(runs)
    send(jaeger, early, tenant, NOW - SECOND)
    send(jaeger, runs, tenant)
    send(jaeger, again, tenant)
    paths: list[str] = []
    with (
        SqliteStore(tmp_path) as store,
        proxy(jaeger, paths, is_legacy=lambda: legacy) as url,
        reader_of(url) as reader,
    ):
        for run, at in [*((run, NOW - SECOND) for run in early), *((run, NOW) for run in runs)]:
            store.put(run, tenant=tenant, observed_at=at)
        starts = sorted(sort_time(run.envelope) for run in runs)
        workflows = [None, *sorted({run.workflow_id or "" for run in runs})[:4], "wf_none"]
        statuses = [None, "completed", "failed", "running", "cancelled", "pending", "suspended", "none"]
        for workflow, status, since in product(workflows, statuses, [None, starts[200], starts[-1] + 1]):
            query = RunQuery(tenant, workflow, status, since, limit=200)
            assert items_of_all_pages(reader, query) == items_of_all_pages(store, query), query
        for limit in (1, 7, 50):
            query = RunQuery(tenant, since=starts[-60 if limit == 1 else 0], limit=limit)
            assert items_of_all_pages(reader, query) == items_of_all_pages(store, query), query
        for run in runs:
            assert reader.document(run.id, tenant).text == run.text
    used = {path.partition("?")[0] for path in paths} & {"/api/traces", "/api/v3/traces"}
    assert used == {"/api/traces" if legacy else "/api/v3/traces"}


def seen_running(run: Run) -> Run:
    """The run as it was before it ended."""
    return Run.from_dict({**run.to_dict(), "status": "running", "completedAt": None, "steps": []})


@pytest.mark.parametrize("spread", [0, MS // 1000], ids=["one-microsecond", "one-millisecond"])
def test_hundreds_of_runs_at_one_time(jaeger: Jaeger, reader: JaegerReader, tenant: str, spread: int) -> None:
    """Three hundred runs of one instant are listed on pages, complete, none twice, ties by run id."""
    made = []
    for number in range(300):
        ns = T0 + number * spread // 1000 * 1000
        made.append((ns, make_run(f"r{number:03}", startedAt=text_of(ns), completedAt=text_of(ns + SECOND), steps=[])))
    random.Random(3).shuffle(made)
    send(jaeger, [run for _, run in made], tenant)
    expected = [run.id for _, run in sorted(made, key=lambda item: (item[0], item[1].id), reverse=True)]
    for limit in (50, 200):
        pages = all_pages(reader, RunQuery(tenant, limit=limit))
        assert [run_id for page in pages for run_id in page] == expected


def text_of(ns: int) -> str:
    """Return the nanoseconds as a timestamp with microseconds, within the second of ``T0``."""
    return f"2025-10-09T08:53:2{(ns - T0) // SECOND}.{(ns - T0) % SECOND // 1000:06}Z"


def test_trace_ids_that_badger_hides_at_the_end_of_a_range(jaeger: Jaeger, reader: JaegerReader, tenant: str) -> None:
    """Traces whose id begins with ff are found in the microsecond at which a page ends."""
    begin_with_ff = (name for name in map("r{}".format, count()) if run_ids(name, tenant).trace_id[0] == 0xFF)
    hidden = list(islice(begin_with_ff, 5))
    send(jaeger, [make_run(run_id) for run_id in hidden], tenant)
    pages = all_pages(reader, RunQuery(tenant, limit=1))
    assert [run_id for page in pages for run_id in page] == sorted(hidden, reverse=True)


def test_times_that_are_absent_invalid_or_early(
    jaeger: Jaeger, reader: JaegerReader, tenant: str, tmp_path: Path
) -> None:
    """A run without a start sorts by its creation, one without either at the end, whatever else it contains."""
    times = [None, ..., "yesterday", "1970-01-01T00:00:00.000Z", "1969-12-31T23:59:59.000Z", "2262-04-11T23:47:16.854Z"]
    times += ["2025-10-09T10:53:20.123456789+02:00", "2025-10-09T08:53:20.000Z", "1970-01-01T00:00:00.000001Z"]
    chosen = random.Random(5).sample(list(product(times, times, times, ("completed", "running"))), 150)
    runs = [
        make_run(f"r{number:03}", startedAt=start, completedAt=end, createdAt=created, status=status, steps=[])
        for number, (start, created, end, status) in enumerate(chosen)
    ]
    send(jaeger, runs, tenant)
    with SqliteStore(tmp_path) as store:
        for run in runs:
            store.put(run, tenant=tenant, observed_at=NOW)
        for query in (
            RunQuery(tenant, limit=7),
            RunQuery(tenant, since=0, limit=50),
            RunQuery(tenant, since=1000),
            RunQuery(tenant, since=T0 + 1, status="running"),
            RunQuery(tenant, since=(1 << 63) - 1),
        ):
            assert items_of_all_pages(reader, query) == items_of_all_pages(store, query), query
    for run in runs:
        assert reader.document(run.id, tenant).text == run.text


def test_foreign_spans_in_the_trace_change_nothing(jaeger: Jaeger, reader: JaegerReader, tenant: str) -> None:
    """Spans of other instrumentation in the run's trace are returned by ``spans``, and are no part of the run."""
    run = make_run("r")
    send(jaeger, [run], tenant)
    trace_id, span_id = run_ids("r", tenant).trace_id, bytes(range(1, 9))
    body = foreign_otlp(trace_id, span_id, "POST /v1/chat")
    httpx.post(f"{jaeger.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).raise_for_status()
    assert reader.document("r", tenant).text == run.text
    assert list(reader.search(RunQuery(tenant)).items) == [run.summary()]
    assert span_id in {span.span_id for span in reader.spans(trace_id)}
    assert reader.capabilities.foreign_spans


def test_a_revision_span_in_the_trace_of_another_run_is_no_run(
    jaeger: Jaeger, reader: JaegerReader, tenant: str
) -> None:
    """A copy of a run's spans under another trace id is not listed a second time: no get would find it."""
    run = make_run("r")
    send(jaeger, [run], tenant)
    elsewhere = run_ids("another", tenant).trace_id
    copies = [msgspec.structs.replace(span, trace_id=elsewhere) for span in encode(run, tenant=tenant)]
    body = request_bytes(Resource(), map(scoped_bytes, copies))
    httpx.post(f"{jaeger.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).raise_for_status()
    assert list(reader.search(RunQuery(tenant)).items) == [run.summary()]


def post_spans(server: Jaeger, spans: Sequence[Span]) -> None:
    """Send spans as they are."""
    body = request_bytes(Resource(), map(scoped_bytes, spans))
    httpx.post(f"{server.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).raise_for_status()


def changed(span: Span, key: str, value: str | None) -> Span:
    """Return the span with another value of an attribute, or without it."""
    own = [(name, old if name != key else value or "") for name, old in span.pairs() if name != key or value]
    return msgspec.structs.replace(span, shared=(), own=own)


@pytest.mark.parametrize("legacy", [False, True], ids=["attributes", "legacy-api"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runspan.run.status", "failed"),
        ("runspan.workflow.id", "wf_forged"),
        ("runspan.summary.digest", None),
        ("runspan.revision", None),
        ("runspan.digest", None),
        ("runspan.run.duration_ms", "1"),
    ],
)
def test_a_changed_run_span_is_in_no_list(
    jaeger: Jaeger, tenant: str, key: str, value: str | None, legacy: bool
) -> None:
    """A list item has its own digest. What does not have it is not listed, and the page that it would be on says so
    once; the other runs are listed."""
    others = [make_run(f"r{number}", T0 + number * SECOND) for number in range(5)]
    send(jaeger, [run for run in others if run.id != "r2"], tenant)
    *steps, root = encode(others[2], tenant=tenant)
    post_spans(jaeger, [*steps, changed(root, key, value)])
    with proxy(jaeger, [], is_legacy=lambda: legacy) as url, reader_of(url) as reader:
        page = reader.search(RunQuery(tenant))
        assert list(page.items) == [run.summary() for run in reversed(others) if run.id != "r2"]
        (note,) = page.partial
        assert note == "run r2 is left out: its list item does not have the recorded digest"
        notes = []
        query = RunQuery(tenant, limit=1)
        while True:
            page = reader.search(query)
            notes += page.partial
            if page.cursor is None:
                break
            query = RunQuery(tenant, limit=1, cursor=page.cursor)
        assert notes == [note]
        assert reader.search(RunQuery(tenant + "-other")).partial == ()
        assert reader.search(RunQuery(tenant, since=T0 + 3 * SECOND)).partial == ()


@pytest.mark.parametrize("legacy", [False, True], ids=["attributes", "legacy-api"])
def test_two_different_ends_are_listed_as_they_are_read(jaeger: Jaeger, tenant: str, legacy: bool) -> None:
    """Two root spans with different documents: GET and lists return the same one, whichever came first, and the list
    says that there is another."""
    ends = [make_run("r"), make_run("r", output={"other": "end"}, status="failed"), make_run("r", T0 + SECOND)]
    random.Random(tenant).shuffle(ends)
    send(jaeger, [make_run("before", T0 - SECOND)], tenant)
    for run in ends:
        send(jaeger, [run], tenant)
    with proxy(jaeger, [], is_legacy=lambda: legacy) as url, reader_of(url) as reader:
        text = reader.document("r", tenant).text
        spans = reader.spans(run_ids("r", tenant).trace_id)
        stored = len({span.attributes()[DIGEST] for span in spans if not span.parent_id})
        (run,) = [run for run in ends if run.text == text]
        page = reader.search(RunQuery(tenant))
        assert list(page.items) == [run.summary(), make_run("before", T0 - SECOND).summary()]
        assert page.partial == (f"run r is one of {stored} different documents that were sent as the same revision",)
        assert len(reader.document("r", tenant).conflict) == stored - 1
        assert ids(reader.search(RunQuery(tenant, status=run.status, limit=1))) == ["r"]


def test_a_run_that_lost_its_steps_is_listed(jaeger: Jaeger, reader: JaegerReader, tenant: str) -> None:
    """The run span proves what a list shows of it. The document needs the steps, and without one there is none."""
    run = make_run("r", error={"message": "é" * 3000}, output="x" * 300_000)
    *steps, root = encode(run, tenant=tenant)
    post_spans(jaeger, [steps[0], root])
    page = reader.search(RunQuery(tenant))
    assert (list(page.items), page.partial) == ([run.summary()], ())
    with pytest.raises(TraceIncomplete):
        reader.document("r", tenant)
    post_spans(jaeger, steps)
    assert reader.document("r", tenant).text == run.text


@pytest.mark.parametrize("legacy", [False, True], ids=["attributes", "legacy-api"])
def test_a_text_in_events_is_part_of_the_list_item(jaeger: Jaeger, tenant: str, legacy: bool) -> None:
    """Texts that are too long for an attribute are read from events by every API: those that a list shows, and a
    payload of many events, in the order of their numbers."""
    error = {"message": "é" * 200_000, "code": "E"}
    run = make_run("r", workflowId="w" * 5000, error=error, status="failed", input="i" * 600_000)
    step = run.to_dict()["steps"][0] | {"output": list(range(60_000)), "name": "n" * 3000}
    run = Run.from_dict(run.to_dict() | {"steps": [step]})
    send(jaeger, [run], tenant)
    ui_reads(jaeger, "r", tenant)
    with proxy(jaeger, [], is_legacy=lambda: legacy) as url, reader_of(url) as reader:
        for query in (RunQuery(tenant), RunQuery(tenant, workflow_id="w" * 5000), RunQuery(tenant, status="failed")):
            page = reader.search(query)
            assert (list(page.items), page.partial) == ([run.summary()], ())
        assert reader.document("r", tenant).text == run.text


def test_runs_without_a_tenant_are_found_by_their_own_spans(jaeger: Jaeger, reader: JaegerReader) -> None:
    """A long run is listed where it starts, and not again in each part of time in which it has steps."""
    workflow = f"wf_{uuid4().hex}"
    runs = [
        make_run(f"{workflow}-{number}", T0 + number * 3600 * SECOND, workflowId=workflow, status=status)
        for number, status in enumerate(["completed", "failed", "running"] * 4)
    ]
    send(jaeger, runs, "")
    for limit in (1, 5, 50):
        query = RunQuery("", workflow_id=workflow, limit=limit)
        assert items_of_all_pages(reader, query) == [run.summary() for run in reversed(runs)]
    found = reader.search(RunQuery("", since=T0, limit=200)).items
    assert {run.summary() for run in runs} <= set(found)


def test_runs_of_the_far_future_and_without_any_time(
    jaeger: Jaeger, reader: JaegerReader, tenant: str, tmp_path: Path
) -> None:
    """Years that a span cannot have, leap seconds, no time at all: each is readable, and listed as the embedded store
    lists it, also in the year 2200."""
    times = [
        ("2200-01-01T00:00:00.000Z", "2200-01-01T00:00:01.000Z"),
        ("2262-04-11T23:47:16.854Z", None),
        ("0001-01-01T00:00:00.000Z", None),
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        ("0001-01-01T00:00:00Z", "2020-05-05T05:05:05.000Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:60.500Z"),
        (None, None),
        ("soon", "later"),
    ]
    runs = [
        make_run(f"r{number}-{status}", startedAt=start, completedAt=end, steps=steps, status=status)
        for number, (start, end) in enumerate(times)
        for status, steps in (("completed", []), ("running", ...), ("failed", [{"id": "a", "status": "completed"}]))
    ]
    send(jaeger, runs, tenant)
    with SqliteStore(tmp_path) as store:
        for run in runs:
            store.put(run, tenant=tenant, observed_at=NOW)
        for limit in (3, 50):
            query = RunQuery(tenant, limit=limit)
            assert items_of_all_pages(reader, query) == items_of_all_pages(store, query)
    for run in runs:
        assert reader.document(run.id, tenant).text == run.text
    ui_reads(jaeger, runs[-1].id, tenant)
    for run in runs:
        assert reader.document(run.id, tenant).text == run.text


def test_a_response_with_another_trace_is_refused(jaeger: Jaeger, tenant: str) -> None:
    """A gateway that returns the response to another request gives an error, neither that run nor an unknown one."""
    send(jaeger, [make_run("mine"), make_run("other")], tenant)
    trace_ids = {run_id: run_ids(run_id, tenant).trace_id for run_id in ("mine", "other")}

    def respond(path: str) -> tuple[int, str, bytes]:
        path = path.replace(trace_ids["mine"].hex(), trace_ids["other"].hex())
        response = httpx.get(f"{jaeger.url}{path}", trust_env=False)
        return response.status_code, response.headers["content-type"], response.content

    with serving(respond) as url, reader_of(url) as reader:
        assert reader.document("other", tenant).text == make_run("other").text
        for read in (lambda: reader.document("mine", tenant), lambda: reader.spans(trace_ids["mine"])):
            with pytest.raises(BackendRefused, match=trace_ids["other"].hex()):
                read()


def test_a_store_that_fails_for_any_range_is_an_error(jaeger: Jaeger, tenant: str) -> None:
    """It is not taken for one that refuses only wide ranges, or values that are no regular expressions."""
    send(jaeger, [make_run("r")], tenant)

    def respond(path: str) -> tuple[int, str, bytes]:
        if path.startswith("/api/v3/traces?"):
            return 500, "text/plain", b'{"error":{"httpCode":500,"message":"no shard is available"}}'
        response = httpx.get(f"{jaeger.url}{path}", trust_env=False)
        return response.status_code, response.headers["content-type"], response.content

    with serving(respond) as url, reader_of(url) as reader, pytest.raises(BackendRefused, match="no shard"):
        reader.search(RunQuery(tenant))


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_storage_is_busy(status: int) -> None:
    """Jaeger says so in the message of HTTP 500; the caller may retry."""
    message = f"search services failed: request failed, status code: {status}, body: no shard is available"
    body = json.dumps({"error": {"httpCode": 500, "message": message}}).encode()
    services = b'{"services":["runspan"]}'

    def respond(path: str) -> tuple[int, str, bytes]:
        return (500, "application/json", body) if "/traces" in path else (200, "application/json", services)

    with serving(respond) as url, reader_of(url) as reader, pytest.raises(BackendBusy) as caught:
        reader.document("r")
    assert caught.value.retry_after == 1


def test_responses_over_the_limit_are_requested_in_smaller_parts(jaeger: Jaeger, tenant: str) -> None:
    """Runs that together exceed the largest response are listed; one that exceeds it alone is an error."""
    payload = "x" * 100_000
    runs = [make_run(f"r{number:02}", T0 + number * SECOND, input=payload) for number in range(12)]
    send(jaeger, runs, tenant)
    for max_bytes, largest in ((600_000, len(runs)), (50_000, 0)):
        reader = JaegerReader(RemoteConfig("jaeger", jaeger.url, max_bytes=max_bytes))
        if largest:
            assert items_of_all_pages(reader, RunQuery(tenant, limit=10)) == [run.summary() for run in reversed(runs)]
        else:
            with pytest.raises(BackendRefused, match="MAX_BYTES"):
                reader.search(RunQuery(tenant))
        reader.close()


def test_an_upgrade_of_the_server_is_detected(jaeger: Jaeger, tenant: str) -> None:
    """When the search API is gone after an upgrade, the next list detects the new one."""
    run = make_run("r")
    send(jaeger, [run], tenant)
    paths: list[str] = []
    legacy = [True]
    with proxy(jaeger, paths, is_legacy=lambda: legacy[0]) as url, reader_of(url) as reader:
        assert list(reader.search(RunQuery(tenant)).items) == [run.summary()]
        legacy[0] = False
        with pytest.raises(BackendRefused):
            reader.search(RunQuery(tenant))
        assert list(reader.search(RunQuery(tenant)).items) == [run.summary()]
    used = [path for path, _ in groupby(path.partition("?")[0] for path in paths)]
    assert used == ["/api/v3/trace-summaries", "/api/traces", "/api/v3/trace-summaries", "/api/v3/traces"]


def test_other_services_are_searched_on_request(jaeger: Jaeger, tenant: str) -> None:
    """Runs that were exported under another service name are found by that name, or by a search of all services."""
    run = make_run("r")
    send(jaeger, [run], tenant, service="orders")
    for services, found in ((None, [run.summary()]), (("orders",), [run.summary()]), (("runspan",), [])):
        with reader_of(jaeger.url, services=services) as reader:
            assert list(reader.search(RunQuery(tenant)).items) == found
            assert reader.document("r", tenant).text == run.text


def test_values_that_are_cut_or_run_together(jaeger: Jaeger, reader: JaegerReader, tenant: str) -> None:
    """An index that joins keys and values without a separator returns no runs of other workflows."""
    send(
        jaeger, [make_run("a", workflowId="xy"), make_run("b", workflowId="x"), make_run("c", workflowId="xyz")], tenant
    )
    for name, run_ids_ in (("x", ["b"]), ("xy", ["a"]), ("xyz", ["c"]), ("", []), ("y", []), ("\ud800", [])):
        assert all_pages(reader, RunQuery(tenant, workflow_id=name)) == [run_ids_]


def test_many_readers_at_once(jaeger: Jaeger, reader: JaegerReader, tenant: str) -> None:
    """One reader serves several threads."""
    runs = [make_run(f"r{number:02}", T0 + number * SECOND) for number in range(40)]
    send(jaeger, runs, tenant)
    expected = [run.summary() for run in reversed(runs)]
    with ThreadPoolExecutor(8) as threads:
        texts = threads.map(lambda run: reader.document(run.id, tenant).text, runs)
        lists = threads.map(
            lambda limit: items_of_all_pages(reader, RunQuery(tenant, limit=limit)), [3, 7, 50, 200] * 3
        )
        assert list(texts) == [run.text for run in runs]
        assert all(items == expected for items in lists)


def test_a_memory_store_with_little_room(own_jaeger: Jaeger, tenant: str) -> None:
    """A store that refuses deep searches lists all that it holds, even when all runs start at one instant."""
    if own_jaeger.program is None and own_jaeger.container is None:
        pytest.skip("the server is shared with other tests")
    runs = [make_run(f"r{number:02}") for number in range(50)]
    send(own_jaeger, runs, tenant)
    with reader_of(own_jaeger.url) as reader:
        for limit in (1, 15, 50):
            held = items_of_all_pages(reader, RunQuery(tenant, limit=limit))
            assert len(held) == 40
            assert held == sorted(held, reverse=True)
        for run in runs:
            if run.summary() in held:
                assert reader.document(run.id, tenant).text == run.text
            else:
                with pytest.raises(NotFound):
                    reader.document(run.id, tenant)


def test_a_jaeger_that_is_down(own_jaeger: Jaeger, tenant: str) -> None:
    """After a Jaeger stops between two pages every call is an error with its URL, and never an empty result."""
    if own_jaeger.program is None and own_jaeger.container is None:
        pytest.skip("the server is shared with other tests")
    send(own_jaeger, [make_run(f"r{number}", T0 + number) for number in range(9)], tenant)
    with reader_of(own_jaeger.url, timeout=3) as reader:
        page = reader.search(RunQuery(tenant, limit=3))
        reader.check()
        own_jaeger.stop()
        for ask in (
            lambda: reader.search(RunQuery(tenant, limit=3, cursor=page.cursor)),
            lambda: reader.search(RunQuery("never sent")),
            lambda: reader.document("r0", tenant),
            lambda: reader.document("none", tenant),
            lambda: reader.spans(bytes(range(16))),
            reader.check,
        ):
            with pytest.raises(BackendUnreachable) as caught:
                ask()
            assert own_jaeger.url in str(caught.value)


def test_a_jaeger_that_never_answers() -> None:
    """A server that accepts the connection and sends nothing is unreachable after the timeout."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        reader_of(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2) as reader,
    ):
        for ask in (lambda: reader.search(RunQuery()), lambda: reader.document("r"), reader.check):
            with pytest.raises(BackendUnreachable):
                ask()


@pytest.mark.parametrize(
    "response",
    [
        (200, "text/html", b"<!doctype html><title>Shop</title>"),
        (404, "text/plain", b"404 page not found\n"),
        (404, "text/html", b"<h1>Not here</h1>"),
        (500, "application/json", b'{"error":{"httpCode":500,"message":"disk full"}}'),
        (500, "text/plain", b""),
        (400, "text/plain", b"what?"),
    ],
)
def test_a_server_that_is_no_jaeger_or_a_broken_one(response: tuple[int, str, bytes]) -> None:
    """A response that is not Jaeger's is an error; it is neither an empty list nor an unknown run."""
    with serving(lambda path: response) as url, reader_of(url) as reader:
        for ask in (lambda: reader.search(RunQuery()), lambda: reader.document("r"), reader.check):
            with pytest.raises(BackendRefused) as caught:
                ask()
            assert url in str(caught.value)


def test_a_panic_of_jaeger_costs_a_request(jaeger: Jaeger, tenant: str) -> None:
    """Its memory storage panics when a trace is written while it is copied; that is no error of the run or the list."""
    run = make_run("r")
    send(jaeger, [run], tenant)
    asked: Counter[str] = Counter()

    def respond(path: str) -> tuple[int, str, bytes]:
        asked[path] += 1
        if "/traces" in path and asked[path] % 3:
            return 500, "text/plain", b""
        response = httpx.get(f"{jaeger.url}{path}", trust_env=False)
        return response.status_code, response.headers["content-type"], response.content

    with serving(respond) as url, reader_of(url) as reader:
        assert reader.document("r", tenant).text == run.text
        assert all_pages(reader, RunQuery(tenant)) == [["r"]]


def test_a_list_that_takes_too_long_ends(jaeger: Jaeger, tenant: str) -> None:
    """The searches of one list share a time limit, and a part of the list is not returned as the complete list."""
    send(jaeger, [make_run(f"r{number}") for number in range(3)], tenant)
    ticks = iter(range(0, 10_000, 30))
    config = RemoteConfig("jaeger", jaeger.url)
    reader = JaegerReader(config, monotonic=lambda: float(next(ticks)))
    with pytest.raises(BackendUnreachable, match="within 60 seconds"):
        reader.search(RunQuery(tenant))
    reader.close()


def test_an_incomplete_run_is_read_again(jaeger: Jaeger, tenant: str) -> None:
    """A step that arrives while the reader waits completes the run."""
    run = running("r", done=1)
    spans = encode(run, tenant=tenant, observed_at=NOW)
    pauses: list[float] = []

    def post(part: slice) -> None:
        body = request_bytes(Resource(), map(scoped_bytes, spans[part]))
        httpx.post(f"{jaeger.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).raise_for_status()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        post(slice(0, 1))

    post(slice(1, None))
    reader = JaegerReader(RemoteConfig("jaeger", jaeger.url), sleep=sleep)
    assert reader.document("r", tenant).text == run.text
    reader.close()
    assert len(pauses) == 1


def test_a_run_that_is_incomplete_after_a_slow_response_is_refused_with_what_is_missing(
    jaeger: Jaeger, tenant: str
) -> None:
    """No other store is searched for the rest of a trace, so the last response counts when time is over."""
    root = encode(running("r", done=1), tenant=tenant, observed_at=NOW)[0]
    body = request_bytes(Resource(), [scoped_bytes(root)])
    httpx.post(f"{jaeger.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).raise_for_status()
    clock = chain([0.0], repeat(LIST_SECONDS + 1))
    reader = JaegerReader(RemoteConfig("jaeger", jaeger.url), monotonic=lambda: next(clock))
    with pytest.raises(TraceIncomplete):
        reader.document("r", tenant)
    reader.close()
