"""Times at the bounds of what systems can hold, at every door: each document is accepted and comes back as it is.

Go's extreme times, the year 1 and the year 9999, and what is one nanosecond beyond a span's bounds. Documents carry
such a time as text, so no door refuses one for it; a document that is refused is refused with the same place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from conformance.harness import Harness
from runspan import Run, encode
from runspan.archive.create import AgeRange
from runspan.backends.sqlite import SqliteStore
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import sort_time
from runspan.model.timestamps import LATEST_END_NS, MAX_NS
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.archives import make
from support.cli import runspan, write_ndjson
from support.faulty_platform import platform
from support.recorder import recording
from support.sync import LocalServer, documents, local_server, sync_once
from support.watch import Bench
from support.web import JSON, PROTOBUF

NOW = 1_790_000_000_000_000_000

TIMES = {
    "Go's time.Unix(0, math.MaxInt64)": "2262-04-11T23:47:16.854775807Z",
    "one nanosecond later": "2262-04-11T23:47:16.854775808Z",
    "the latest end of a span": "2262-04-11T23:47:16.854775805Z",
    "the latest start of a span": "2262-04-11T23:47:16.854775804Z",
    "one nanosecond before": "2262-04-11T23:47:16.854775803Z",
    "its last millisecond": "2262-04-11T23:47:16.854Z",
    "the millisecond after": "2262-04-11T23:47:16.855Z",
    "the last day of canonical times": "2262-04-10T23:59:59.999Z",
    "Go's zero time": "0001-01-01T00:00:00Z",
    "Go's time.Unix(0, math.MinInt64)": "1677-09-21T00:12:43.145224192Z",
    "one nanosecond before MinInt64": "1677-09-21T00:12:43.145224191Z",
    "the year 9999": "9999-12-31T23:59:59.999999999Z",
    "before 1970": "1969-12-31T23:59:59.999Z",
    "one nanosecond before 1970": "1969-12-31T23:59:59.999999999Z",
    "1970": "1970-01-01T00:00:00.000Z",
    "one nanosecond after 1970": "1970-01-01T00:00:00.000000001Z",
    "no time": "0000-00-00T00:00:00Z",
}

PLACES = ("startedAt", "completedAt", "createdAt", "steps", "attempts", "everywhere")


def bounded_document(run_id: str, time: str, place: str, status: str) -> dict[str, Any]:
    """Return a run of three steps with a time at one place."""
    usual, end = "2026-01-15T12:00:00.000Z", "2026-01-15T12:00:01.000Z"
    step = {"type": "action", "status": "completed", "startedAt": usual, "completedAt": end}
    document: dict[str, Any] = {
        "id": run_id,
        "workflowId": "wf_1",
        "status": status,
        "startedAt": usual,
        "completedAt": end if status == "completed" else None,
        "createdAt": usual,
        "steps": [{"id": "a", **step}, {"id": "b", **step}, {"id": "c", **step}],
    }
    if place in document and place != "steps":
        document[place] = time
    if place in ("steps", "everywhere"):
        document["steps"][1] |= {"startedAt": time}
        document["steps"][2] |= {"startedAt": time, "completedAt": time}
    if place in ("attempts", "everywhere"):
        document["steps"][0]["attempts"] = [{"status": "failed", "startedAt": time, "completedAt": time}]
    if place == "everywhere":
        document |= {"startedAt": time, "completedAt": time, "createdAt": time}
    return document


CASES = {
    run.id: run
    for number, (time, place, status) in enumerate(product(TIMES.values(), PLACES, ("completed", "running")))
    for run in [Run.from_dict(bounded_document(f"run_{number:03}", time, place, status))]
}
TEXTS = {run_id: run.text for run_id, run in CASES.items()}
SPANS = [scoped_bytes(span) for run in CASES.values() for span in encode(run, observed_at=NOW)]

REPEATED = TEXTS["run_000"].replace(b'"id":"c",', b'"id":"c","startedAt":null,').replace(b"run_000", b"bad")
"""A document that no door can carry: ``steps[2]`` starts twice."""
PLACE = "steps[2].startedAt"


def posted(target: LocalServer, tmp_path: Path) -> None:
    with httpx.Client(base_url=target.url, trust_env=False) as api:
        for text in TEXTS.values():
            assert api.post("/api/v1/runs", content=text, headers=JSON).is_success


def over_protobuf(target: LocalServer, tmp_path: Path) -> None:
    answer = httpx.post(
        f"{target.url}/v1/traces", content=request_bytes(Resource(), SPANS), headers=PROTOBUF, trust_env=False
    )
    assert (answer.status_code, answer.content) == (200, b"")


def over_json(target: LocalServer, tmp_path: Path) -> None:
    body = write_json([span for run in CASES.values() for span in encode(run, observed_at=NOW)])
    answer = httpx.post(f"{target.url}/v1/traces", content=body, headers=JSON, trust_env=False, timeout=30)
    assert (answer.status_code, "rejectedSpans" in answer.text) == (200, False)


def exported(target: LocalServer, tmp_path: Path) -> None:
    runspan("export", write_ndjson(tmp_path / "runs.ndjson", TEXTS), "--endpoint", target.url)


def synced(target: LocalServer, tmp_path: Path) -> None:
    with local_server(tmp_path / "source") as source:
        source.fill(*TEXTS.values())
        assert sync_once(source.url, target.url, tmp_path / "checkpoint").complete


def watched(target: LocalServer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_ndjson(folder / "runs.ndjson", TEXTS)
    bench = Bench(folder, f"{target.url}/v1/traces")
    bench.poll(4)
    assert bench.notes == []


DOORS = pytest.mark.parametrize("send", [posted, over_protobuf, over_json, exported, synced, watched])


@DOORS
def test_every_door_accepts_them(
    send: Callable[[LocalServer, Path], None], target: LocalServer, tmp_path: Path
) -> None:
    """Every document comes back as it was sent."""
    send(target, tmp_path)
    assert documents(target.url) == TEXTS


def test_every_backend_returns_them(backend: Harness, tenant: str) -> None:
    """The embedded store, Tempo and Jaeger."""
    backend.send(*CASES.values(), tenant=tenant, observed_at=NOW)
    first, last = backend.finds
    found = {
        run_id
        for run_id, run in CASES.items()
        if all(first <= span.start < last for span in encode(run, tenant=tenant, observed_at=NOW))
    }
    texts = {run_id: backend.reader.document(run_id, tenant).text for run_id in CASES if run_id in found}
    assert texts == {run_id: TEXTS[run_id] for run_id in CASES if run_id in found}
    for run_id in islice((run_id for run_id in CASES if run_id not in found), 8):
        with suppress(NotFound, TraceIncomplete):
            assert backend.reader.document(run_id, tenant).text == TEXTS[run_id]


def test_an_archive_returns_them(tmp_path: Path) -> None:
    """What is read from it and sent again, as after a restore, is the same; an archive ends before a time."""
    ended = {run_id: run.text for run_id, run in CASES.items() if run.finished and sort_time(run.envelope) < MAX_NS}
    with SqliteStore(tmp_path / "store") as store:
        for run in CASES.values():
            store.put(run, observed_at=NOW)
        made = make(store, tmp_path / "archives", now=MAX_NS, ages=AgeRange(0, None))
    with local_server(tmp_path / "target") as target:
        runspan("export", made.path, "--endpoint", target.url, "--replay")
        assert documents(target.url) == ended


@pytest.mark.parametrize("now", [-(2**63), -1, 0, 1, MAX_NS - 1, MAX_NS, LATEST_END_NS, 2**63 - 1, 2**63, 2**64])
def test_a_recorder_with_any_clock_delivers_what_it_shows(now: int) -> None:
    """Its document has a time that a span can hold."""
    with recording(clock=lambda: now) as harness:
        with harness.recorder.run("wf", run_id="run_1") as run, run.step("a"):
            pass
        assert harness.recorder.flush(10)
        assert harness.document("run_1").text == run.document().text


@pytest.mark.parametrize(("start", "end"), [(MAX_NS + 1, MAX_NS + 1), (2**63 - 1, 2**63 - 1), (2**64 - 1, 2**64 - 1)])
def test_spans_beyond_the_bounds_cost_their_run_only(target: LocalServer, start: int, end: int) -> None:
    """Another encoder may write them: protobuf and JSON refuse them alike, and take the others of the request."""
    spans = [span for run in list(CASES.values())[:20:2] for span in encode(run, observed_at=NOW)]
    bad = msgspec.structs.replace(spans[-1], start=start, end=end)
    odd = [*spans[:-1], bad]
    reasons = []
    for content, headers in (
        (request_bytes(Resource(), [scoped_bytes(span) for span in odd]), PROTOBUF),
        (write_json(odd), JSON),
    ):
        answer = httpx.post(f"{target.url}/v1/traces", content=content, headers=headers, trust_env=False)
        assert answer.status_code == 200
        reasons.append(answer.text)
    assert all("start and end: expected times before 2262-04-12" in reason for reason in reasons), reasons
    assert len(documents(target.url)) == 9


def test_a_refused_document_has_the_same_place_at_every_door(target: LocalServer, tmp_path: Path) -> None:
    """And costs only itself, wherever it is among the others."""
    few = dict(list(TEXTS.items())[:100])
    mixed: Mapping[str, bytes] = {"bad": REPEATED, **few}
    places = {}
    with local_server(tmp_path / "exported") as exporting:
        file = write_ndjson(tmp_path / "runs.ndjson", mixed)
        report = json.loads(runspan("export", file, "--endpoint", exporting.url, "--json", code=1).stdout)
        ((places["export"],), accepted) = ([each["what"] for each in report["refusals"]], report["runs_accepted"])
        assert accepted == 100
        assert documents(exporting.url) == few
    answer = httpx.post(f"{target.url}/api/v1/runs", content=REPEATED, headers=JSON, trust_env=False)
    assert answer.status_code == 400
    places["POST"] = json.dumps(answer.json()["error"])
    with local_server(tmp_path / "source") as source, platform(source.url, replaced={"run_007": REPEATED}) as mock:
        source.fill(*few.values())
        synced = sync_once(mock.url, target.url, tmp_path / "checkpoint")
        ((_, places["sync"]),) = synced.refused_now
        assert synced.counts.sent + synced.counts.snapshots == 99
    folder = tmp_path / "folder"
    folder.mkdir()
    write_ndjson(folder / "runs.ndjson", mixed)
    bench = Bench(folder, f"{target.url}/v1/traces")
    bench.poll(30)
    (places["watch"],) = bench.notes
    assert documents(target.url) == few
    assert all(PLACE in place for place in places.values()), places
