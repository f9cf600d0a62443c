"""The example engine with real servers: while it runs, after its end, and killed at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from runspan import NotFound, Recorder, Run, TraceIncomplete, connect
from runspan.backends.runspan_api import RunspanApiReader
from runspan.codec.fields import ROLE, ROLE_LIVE, ROLE_RUN
from runspan.contracts import RunQuery, TraceReader, heartbeat_due
from runspan.model.span import run_ids
from runspan.recorder import ExportConfig, RunRecording
from support.cli import environment, server
from support.recorder import WAIT, wait_until
from support.servers import Tempo, require, start_tempo
from support.servers.jaeger import Jaeger
from support.servers.tempo import IMAGE

EXAMPLE = Path(__file__).parents[2] / "examples" / "engine"
KILLS = 10


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, ``engine`` and ``workflows``."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import engine
    import workflows

    yield engine, workflows
    for name in ("engine", "workflows"):
        sys.modules.pop(name, None)


@dataclass
class Watched:
    """What a reader returned while the engine ran, and the runs that it executed."""

    runs: list[RunRecording] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    listed: Counter[str] = field(default_factory=Counter)

    def run(self, workflow_id: str) -> RunRecording:
        (found,) = [run for run in self.runs if run.document().workflow_id == workflow_id]
        return found


def watch(example: Any, otlp: str, reader: TraceReader, *, lists: bool) -> Watched:
    """Execute both workflows, and read the first run over and over meanwhile. lists: search for it too."""
    engine, workflows = example
    watched = Watched()
    ended = threading.Event()

    def is_suspended() -> bool:
        is_listed = watched.listed["suspended"] > 0 or not lists
        return is_listed and any(document["status"] == "suspended" for document in watched.seen)

    def is_retrying() -> bool:
        return any(step["status"] == "retrying" for document in watched.seen for step in document["steps"])

    def after(condition: Callable[[], bool], work: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_work(*args: Any) -> Any:
            wait_until(condition, 60)
            return work(*args)

        return wait_and_work

    # These states last until they have been read.
    engine.Approvals.ask = after(is_suspended, engine.Approvals.ask)
    engine.Retry.delay = after(is_retrying, engine.Retry.delay)
    recorder = Recorder(endpoint=otlp, service_name="example-engine", export=ExportConfig(snapshot_delay=0.02))

    def execute() -> None:
        try:
            made = engine.Engine(recorder, slowness=3)
            caller = {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}
            result = made.execute(
                workflows.ORDER, {"customer": "cus_7"}, trigger="webhook", headers=caller, on_start=watched.runs.append
            )
            assert result["paid"] is True
            with pytest.raises(workflows.IntegrationError):
                made.execute(workflows.PAYOUT, {"vendor": 4}, on_start=watched.runs.append)
        finally:
            ended.set()

    thread = threading.Thread(target=execute)
    thread.start()
    try:
        wait_until(lambda: watched.runs)
        run_id = watched.runs[0].id
        while not ended.is_set():
            try:
                document = reader.document(run_id)
            except (NotFound, TraceIncomplete):
                assert not watched.seen, "a run that was there is gone"
            else:
                # Tempo may show a revision before its steps for a moment.
                assert not (lists and document.incomplete)
                watched.seen.append(json.loads(document.text))
            if lists:
                for status in ("running", "suspended"):
                    ids = [json.loads(item)["id"] for item in reader.search(RunQuery(status=status)).items]
                    watched.listed[status] += run_id in ids
    finally:
        thread.join()
        report = recorder.shutdown(20)
    assert report.complete, report
    assert report.runs_delivered == 3
    child = json.loads(watched.run("wf_order_to_cash").document().text)["steps"]
    (child_id,) = [step["output"]["runId"] for step in child if step["id"] == "book"]
    for run in watched.runs:
        assert wait_until(lambda run=run: _read(reader, run.id)) == run.document().text
    assert json.loads(reader.document(child_id).text)["status"] == "completed"
    return watched


def _read(reader: TraceReader, run_id: str) -> bytes | None:
    """Return the document once it has ended."""
    try:
        text = reader.document(run_id).text
    except (NotFound, TraceIncomplete):
        return None
    return text if Run.from_json(text).finished else None


def check_seen_documents(watched: Watched) -> None:
    """Check that each response has a later state of the run than the one before: no step goes back."""
    order = {"pending": 0, "running": 1, "retrying": 2, "suspended": 1, "completed": 9, "failed": 9, "skipped": 9}
    before: dict[tuple[str, int], int] = {}
    for document in watched.seen:
        seen: Counter[str] = Counter()
        for step in document["steps"]:
            place = (step["id"], seen[step["id"]])
            seen[step["id"]] += 1
            rank = 10 * step.get("attempt", 0) + order[step["status"]]
            assert rank >= before.get(place, 0) or step["status"] in ("running", "skipped"), (place, step)
            assert order[step["status"]] == 9 or before.get(place, 0) % 10 != 9, "a step that had ended has changed"
            before[place] = rank
    assert {"running", "suspended"} <= {document["status"] for document in watched.seen}
    assert len({len([s for s in document["steps"] if s["status"] == "completed"]) for document in watched.seen}) > 2
    statuses = {step["status"] for document in watched.seen for step in document["steps"]}
    assert {"pending", "running", "retrying", "completed"} <= statuses


def test_the_embedded_store_shows_the_run_while_it_runs_and_after(example: Any, tmp_path: Path) -> None:
    """``runspan serve`` returns the run running, retrying and suspended, in lists too, and in the end its document."""
    with server(tmp_path) as (url, _), closing(RunspanApiReader(url)) as reader:
        watched = watch(example, url, reader, lists=True)
        check_seen_documents(watched)
        assert watched.listed["running"] > 0
        assert watched.listed["suspended"] > 0
        assert reader.search(RunQuery(status="running")).items == []
        failed = reader.search(RunQuery(status="failed")).items
        assert [json.loads(item)["error"]["code"] for item in failed] == ["INTEGRATION_ERROR"]


@pytest.mark.parametrize("storage", ["memory", "badger"])
def test_jaeger_shows_the_expected_trace(
    example: Any, tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    """Jaeger's own API has one root and the live span, the steps below the root, the clients' spans below their steps,
    attempts below theirs, tokens, errors and links; the REST API over Jaeger returns the run all the time."""
    jaeger: Jaeger = request.getfixturevalue(f"jaeger_{storage}")
    with server(tmp_path, "--backend", f"jaeger+{jaeger.url}") as (url, _):
        with closing(RunspanApiReader(url)) as reader:
            watched = watch(example, jaeger.otlp, reader, lists=False)
        check_seen_documents(watched)
    order, payout = watched.run("wf_order_to_cash"), watched.run("wf_payout")
    check_trace(jaeger_spans(jaeger, order.trace_id), order)
    failed = jaeger_spans(jaeger, payout.trace_id)
    assert named(failed, "run wf_payout")["status"]["code"] == 2
    assert named(failed, "Pay out")["status"]["code"] == 2
    assert "status" not in named(failed, "Match statement") or not named(failed, "Match statement")["status"]


def jaeger_spans(jaeger: Jaeger, trace_id: bytes) -> list[dict[str, Any]]:
    """Return the spans of a trace from Jaeger's API, without runspan's reader."""
    response = httpx.get(f"{jaeger.url}/api/v3/traces/{trace_id.hex()}?raw_traces=true", trust_env=False)
    assert response.status_code == 200, response.text
    return [
        span
        for resource in response.json()["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def named(spans: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [span for span in spans if span["name"] == name]
    return found


def check_trace(spans: list[dict[str, Any]], run: RunRecording) -> None:
    """Check the trace of the order-to-cash run."""
    assert len({span["spanId"] for span in spans}) == len(spans), "a span is there twice"
    root, live = named(spans, "run wf_order_to_cash"), named(spans, "run wf_order_to_cash (live)")
    below = [span for span in spans if span["spanId"] not in (root["spanId"], live["spanId"])]
    assert [span["name"] for span in spans if not span.get("parentSpanId") and span in below] == []
    by_id = {span["spanId"]: span for span in spans}
    assert all(span["parentSpanId"] in by_id for span in below), "a span without its parent"
    parents = {span["name"]: by_id[span["parentSpanId"]]["name"] for span in below}
    assert parents["run wf_order_to_cash (revision)"] == live["name"]
    assert parents["GET /v1/invoices"] == "Fetch overdue invoices"
    assert parents["TLS handshake"] == "GET /v1/invoices"
    assert parents["GET /v1/customers/{id}"] == "Fetch customer"
    assert parents["chat claude-sonnet-4-6"] == "invoke_agent Assess customer"
    assert parents["attempt of Charge card"] == "Charge card"
    assert parents["POST /v1/charges"] == "attempt of Charge card"
    for name in ("Fetch overdue invoices", "Fetch customer", "Charge card", "For each invoice", "Book the payment"):
        assert parents[name] == root["name"]
    assert parents["Send reminder"] == "For each invoice"
    counts = Counter(span["name"] for span in spans)
    assert (counts["Send reminder"], counts["attempt of Charge card"], counts["POST /v1/charges"]) == (3, 3, 3)
    first, second = named(spans, "Fetch overdue invoices"), named(spans, "Fetch customer")
    assert int(first["startTimeUnixNano"]) < int(second["endTimeUnixNano"])
    assert int(second["startTimeUnixNano"]) < int(first["endTimeUnixNano"]), "the two do not overlap"
    agent = {pair["key"]: pair["value"] for pair in named(spans, "invoke_agent Assess customer")["attributes"]}
    assert agent["gen_ai.usage.input_tokens"] == {"intValue": "1250"}
    assert agent["gen_ai.request.model"] == {"stringValue": "claude-sonnet-4-6"}
    assert root["links"][0]["traceId"] == "c" * 32
    (child,) = [step["output"]["runId"] for step in run.document().to_dict()["steps"] if step["id"] == "book"]
    assert named(spans, "Book the payment")["links"][0]["traceId"] == run_ids(child).trace_id.hex()


@pytest.fixture
def whole_tempo(tmp_path: Path) -> Iterator[Tempo]:
    """A Tempo that keeps a trace in one piece while its run goes on, as it does by default.

    Tempo 3.0 can lose spans of a trace that is read while they arrive if a part of it has been cut (grafana/tempo
    issue 6958).
    """
    changes = {"live_store.max_trace_idle": "5s", "live_store.max_trace_live": "30s"}
    started = start_tempo(require("tempo", IMAGE), tmp_path, changes)
    yield started
    started.stop()


def test_tempo_shows_the_run_while_it_runs_and_after(example: Any, whole_tempo: Tempo, tmp_path: Path) -> None:
    """The REST API over Tempo returns the running run, and in the end its document and complete trace."""
    tempo = whole_tempo
    with server(tmp_path, "--backend", f"tempo+{tempo.url}") as (url, _):
        with closing(RunspanApiReader(url)) as reader:
            watched = watch(example, tempo.otlp, reader, lists=False)
        check_seen_documents(watched)
    run = watched.run("wf_order_to_cash")
    with closing(connect(f"tempo+{tempo.url}")) as direct:
        spans = wait_until(lambda: _complete(lambda: direct.spans(run.trace_id)), 60)
    roles = sorted(str(span.attributes().get(ROLE)) for span in spans if not span.parent_id)
    assert roles == [ROLE_LIVE, ROLE_RUN]
    known = {span.span_id for span in spans}
    assert all(span.parent_id in known for span in spans if span.parent_id)


def _complete(spans: Callable[[], list[Any]]) -> list[Any] | None:
    """Return all spans, once the run span and a client's span are there."""
    found = spans()
    names = {span.name for span in found}
    return found if {"run wf_order_to_cash", "TLS handshake"} <= names else None


