"""Jaeger on a real OpenSearch with its own limits: what it cannot look at, far spans, aliases and wrong settings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
import yaml
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from conformance.harness import MS, SECOND, ids, make_run, running
from conformance.opensearch import OpenSearchByOtlp, jaeger_on_opensearch_with_defaults
from runspan import Run
from runspan.backends.jaeger import JaegerReader
from runspan.backends.jaeger.reader import LIST_SECONDS
from runspan.backends.remote.config import LOOKBACK_DAYS, remote_config
from runspan.contracts import RunQuery, TraceReader
from runspan.delivery.config import exporter_config
from runspan.errors import BackendError, BackendRefused, BackendTimeout, NotFound
from runspan.forward import Forwarder
from runspan.model.timestamps import canonical_text
from runspan.verify import Sent, canary, diagnosis, verify
from runspan.verify.diagnosis import MAX_NESTED_OBJECTS
from support.cli import runspan, write_ndjson
from support.servers.opensearch import JaegerOnOpenSearch, OpenSearch, jaeger_on
from support.servers.programs import ROOT

pytestmark = pytest.mark.campaign

DAY: Final = 86_400 * SECOND
NOT_SEARCHED: Final = f"runs that started more than {LOOKBACK_DAYS} days ago were not searched"

OUTSIDE: Final = (
    "runs that started outside max_span_age of Jaeger's storage are listed as they were near their start: "
    "later revisions may be missing"
)


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone."""
    return f"tenant-{uuid4().hex}"


@contextmanager
def by_otlp(
    server: JaegerOnOpenSearch, services: Sequence[str] | None = None, **env: str
) -> Iterator[OpenSearchByOtlp]:
    """Yield a harness whose reader has the defaults, but for these."""
    harness = jaeger_on_opensearch_with_defaults(server, services, **env)
    yield harness
    harness.close()


def now() -> int:
    return time.time_ns() // MS * MS


def test_what_is_not_looked_at_is_said(jaeger_opensearch_90_days: JaegerOnOpenSearch, tenant: str) -> None:
    """Lists and ids reach 400 days back, further than max_span_age; what is older or later is said."""
    start = now()
    days = [0, 1, 30, 80, 200, 390]
    runs = [make_run(f"r{age:03}", start - age * DAY, steps=[]) for age in days]
    with by_otlp(jaeger_opensearch_90_days) as backend:
        backend.send(*runs, make_run("r900", start - 900 * DAY), make_run("later", start + 20 * DAY), tenant=tenant)
        reader = backend.reader
        page = reader.search(RunQuery(tenant))
        assert list(page.items) == [run.summary() for run in runs]
        assert NOT_SEARCHED in page.partial
        assert OUTSIDE in page.partial
        page = reader.search(RunQuery(tenant, since=start - 40 * DAY))
        assert (ids(page), page.partial) == (["r000", "r001", "r030"], ())
        assert reader.search(RunQuery(tenant, since=start + 10 * DAY)).partial == (
            "runs that start later than a day from now were not searched",
        )
        for run in runs:
            assert reader.document(run.id, tenant).text == run.text
        for run_id in ("r900", "later", "unknown"):
            with pytest.raises(NotFound, match=f"max_span_age.*{LOOKBACK_DAYS} days ago"):
                reader.document(run_id, tenant)


def test_a_run_that_waited_for_days_is_listed_once(jaeger_opensearch_90_days: JaegerOnOpenSearch, tenant: str) -> None:
    """A search returns of a trace only the spans near its range, so the newest revision is read by the trace's id."""
    created, started = now() - 10 * DAY, now() - 2 * DAY
    queued = {"id": "queued", "workflowId": "wf_q", "status": "pending", "createdAt": canonical_text(created)}
    with by_otlp(jaeger_opensearch_90_days) as backend:
        backend.send(Run.from_dict(queued | {"steps": []}), tenant=tenant, observed_at=created)
        backend.send(running("queued", started, workflowId="wf_q"), tenant=tenant, observed_at=started)
        for query in (RunQuery(tenant), RunQuery(tenant, workflow_id="wf_q"), RunQuery(tenant, status="running")):
            assert ids(backend.reader.search(query)) == ["queued"], query
        for query in (RunQuery(tenant, status="pending"), RunQuery(tenant, until=started)):
            assert ids(backend.reader.search(query)) == [], query


