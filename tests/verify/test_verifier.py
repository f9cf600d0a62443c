"""``runspan verify``: documents that come back are compared, and missing ones are explained."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from runspan import Run, decode, encode
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Document, Page
from runspan.errors import BackendRefused, BackendUnreachable, NotFound, QueryUnsupported, TraceIncomplete
from runspan.model.span import Span
from runspan.testing import generate
from runspan.verify import CANARY, Sent, VerifyResult, canary, verify
from support.cli import SAMPLES, generated, process, runspan, server, write_ndjson
from support.receivers import Answer, FakeTime, http_receiver
from support.servers import require, start_tempo
from support.servers.jaeger import Jaeger
from support.servers.tempo import IMAGE, Tempo

NOW = 1_790_000_000_000_000_000
DAY = 86_400 * 10**9


def now_runs(count: int = 12) -> dict[str, bytes]:
    """Return runs of the last days, with ids of this test only."""
    began = datetime.now(UTC) - timedelta(days=9)
    texts = generate(count, seed=uuid4().int % 10_000, start=began, span_days=8, unfinished=True)
    return {run.id: run.text for run in map(Run.from_json, texts)}


# The canary


def test_the_canary_has_what_backends_lose() -> None:
    """Text that is cut inside a character at 2048 bytes, and 300 steps, some of zero length and without times.
    Nothing in it failed, and it used no tokens."""
    run = canary("c", NOW)
    document = run.to_dict()
    assert (run.workflow_id, run.status, len(run.steps)) == (CANARY, "completed", 300)
    assert any(step.get("durationMs") == 0 and step["startedAt"] == step["completedAt"] for step in document["steps"])
    assert any("startedAt" not in step for step in document["steps"])
    assert len(json.dumps(document["input"])) > 10 * 2048
    assert b"12.10" in run.text
    assert b"1e400" in run.text
    assert not {step["status"] for step in document["steps"]} - {"completed", "skipped"}
    spans = encode(run, observed_at=NOW)
    assert decode(spans).text == run.text
    assert len(spans) > 300
    assert not any("token" in key or "cost" in key for span in spans for key in span.attributes())
    assert all(span.status != 2 for span in spans)


# With runspan's own store


def test_the_samples_come_back_the_same_from_the_embedded_store(tmp_path: Path) -> None:
    """Written directly: every run is a row of the table, and the exit code is 0."""
    done = process("verify", SAMPLES, "--backend", f"sqlite:{tmp_path}")
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["RUN", "RESULT", "BY", "ID", "IN", "LISTS", "DETAIL"]
    assert len(lines) == 58
    assert all(line.split()[1] == "same" for line in lines[1:])
    summary = f"sqlite:{tmp_path}: 57 of 57 documents came back the same, byte for byte, and are listed\n"
    assert summary in done.stderr.decode()
    assert b"run" in process("list", "--data", tmp_path).stdout


def test_a_server_is_checked_over_its_own_api(tmp_path: Path) -> None:
    """Sent over OTLP, read back over REST; the report as JSON."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(30, unfinished=True))
    with server(tmp_path / "data") as (url, _):
        shown = runspan("verify", path, "--backend", url, "--endpoint", url, "--json")
        canary_shown = runspan("verify", "--canary", "--backend", url, "--endpoint", url, "--json")
    report = json.loads(shown.stdout)
    assert (report["complete"], report["same"], report["refused"], len(report["runs"])) == (True, 30, 0, 30)
    assert report["runs"][0].keys() >= {"id", "traceId", "result", "detail", "advice", "secondsById"}
    (only,) = json.loads(canary_shown.stdout)["runs"]
    assert only["id"].startswith("runspan-canary-")