def start_engine(url: str, run_id: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE), "--endpoint", url, "--run-id", run_id, "--acknowledged"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def kill_engine(url: str, run_id: str, delay: float) -> list[str]:
    """Start the engine, kill it a while after its first line of output, and return what it printed."""
    with start_engine(url, run_id) as process:
        assert process.stdout is not None
        output: list[str] = []
        has_begun = threading.Event()

        def read(stream: Iterable[str]) -> None:
            for line in stream:
                output.append(line)
                has_begun.set()

        thread = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        thread.start()
        assert has_begun.wait(60)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        thread.join()
    return output


@pytest.mark.campaign
def test_kill_9_loses_no_acknowledged_step_and_the_run_stays_running(tmp_path: Path) -> None:
    """After kill -9 of the engine at ten random moments, the server has every acknowledged step in an exact document,
    and the run keeps the status that it had."""
    dice = random.Random(20261125)
    delays = {f"run_killed_{number}": dice.uniform(0, 1.6) for number in range(KILLS)}
    with server(tmp_path) as (url, _):
        with ThreadPoolExecutor(4) as pool:
            killed = {run_id: pool.submit(kill_engine, url, run_id, delay) for run_id, delay in delays.items()}
        reader = RunspanApiReader(url)
        unfinished = sum([check_killed(reader, run_id, output.result()) for run_id, output in killed.items()])
        running = _ids(reader, RunQuery(status="running", limit=200))
        silent = heartbeat_due(10**9, 0)  # a second after the heartbeat that did not come
        stuck = wait_until(
            lambda: _ids(reader, RunQuery(stuck_before=time.time_ns() - 10**9, limit=200)) >= running,
            WAIT + silent / 10**9,
        )
        assert stuck, "a run whose engine was killed is not reported as stuck"
        reader.close()
    assert unfinished >= KILLS // 2, "the engine was killed outside of runs"
    assert running, "no killed run is listed as running"