def test_runs_of_1970_are_not_found_with_the_reason(jaeger_opensearch_90_days: JaegerOnOpenSearch, tenant: str) -> None:
    """Jaeger looks for the spans of a trace from a day before the range on, and finds none when that is before 1970."""
    with by_otlp(jaeger_opensearch_90_days) as backend:
        backend.send(make_run("first", 5 * SECOND), make_run("new", now()), tenant=tenant)
        page = backend.reader.search(RunQuery(tenant))
        assert (ids(page), page.partial) == (["new"], (NOT_SEARCHED,))
        with pytest.raises(NotFound, match="nothing of 1970 is found"):
            backend.reader.document("first", tenant)


def test_old_runs_alone_are_listed(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """Jaeger knows a service from the days of max_span_age only: it knows none that has sent older runs alone."""
    with jaeger_on(opensearch, tmp_path) as server, by_otlp(server) as backend:
        backend.send(make_run("old", now() - 9 * DAY), tenant=tenant)
        assert ids(backend.reader.search(RunQuery(tenant))) == ["old"]


def test_a_forwarded_correction_ranks_above_an_end_that_has_no_trace_by_its_id(
    opensearch: OpenSearch, tmp_path: Path, tenant: str
) -> None:
    """All revisions of a run lie at its start, before max_span_age: what is there is searched for."""
    old = make_run("old", now() - 9 * DAY)
    outputs = [Run.from_json(json.dumps(json.loads(old.text) | {"output": number})) for number in range(4)]
    with jaeger_on(opensearch, tmp_path) as server, by_otlp(server) as backend:
        backend.send(old, tenant=tenant)
        assert backend.reader.document("old", tenant).text == old.text
        for run in outputs:
            # Another server each time, which has to read what is there.
            with closing(Forwarder(backend.reader, exporter_config({}, endpoint=server.otlp))) as forwarder:
                forwarder.put(run, tenant=tenant, observed_at=time.time_ns())
            deadline = time.monotonic() + 60
            while backend.reader.document("old", tenant).text != run.text:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert not backend.reader.document("old", tenant).conflict


@pytest.mark.timeout(900)
def test_a_max_span_age_that_is_too_long_is_found_out(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """The names of its indices do not fit into a URL: a list says so, and needs the names of the services."""
    run = make_run("r", now())
    with jaeger_on(opensearch, tmp_path, max_span_age="87600h") as server:
        with by_otlp(server) as backend:
            backend.send(run, tenant=tenant)
            assert backend.reader.document("r", tenant).text == run.text
            with pytest.raises(BackendRefused, match=r"http\.max_initial_line_length"):
                backend.reader.search(RunQuery(tenant))
        with by_otlp(server, ["runspan"]) as backend:
            assert ids(backend.reader.search(RunQuery(tenant))) == ["r"]
        file = write_ndjson(tmp_path / "runs.ndjson", {"r": run.text})
        args = ("verify", file, "--backend", f"jaeger+{server.url}", "--endpoint", server.otlp, "--wait", "240s")
        report = runspan(*args, code=9).stderr
        assert "1 of 1 documents came back the same" in report
        assert "http.max_initial_line_length" in report
        runspan(*args, RUNSPAN_BACKEND_SERVICES="runspan")


def test_aliases_need_no_windows(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """Behind rollover aliases there is one name for all times: Jaeger finds nothing before 1971."""
    rotation: dict[str, Any] = {"rotation": {"manual_rollover": {}}}
    with jaeger_on(opensearch, tmp_path, indices={"spans": rotation, "services": rotation}) as server:
        create_aliases(server)
        runs = [
            make_run(name, at) for name, at in (("far", now() + 900 * DAY), ("new", now()), ("old", now() - 900 * DAY))
        ]
        with by_otlp(server) as backend:
            backend.send(*runs, make_run("first", 5 * SECOND), tenant=tenant)
            page = backend.reader.search(RunQuery(tenant))
            assert (ids(page), page.partial) == (
                ["far", "new", "old"],
                (OUTSIDE, "runs that started before 1971 were not searched"),
            )
            for run in runs:
                assert backend.reader.document(run.id, tenant).text == run.text


def test_a_run_whose_spans_lie_on_both_sides_of_a_rollover_is_whole(
    opensearch: OpenSearch, tmp_path: Path, tenant: str
) -> None:
    """The read alias has all indices, the write alias the newest. When the oldest leaves, its runs have left."""
    rotation: dict[str, Any] = {"rotation": {"manual_rollover": {}}}
    with jaeger_on(opensearch, tmp_path, indices={"spans": rotation, "services": rotation}) as server:
        create_aliases(server)
        name = f"{server.prefix}-jaeger-span"
        old, start = make_run("old", now() - 200 * DAY), now() - DAY
        with by_otlp(server) as backend:
            backend.send(old, tenant=tenant)
            backend.send(running("long", start), tenant=tenant, observed_at=start + SECOND)
            backend.reader.search(RunQuery(tenant))  # waits until the spans are found
            opensearch.post(f"{name}-write/_rollover", {})
            opensearch.put(f"{name}-000002/_alias/{name}-read", {})
            ended, new = make_run("long", start), make_run("new", now())
            backend.send(ended, new, tenant=tenant)
            assert list(backend.reader.search(RunQuery(tenant)).items) == [run.summary() for run in (new, ended, old)]
            for run in (old, ended, new):
                assert backend.reader.document(run.id, tenant).text == run.text
            opensearch.delete(f"{name}-000001")
            assert ids(backend.reader.search(RunQuery(tenant))) == ["new", "long"]
            assert backend.reader.document("long", tenant).text == ended.text
            with pytest.raises(NotFound):
                backend.reader.document("old", tenant)


def create_aliases(server: JaegerOnOpenSearch) -> None:
    """Create the first indices behind rollover aliases, as ``jaeger-es-rollover init`` does."""
    for kind in ("span", "service"):
        name = f"{server.prefix}-jaeger-{kind}"
        aliases = {f"{name}-read": {}, f"{name}-write": {"is_write_index": True}}
        server.opensearch.put(f"{name}-000001", {"aliases": aliases})


def checked(backend: OpenSearchByOtlp, run: Run, tenant: str, wait: float) -> Any:
    """Return what ``runspan verify`` says of a run."""

    def send(runs: Sequence[Run], observed_at: int) -> Sent:
        backend.send(*runs, tenant=tenant, observed_at=observed_at)
        return Sent()

    reader: TraceReader = backend.reader.reader
    (result,) = verify(
        [run],
        send,
        reader,
        kind="jaeger",
        tenant=tenant,
        wait=wait,
        now=now(),
        clock=time.monotonic,
        sleep=time.sleep,
    )
    return result


def test_verify_finds_a_max_span_age_that_is_too_short(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """The run comes back, but no viewer shows its trace: Jaeger's default are three days."""
    with jaeger_on(opensearch, tmp_path) as server, by_otlp(server) as backend:
        result = checked(backend, make_run("r", now() - 9 * DAY), tenant, wait=60)
    assert (result.result, result.detail) == ("same", "found by a search only: its trace cannot be read by its id")
    assert any("max_span_age" in line for line in result.advice)


def test_verify_finds_aliases_that_nobody_created(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """OpenSearch makes an index with the name of the alias for writing, and Jaeger reads from none."""
    rotation: dict[str, Any] = {"rotation": {"manual_rollover": {}}}
    indices = {"spans": rotation, "services": rotation}
    with jaeger_on(opensearch, tmp_path, indices=indices) as server, by_otlp(server) as backend:
        result = checked(backend, make_run("r", now()), tenant, wait=3)
    assert result.result == "not found"
    assert any("jaeger-es-rollover init" in line for line in result.advice)


@pytest.mark.timeout(1200)
def test_a_step_of_20_mb_needs_the_shipped_template(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """It has 10,500 nested objects. Without the template the run is refused, and verify says why."""
    large = make_run("large", now(), steps=[{"id": "s", "status": "completed", "output": "x" * 21_000_000}])
    (tmp_path / "default").mkdir()
    # What needs longer on a busy machine is tried again until the time is over.
    with jaeger_on(opensearch, tmp_path / "default") as server, by_otlp(server) as backend:
        result = checked(backend, large, tenant, wait=20)
        assert result.result in ("incomplete", "not found")
        assert any("nested_objects.limit" in line for line in result.advice)
    with shipped_template(opensearch), shipped(opensearch, tmp_path) as server:
        with by_otlp(server, RUNSPAN_BACKEND_TIMEOUT="120") as backend:
            result = checked(backend, large, tenant, wait=600)
            assert (result.result, result.advice) == ("same", ())
        with (
            by_otlp(server, RUNSPAN_BACKEND_TIMEOUT="0.01") as backend,
            pytest.raises(BackendTimeout, match=r"within 0\.01 seconds.*RUNSPAN_BACKEND_TIMEOUT"),
        ):
            backend.reader.document("large", tenant)


def test_verify_finds_a_max_doc_count_that_is_too_small(
    opensearch: OpenSearch, tmp_path: Path, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jaeger reads a trace in pages by the start of the spans: what starts as the last one of a page is left out."""
    monkeypatch.setattr(diagnosis, "MAX_DOC_COUNT", 50)
    start = now()
    step = {"status": "completed", "startedAt": canonical_text(start)}
    at_once = make_run("at-once", start, steps=[step | {"id": f"s{number}"} for number in range(120)])
    times = [canonical_text(start + number * MS) for number in range(120)]
    in_turn = make_run("in-turn", start, steps=[step | {"id": at, "startedAt": at} for at in times])
    with jaeger_on(opensearch, tmp_path, max_doc_count=50) as server, by_otlp(server) as backend:
        backend.send(in_turn, tenant=tenant)
        assert backend.reader.document("in-turn", tenant).text == in_turn.text
        result = checked(backend, at_once, tenant, wait=10)
        assert result.result == "incomplete"
        assert any("max_doc_count" in line for line in result.advice)
        clock = chain([0.0], repeat(LIST_SECONDS + 1))
        reader = JaegerReader(remote_config(f"jaeger+{server.url}", {}), monotonic=lambda: next(clock))
        with closing(reader), pytest.raises(BackendTimeout, match="the run within 60 seconds"):
            reader.document("at-once", tenant)
    with jaeger_on(opensearch, tmp_path, prefix=server.prefix) as server, by_otlp(server) as backend:
        assert backend.reader.document("at-once", tenant).text == at_once.text


def test_an_index_that_cannot_be_searched_is_an_error_with_the_documented_setting(
    opensearch: OpenSearch, tmp_path: Path, tenant: str
) -> None:
    """By default OpenSearch answers without the runs of that day, which no reader can see."""
    setting = "search.default_allow_partial_results"
    with jaeger_on(opensearch, tmp_path, max_span_age="2160h") as server, by_otlp(server) as backend:
        backend.send(make_run("today", now()), tenant=tenant)
        assert ids(backend.reader.search(RunQuery(tenant))) == ["today"]
        yesterday = datetime.fromtimestamp((now() - DAY) / SECOND, UTC).date()
        nowhere = {"settings": {"index.routing.allocation.require._name": "none"}}
        opensearch.put(f"{server.prefix}-jaeger-span-{yesterday}?wait_for_active_shards=0&timeout=1s", nowhere)
        assert ids(backend.reader.search(RunQuery(tenant))) == ["today"]
        opensearch.put("_cluster/settings", {"persistent": {setting: False}})
        try:
            with pytest.raises(BackendError):
                backend.reader.search(RunQuery(tenant))
        finally:
            opensearch.put("_cluster/settings", {"persistent": {setting: None}})
            opensearch.delete(f"{server.prefix}-jaeger-span-{yesterday}")


def test_a_span_with_more_attributes_than_nested_objects_needs_the_shipped_template(
    opensearch: OpenSearch, tmp_path: Path
) -> None:
    """OpenSearch drops it, which Jaeger acknowledged; with the template it is there."""
    found = []
    for has_template in (False, True):
        (tmp_path / str(has_template)).mkdir()
        template = shipped_template(opensearch) if has_template else nullcontext()
        with template, jaeger_on(opensearch, tmp_path / str(has_template)) as server:
            large, small = (send_attributes(server, count) for count in (MAX_NESTED_OBJECTS + 500, 100))
            deadline = time.monotonic() + 60
            while not server.spans([small]) or (has_template and not server.spans([large])):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            found.append(len(server.spans([large])))
    assert found == [0, 1]


def send_attributes(server: JaegerOnOpenSearch, count: int) -> str:
    """Send a span with so many attributes; return its trace id in hex."""
    data = TracesData()
    outer = data.resource_spans.add()
    outer.resource.attributes.add(key="service.name").value.string_value = "llm"
    at = now()
    trace_id = uuid4().bytes
    span = outer.scope_spans.add().spans.add(
        trace_id=trace_id, span_id=b"\1" * 8, name="many", start_time_unix_nano=at, end_time_unix_nano=at + SECOND
    )
    for number in range(count):
        span.attributes.add(key=f"k{number}").value.string_value = "v"
    headers = {"content-type": "application/x-protobuf"}
    url = f"{server.otlp}/v1/traces"
    httpx.post(url, content=data.SerializeToString(), headers=headers, trust_env=False).raise_for_status()
    return trace_id.hex()


def test_the_shipped_configuration_gives_runs_back(opensearch: OpenSearch, tmp_path: Path, tenant: str) -> None:
    """Canaries of today and of two months ago come back, and nothing is to be changed."""
    with shipped(opensearch, tmp_path) as server, by_otlp(server) as backend:
        for age in (0, 60):
            result = checked(backend, canary(f"canary-{age}", now() - age * DAY), tenant, wait=120)
            assert (result.result, result.advice) == ("same", ()), result


def test_long_names_of_indices_are_searched_in_smaller_parts(
    opensearch: OpenSearch, tmp_path: Path, tenant: str
) -> None:
    """Jaeger's prefix makes the names so long that fewer days fit into a URL."""
    run = make_run("old", now() - 99 * DAY)
    with jaeger_on(opensearch, tmp_path, prefix="p" * 80) as server, by_otlp(server) as backend:
        backend.send(run, make_run("new", now()), tenant=tenant)
        assert ids(backend.reader.search(RunQuery(tenant))) == ["new", "old"]
    with jaeger_on(opensearch, tmp_path, prefix=server.prefix) as server, by_otlp(server) as backend:
        assert backend.reader.document("old", tenant).text == run.text


@contextmanager
def shipped_template(opensearch: OpenSearch) -> Iterator[None]:
    """Have the template of ``deploy/opensearch-template.json`` for new indices."""
    opensearch.put("_template/runspan", json.loads((ROOT / "deploy" / "opensearch-template.json").read_text()))
    try:
        yield
    finally:
        opensearch.delete("_template/runspan")


@contextmanager
def shipped(opensearch: OpenSearch, directory: Path) -> Iterator[JaegerOnOpenSearch]:
    """Yield a Jaeger with the storage of ``deploy/jaeger-opensearch.yaml``."""
    settings = yaml.safe_load((ROOT / "deploy" / "jaeger-opensearch.yaml").read_text())
    storage = settings["extensions"]["jaeger_storage"]["backends"]["runs"]["opensearch"]
    del storage["server_urls"]
    with jaeger_on(opensearch, directory, **storage) as server:
        yield server
