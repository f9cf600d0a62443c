"""Runs that have not ended as an unmodified Jaeger and Tempo show them, queried without any of our readers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from conformance.harness import SECOND, all_pages
from conformance.jaeger import jaeger_by_otlp
from conformance.remote import TempoByOtlp, tempo_by_otlp
from conformance.sending import ByOtlp
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import RunQuery
from runspan.model.document import sort_time
from runspan.model.span import run_ids
from runspan.model.timestamps import canonical_text
from support.run_histories import STAGE_COUNT, Observation, run_history
from support.servers import Tempo, require, start_tempo
from support.servers.jaeger import Jaeger
from support.servers.tempo import IMAGE

DAY = 86_400 * SECOND
SNAPSHOT = "snapshot wf_live"


def life_now(run_id: str) -> list[Observation]:
    """Return a life that began some days ago, at a time of this test run only."""
    return run_history(run_id, time.time_ns() // SECOND * SECOND - 3 * DAY)


@pytest.fixture(params=["jaeger-memory", "jaeger-badger"])
def jaeger(request: pytest.FixtureRequest) -> Iterator[tuple[Jaeger, ByOtlp]]:
    server = request.getfixturevalue(request.param.replace("-", "_"))
    backend = jaeger_by_otlp(server)
    yield server, backend
    backend.close()


@pytest.fixture
def tempo_backend(tempo: Tempo) -> Iterator[tuple[Tempo, TempoByOtlp]]:
    backend = tempo_by_otlp(tempo)
    yield tempo, backend
    backend.close()


def response_of(url: str, path: str, **parameters: Any) -> Any:
    response = httpx.get(f"{url}{path}", params=parameters, trust_env=False, timeout=30)
    assert response.is_success, response.text[:300]
    return response.json()


def test_jaeger_shows_each_snapshot_of_a_run_in_progress(jaeger: tuple[Jaeger, ByOtlp]) -> None:
    """Its pages find the run by status while it runs, with name, kind, duration and identity; and our document of it
    stays correct although those queries rewrite the memory storage."""
    server, backend = jaeger
    tenant = uuid4().hex
    life = life_now("shown")[:5]
    for seen in life:
        backend.send(seen.run, tenant=tenant, observed_at=seen.at)
    trace_id = run_ids("shown", tenant).trace_id.hex()
    tags = {"runspan.tenant": tenant, "runspan.run.status": "running"}
    window = {"start": (life[0].at - DAY) // 1000, "end": (life[-1].at + DAY) // 1000, "limit": 20}
    found = response_of(
        server.url, "/api/traces", service="runspan", operation=SNAPSHOT, tags=json.dumps(tags), **window
    )
    assert [trace["traceID"].zfill(32) for trace in found["data"]] == [trace_id]
    spans = response_of(server.url, f"/api/traces/{trace_id}")["data"][0]["spans"]
    shown = {span["spanID"]: tags_of(span) for span in spans if span["operationName"] == SNAPSHOT}
    assert len(shown) == len(life)
    for seen in life:
        (snapshot,) = [tags for tags in shown.values() if int(tags["runspan.revision"]) == seen.at]
        assert snapshot["runspan.run.status"] == seen.run.status
        assert (snapshot["runspan.run.id"], snapshot["runspan.workflow.id"]) == ("shown", "wf_live")
        assert (snapshot["span.kind"], snapshot.get("error")) == ("internal", None)
        assert snapshot["start"] == sort_time(seen.run.envelope) // 1000
        assert snapshot["duration"] == (seen.at - sort_time(seen.run.envelope)) // 1000
    attempts = [span for span in spans if span["operationName"] == "attempt of Charge Card"]
    assert sorted(tags_of(span)["error.type"] for span in attempts) == ["TIMEOUT_1", "TIMEOUT_2"]
    assert {tags_of(span)["runspan.step.id"] for span in attempts} == {"charge"}
    assert backend.reader.document("shown", tenant).text == life[-1].run.text


def tags_of(span: dict[str, Any]) -> dict[str, Any]:
    """Return the tags of a span in Jaeger's own form, with its start and duration in microseconds."""
    tags = {tag["key"]: tag["value"] for tag in span["tags"]}
    return tags | {"start": span["startTime"], "duration": span["duration"]}