def _ids(reader: RunspanApiReader, query: RunQuery) -> set[str]:
    return {json.loads(item)["id"] for item in reader.search(query).items}


def check_killed(reader: RunspanApiReader, run_id: str, output: list[str]) -> bool:
    """Check a killed run, and return whether it had not ended. output: the lines that the engine printed."""
    acknowledged = Counter(line.split()[2] for line in output if line.startswith(f"acknowledged {run_id} "))
    try:
        document = json.loads(reader.document(run_id).text)
    except NotFound:
        assert not acknowledged
        return False
    ended = Counter(step["id"] for step in document["steps"] if step["status"] in ("completed", "skipped"))
    assert not acknowledged - ended, "an acknowledged step is lost"
    assert all("output" in step for step in document["steps"] if step["status"] == "completed")
    if document["status"] == "completed":
        return False
    assert document["status"] in ("running", "suspended")
    assert "completedAt" not in document
    return True


def test_the_example_program_succeeds_and_prints_what_it_did(tmp_path: Path) -> None:
    """One command against a server: exit code 0, three runs delivered, each step acknowledged once."""
    with server(tmp_path) as (url, _):
        process = start_engine(url, "run_1")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "3 of 3 runs delivered" in out
        assert out.count("acknowledged run_1 send-reminder") == 3
        reader = RunspanApiReader(url)
        assert json.loads(reader.document("run_1").text)["status"] == "completed"
        reader.close()