def test_a_document_that_cannot_be_carried_fails_the_check(tmp_path: Path) -> None:
    """It is reported, and the others are checked."""
    path = tmp_path / "runs.ndjson"
    path.write_bytes(b'{"id":"a","status":"failed"}\n{"no":"id"}\n{"id":"b","status":"completed"}\n')
    result = runspan("verify", path, "--backend", f"sqlite:{tmp_path / 'data'}", code=1)
    assert f"{path}:2" in result.stderr
    assert "2 of 3 documents came back the same, byte for byte, and are listed; 1 refused, not sent" in result.stderr
    with SqliteStore(tmp_path / "data") as store:
        assert store.document("b").text == b'{"id":"b","status":"completed"}'


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "expected files or --canary, got neither"),
        (("x.ndjson", "--canary"), 2, "expected files or --canary, got both"),
        (("--canary", "--backend", "tempo+http://127.0.0.1:1"), 2, "this backend is not written directly"),
        (("--canary", "--backend", "http://127.0.0.1:1"), 2, "--endpoint http://HOST:4318"),
        (("--canary", "--wait", "soon"), 2, "expected a duration such as 30s"),
        (
            ("--canary", "--backend", "jaeger+http://127.0.0.1:1", "--endpoint", "http://127.0.0.1:1", "--wait", "0s"),
            9,
            "http://127.0.0.1:1/v1/traces: nothing was accepted",
        ),
    ],
)
def test_invalid_use_is_reported(tmp_path: Path, args: tuple[str, ...], code: int, message: str) -> None:
    """Invalid options end with 2, an unreachable endpoint with 9."""
    assert message in runspan("verify", "--data", tmp_path, *args, code=code).stderr