def test_tempo_finds_a_run_in_progress_by_its_status(tempo_backend: tuple[Tempo, TempoByOtlp]) -> None:
    """TraceQL finds the newest snapshot by name, status attribute, duration and kind; span status stays unset."""
    server, backend = tempo_backend
    tenant = uuid4().hex
    life = life_now("shown")[:5]
    for seen in life:
        backend.send(seen.run, tenant=tenant, observed_at=seen.at)
    backend.reader.search(RunQuery(tenant))  # waits until Tempo's search has all of it
    query = (
        f'{{ name = "{SNAPSHOT}" && span.runspan.tenant = "{tenant}" && span.runspan.run.status = "running" '
        f"&& kind = internal && status = unset && duration > 4s }} "
        "| select(span.runspan.run.id, span.runspan.workflow.id, span.runspan.revision)"
    )
    window = {"start": life[0].at // SECOND - 3600, "end": life[-1].at // SECOND + 3600}
    found = response_of(server.url, "/api/search", q=query, spss=10, **window)["traces"]
    assert [trace["traceID"].zfill(32) for trace in found] == [run_ids("shown", tenant).trace_id.hex()]
    spans = {span["spanID"]: span for span_set in found[0]["spanSets"] for span in span_set["spans"]}
    assert len(spans) == 1
    (newest,) = spans.values()
    attributes = {item["key"]: next(iter(item["value"].values())) for item in newest["attributes"]}
    assert attributes["runspan.revision"] == str(life[-1].at)
    assert (attributes["runspan.run.id"], attributes["runspan.workflow.id"]) == ("shown", "wf_live")
    assert int(newest["startTimeUnixNano"]) + int(newest["durationNanos"]) == life[-1].at


def test_lists_from_tempos_blocks_equal_the_stores(tmp_path: Path) -> None:
    """Where snapshots lie in blocks on disk and ends in others, lists by status and stuck lists are the embedded
    store's, item by item."""
    place = require("tempo", IMAGE)
    if place.urls is not None:
        pytest.skip("needs an empty Tempo that searches blocks, and the environment names one")
    server = start_tempo(place, tmp_path, from_blocks=True)
    try:
        backend = tempo_by_otlp(server)
        with SqliteStore(tmp_path / "store") as store:
            began = time.time_ns() // SECOND * SECOND - 5 * DAY
            lives = [run_history(f"run-{number:02}", began + number * SECOND) for number in range(STAGE_COUNT * 2)]
            for stage in range(STAGE_COUNT):
                for number, life in enumerate(lives):
                    if stage <= number // 2:
                        backend.send(life[stage].run, tenant="", observed_at=life[stage].at)
                        store.put(life[stage].run, observed_at=life[stage].at)
                if stage % 3 == 0 or stage == STAGE_COUNT - 1:
                    backend.reader.search(
                        RunQuery("")
                    )  # waits until it is searchable, so that stages lie in different blocks
            for number, seconds in ((18, -8), (19, 40)):
                moved = moved_by(lives[number][-1].run, seconds * SECOND)
                spans = encode(moved, observed_at=began + 200 * SECOND, after_root=True)
                backend.send_spans(spans, "")
                store.put(moved, observed_at=began + 200 * SECOND)
            for query in queries(began):
                expected = [name for page in all_pages(store, query) for name in page]
                assert [name for page in all_pages(backend.reader, query) for name in page] == expected, query
        backend.close()
    finally:
        server.stop()


def moved_by(run: Run, length: int) -> Run:
    """The run with another start."""
    start = sort_time(run.envelope) + length
    return Run.from_dict(run.to_dict() | {"startedAt": canonical_text(start)})


def queries(began: int) -> list[RunQuery]:
    statuses = (None, "pending", "running", "suspended", "completed")
    plain = [RunQuery("", status=status) for status in statuses] + [RunQuery("", limit=2)]
    times = [began + offset * SECOND for offset in (0, 10, 15, 100)]
    stuck = [RunQuery("", status=status, stuck_before=at) for status in statuses[:3] for at in times]
    return plain + stuck