@pytest.mark.parametrize("args", [(), ("--data", "nowhere"), ("--endpoint", "http://127.0.0.1:1")])
def test_without_a_backend_no_store_is_created(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten --backend must not lead to success."""
    monkeypatch.chdir(tmp_path)
    first, second = runspan("verify", "--canary", *args, code=2).stderr.splitlines()
    assert "no runs are kept here" in first
    assert "another backend with --backend" in second
    assert list(tmp_path.iterdir()) == []


def test_without_a_backend_an_existing_store_is_checked(tmp_path: Path) -> None:
    """It is that of --data, and the summary names it."""
    SqliteStore(tmp_path).close()
    result = runspan("verify", "--canary", "--data", tmp_path)
    assert f"sqlite:{tmp_path}: 1 of 1 documents came back the same" in result.stderr
    shown = json.loads(runspan("verify", "--canary", "--data", tmp_path, "--json").stdout)
    assert shown["backend"] == f"sqlite:{tmp_path}"


def test_a_backend_that_does_not_respond_is_unreachable(tmp_path: Path) -> None:
    """The receiver accepted the run, so there is no result for it."""
    with http_receiver() as receiver:
        args = ("--backend", "tempo+http://127.0.0.1:1", "--endpoint", receiver.url, "--wait", "1s")
        result = runspan("verify", "--canary", *args, code=9)
    assert "Tempo at http://127.0.0.1:1: expected a response" in result.stderr


def test_a_rejected_run_is_not_waited_for(tmp_path: Path) -> None:
    """The receiver's message is the detail."""
    with http_receiver(lambda post: Answer(400, b"too old", content_type="text/plain")) as receiver:
        args = ("--data", tmp_path, "--endpoint", receiver.url, "--wait", "60s", "--json")
        SqliteStore(tmp_path).close()
        (run,) = json.loads(runspan("verify", "--canary", *args, code=1).stdout)["runs"]
    assert (run["result"], run["detail"]) == ("rejected", "HTTP 400: too old")


# With a backend that fails on request


class Backend:
    """Reads what was sent, with faults: changes to the spans, and errors of each method."""

    def __init__(self, **faults: Any) -> None:
        self.faults = faults
        self.runs: dict[str, Run] = {}

    def send(self, runs: Sequence[Run], observed_at: int) -> Sent:
        self.runs = {run.id: run for run in runs}
        return Sent(self.faults.get("rejected", {}))

    def document(self, run_id: str, tenant: str = "") -> Document:
        self._fail("document")
        return self.faults.get("answer") or Document(self.runs[run_id].text)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        (run,) = self.runs.values()
        found: list[Span] = self.faults.get("spans", list)(encode(run, observed_at=NOW))
        return found

    def search(self, query: Any) -> Page:
        self._fail("search")
        assert query.cursor is not None
        items = [run.summary() for run in self.runs.values() if run.id + "\0" == query.cursor.run_id]
        return Page(items, partial=self.faults.get("partial", ()))

    def _fail(self, call: str) -> None:
        left = self.faults.get(call, [])
        if left:
            error = left.pop(0) if len(left) > 1 or not self.faults.get("always") else left[0]
            if error is not None:
                raise error


def check(backend: Backend, run: Run, *, kind: str = "tempo", wait: float = 10.0) -> tuple[VerifyResult, FakeTime]:
    clock = FakeTime()
    (verdict,) = verify(
        [run],
        backend.send,
        backend,  # type: ignore[arg-type]  # no capabilities, check and close: they are not used
        kind=kind,
        wait=wait,
        now=NOW,
        clock=clock.clock,
        sleep=clock.sleep,
    )
    return verdict, clock


def run_of(age: int = 0) -> Run:
    return canary("c", NOW - age)


def test_it_waits_until_the_run_can_be_seen() -> None:
    """Not found, incomplete, unreachable and not listed at first. The pauses grow."""
    faults = [NotFound(), TraceIncomplete("x"), BackendUnreachable("x"), None]
    verdict, clock = check(Backend(document=faults, search=[BackendUnreachable("x"), None]), run_of())
    assert verdict.result == "same"
    assert verdict.by_id is not None
    assert verdict.in_lists is not None
    assert verdict.in_lists > verdict.by_id
    assert clock.slept == sorted(clock.slept)
    assert len(clock.slept) == 4


@pytest.mark.parametrize(
    ("age", "setting"), [(0, "query_end_cutoff"), (DAY, "ingestion_time_range_slack"), (20 * DAY, "block_retention")]
)
def test_a_run_that_is_not_listed_is_explained_by_its_age(age: int, setting: str) -> None:
    """New, old and expired runs depend on different settings. The time is used up."""
    verdict, clock = check(Backend(search=[QueryUnsupported("cannot")], always=True), run_of(age))
    assert (verdict.result, verdict.in_lists) == ("not in lists", None)
    assert any(setting in line for line in verdict.advice)
    assert "cannot" in verdict.detail
    assert sum(clock.slept) == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(("kind", "setting"), [("tempo", "max_traces_per_user"), ("jaeger", "max_traces")])
def test_a_run_that_is_not_found_is_explained(kind: str, setting: str) -> None:
    """The advice depends on the backend."""
    verdict, _ = check(Backend(document=[NotFound()], always=True), run_of(), kind=kind)
    assert verdict.result == "not found"
    assert any(setting in line for line in verdict.advice)


def test_missing_spans_are_counted() -> None:
    """Tempo drops what exceeds its limit of a trace."""
    backend = Backend(document=[TraceIncomplete("x", missing=("step 3",))], always=True, spans=lambda all: all[100:])
    verdict, _ = check(backend, run_of())
    assert verdict.result == "incomplete"
    assert verdict.detail == "100 of 301 spans are missing; step 3"
    assert any("max_bytes_per_trace" in line for line in verdict.advice)


@pytest.mark.parametrize(("megabytes", "is_advised"), [(18, False), (20, True)])
def test_a_lost_span_with_many_attributes_is_explained_by_their_limit(megabytes: int, is_advised: bool) -> None:
    """OpenSearch drops a span with more than 10,000 nested objects: a long text has one for every 2000 bytes."""
    document = run_of().to_dict()
    document["steps"] = [document["steps"][0] | {"output": "x" * (megabytes * 10**6)}]
    backend = Backend(document=[NotFound()], always=True)
    verdict, _ = check(backend, Run.from_dict(document), kind="jaeger")
    assert any("nested_objects.limit" in line for line in verdict.advice) is is_advised
    damaged = Backend(document=[TraceIncomplete("x", missing=("step 1",))], always=True, spans=lambda all: all[-1:])
    verdict, _ = check(damaged, Run.from_dict(document), kind="jaeger")
    assert any("nested_objects.limit" in line for line in verdict.advice) is is_advised


def test_another_revision_differs_from_an_unreadable_response() -> None:
    """A newer revision that was sent earlier is not the backend's fault."""
    verdict, _ = check(Backend(answer=Document(b'{"id":"c"}')), run_of())
    assert (verdict.result, verdict.advice) == ("different", ())
    verdict, _ = check(Backend(document=[BackendRefused("no trace")], always=True), run_of())
    assert (verdict.result, verdict.detail) == ("unreadable", "no trace")


def test_the_backend_must_have_responded_once() -> None:
    """Otherwise there is an error, and no result."""
    with pytest.raises(BackendUnreachable):
        check(Backend(document=[BackendUnreachable("x")], always=True), run_of())


# On real backends


@pytest.mark.parametrize("name", ["tempo", "jaeger_memory", "jaeger_badger"])
def test_a_real_backend_gives_everything_back(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """Runs of a file and the canary, over HTTP, also under another service name."""
    server = request.getfixturevalue(name)
    backend = f"{name.partition('_')[0]}+{server.url}"
    path = write_ndjson(tmp_path / "runs.ndjson", now_runs())
    where = ("--backend", backend, "--endpoint", server.otlp, "--wait", "60s")
    assert "12 of 12 documents came back the same" in runspan("verify", path, *where).stderr
    assert "1 of 1 documents came back the same" in runspan("verify", "--canary", *where).stderr
    args = ("--canary", "--canary-age", "40d", "--service-name", "elsewhere")
    assert "1 of 1 documents came back the same" in runspan("verify", *args, *where).stderr


def test_a_span_that_exceeds_badgers_limit_is_reported_and_the_others_come_back(
    jaeger_badger: Jaeger, tmp_path: Path
) -> None:
    """Badger asks to retry forever. The export ends, explains the limit, and keeps the run."""
    texts = now_runs(3)
    large = {"id": f"large-{uuid4().hex}", "status": "completed", "steps": [{"id": "s", "output": "x" * 12_000_000}]}
    path = write_ndjson(tmp_path / "runs.ndjson", texts | {"large": json.dumps(large).encode()})
    where = ("--backend", f"jaeger+{jaeger_badger.url}", "--endpoint", jaeger_badger.otlp, "--wait", "5s", "--json")
    runs = json.loads(runspan("verify", path, *where, code=1).stdout)["runs"]
    assert {run["id"]: run["result"] for run in runs} == dict.fromkeys(texts, "same") | {large["id"]: "rejected"}
    assert "Jaeger's Badger" in runs[-1]["detail"]
    left = tmp_path / "left.ndjson"
    args = ("--endpoint", jaeger_badger.otlp, "--retry-max-time", "2s", "--dead-letter", left)
    assert "hint: a span of that run exceeds the 9 to 10 MB" in runspan("export", path, *args, code=1).stderr
    assert left.read_bytes() == Run.from_dict(large).text + b"\n"


def tempo_with(tmp_path: Path, changes: dict[str, Any]) -> Tempo:
    installed = require("tempo", IMAGE)
    if installed.urls is not None:
        pytest.skip("needs a tempo of its own to misconfigure, and the environment names a running one")
    return start_tempo(installed, tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "args", "result", "advice"),
    [
        ({"distributor.max_attribute_bytes": 1000}, (), "incomplete", "distributor.max_attribute_bytes"),
        ({"overrides.defaults.global.max_bytes_per_trace": 50_000}, (), "not found", "max_bytes_per_trace"),
        ({"query_frontend.query_end_cutoff": "30m"}, (), "not in lists", "query_frontend.query_end_cutoff"),
        (
            {"live_store.wal.ingestion_time_range_slack": "2m", "query_frontend.search.query_backend_after": "1m"},
            ("--canary-age", "30d"),
            "not in lists",
            "live_store.wal.ingestion_time_range_slack",
        ),
    ],
    ids=["cut", "dropped", "cutoff", "backfill"],
)
def test_a_misconfigured_tempo_is_found_out(
    tmp_path: Path, changes: dict[str, Any], args: tuple[str, ...], result: str, advice: str
) -> None:
    """Each setting that lets Tempo lose or hide runs silently is named."""
    tempo = tempo_with(tmp_path, changes)
    try:
        where = ("--backend", f"tempo+{tempo.url}", "--endpoint", tempo.otlp, "--wait", "4s", "--json")
        (verdict,) = json.loads(runspan("verify", "--canary", *args, *where, code=1).stdout)["runs"]
    finally:
        tempo.stop()
    assert verdict["result"] == result, verdict
    assert any(advice in line for line in verdict["advice"]), verdict


def test_tempos_default_cut_leaves_documents_intact(tmp_path: Path) -> None:
    """At 2048 bytes only attributes that no document depends on are cut, so the check succeeds."""
    tempo = tempo_with(tmp_path, {"distributor.max_attribute_bytes": 2048})
    try:
        where = ("--backend", f"tempo+{tempo.url}", "--endpoint", tempo.otlp)
        text = {"id": f"r-{uuid4().hex}", "status": "failed", "error": {"code": "X", "message": "ü" * 5000}}
        path = write_ndjson(tmp_path / "run.ndjson", {"x": json.dumps(text | {"startedAt": now_text()}).encode()})
        runspan("verify", path, *where)
        runspan("verify", "--canary", *where)
    finally:
        tempo.stop()


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
