"""``otel-collector.yaml`` on the real Collector: it starts as it stands, and counts what ended now, once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from alerts.__main__ import OUTPUT
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from operate.kit import REPLAY, document, moment, send, step, wait_until
from operate.promql import names
from runspan import Recorder, Run, encode
from runspan.codec.fields import ROLE
from runspan.model.span import Span, run_ids
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_writer import Resource
from runspan.telemetry import INSTRUMENTS, InstrumentKind, MetricsRegistry
from runspan.telemetry.otel import push_metrics
from runspan.verify import CANARY
from support.cli import environment, running, runspan, server
from support.servers.collector import CONFIG, Collector, scraped, start_collector
from support.servers.programs import ROOT, require_program
from support.sync import local_server as platform
from support.sync import sync_command

TEXT = CONFIG.read_text()
SETTINGS: dict[str, Any] = yaml.safe_load(TEXT)
SECONDS = 30
HOUR = 3_600_000_000_000
USED = re.compile(r"\$\{env:(\w+):-([^}]*)\}")
PROTOBUF = {"content-type": "application/x-protobuf"}


def validate(**env: str) -> subprocess.CompletedProcess[str]:
    command = [require_program("otelcol"), "validate", "--config", str(CONFIG)]
    return subprocess.run(command, env=environment(**env), capture_output=True, text=True, check=False)


def test_the_configuration_is_valid_as_it_stands() -> None:
    """Validation passes without one variable set: every endpoint has a default."""
    assert validate().returncode == 0, validate().stderr


def test_the_configuration_is_valid_with_every_variable_set() -> None:
    """What the environment may change does not have to be changed in the file."""
    values = {
        "HOST": "0.0.0.0",
        "EXPORTERS": "[otlp_http/runspan]",
        "QUEUE": "/tmp/elsewhere",
        "QUEUE_BYTES": "1000000",
        "MEMORY_MIB": "2048",
        "MAX_AGE": "10m",
        "UNFINISHED_AGE": "24h",
        "FLUSH": "15s",
        "INSECURE": "false",
        "TEMPO": "tempo.example.com:443",
        "JAEGER": "jaeger.example.com:443",
        "RUNSPAN": "https://runs.example.com",
        **{
            f"{port}_PORT": str(20000 + n) for n, port in enumerate(("GRPC", "HTTP", "SPANS", "HEALTH", "OWN", "CHECK"))
        },
    }
    named = {f"RUNSPAN_COLLECTOR_{name}": value for name, value in values.items()} | {"RUNSPAN_API_KEY": "wfk_x"}
    assert named.keys() == {name for name, _ in USED.findall(TEXT)}
    done = validate(**named)
    assert done.returncode == 0, done.stderr


def test_a_variable_that_names_no_exporter_is_refused() -> None:
    """Validation reads the variables: a mistake is told before anything starts."""
    done = validate(RUNSPAN_COLLECTOR_EXPORTERS="[otlp_grpc/temp]")
    assert done.returncode != 0
    assert "otlp_grpc/temp" in done.stderr


def test_the_head_names_every_variable_with_its_default() -> None:
    """Whoever sets a variable finds it at the top of the file, with what it is when it is not set."""
    told = dict(re.findall(r"^#   (RUNSPAN_\w+) +(\S+)", TEXT, flags=re.MULTILINE))
    used = dict(USED.findall(TEXT))
    assert told.keys() == used.keys()
    assert told.pop("RUNSPAN_API_KEY") == "none"
    assert told.pop("RUNSPAN_COLLECTOR_EXPORTERS") == "all"
    assert told.items() <= used.items()


def test_every_component_is_in_the_manifest() -> None:
    """What CI builds has what the file names, and nothing beside it."""
    manifest = yaml.safe_load((ROOT / ".ci" / "collector-builder.yaml").read_text())
    for kind in ("receivers", "processors", "exporters", "connectors", "extensions"):
        built = {item["gomod"].split()[0].rpartition("/")[2].removesuffix(kind[:-1]) for item in manifest[kind]}
        assert built == {name.partition("/")[0].replace("_", "").removesuffix("grpc") for name in SETTINGS[kind]}


def test_the_build_is_not_repeated() -> None:
    """With the binary of this manifest in its folder the script answers at once."""
    folder = ROOT / "build" / "collector"
    if not (folder / "otelcol").exists():
        pytest.skip("no Collector was built in build/collector")
    began = time.monotonic()
    done = subprocess.run([ROOT / ".ci" / "collector"], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == (folder / "otelcol").resolve()
    assert os.access(folder / "otelcol", os.X_OK)
    assert time.monotonic() - began < SECONDS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sent")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a runspan that the Collector sends to."""
    with server(tmp_path_factory.mktemp("store")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Iterator[Collector]:
    """A Collector that renews span metrics every second."""
    started = start_collector(tmp_path_factory.mktemp("collector"), runspan=backend, env={"FLUSH": "1s"})
    yield started
    started.stop()


def counts(collector: Collector, workflow: str) -> dict[str, float]:
    """What was counted of a workflow."""
    names = {
        "runs": "runspan_runs_total",
        "steps": "runspan_steps_total",
        "retries": "runspan_step_retries_total",
        "input": "runspan_tokens_input_total",
        "output": "runspan_tokens_output_total",
        "cost": "runspan_cost_USD_total",
        "run_cost": "runspan_run_cost_USD_total",
        "run_input": "runspan_run_tokens_input_total",
        "run_output": "runspan_run_tokens_output_total",
        "unfinished": "runspan_unfinished_age_seconds_count",
        "spans": "traces_span_metrics_calls_total",
    }
    values = collector.all_counted(names.values(), runspan_workflow_id=workflow)
    found = dict(zip(names, values, strict=True))
    return {short: value for short, value in found.items() if value}


def counted(collector: Collector, workflow: str, **expected: float) -> None:
    """Waits until exactly this was counted."""
    wait_until(lambda: counts(collector, workflow) == expected, SECONDS, f"{counts(collector, workflow)}")


def agent(**more: Any) -> dict[str, Any]:
    usage = {"promptTokens": 100, "completionTokens": 10, "model": "claude-sonnet-4-6", "estimatedCostUsd": 0.5}
    return step("think", type="agent", output={"usage": usage}, **more)


def test_concurrent_senders_are_counted_exactly(collector: Collector) -> None:
    """Tokens and cost of many requests at once add up: none is lost between them."""
    runs = [document(f"run_many_{n}", "wf_many", steps=[agent(), step("pay", attempt=3)]) for n in range(200)]

    def part(number: int) -> None:
        with httpx.Client(trust_env=False, headers={"content-type": "application/json"}) as client:
            for run in runs[number::8]:
                body = write_json(encode(Run.from_json(json.dumps(run).encode())), Resource("runspan", {}))
                assert client.post(f"{collector.otlp}/v1/traces", content=body).status_code == 200

    with ThreadPoolExecutor(8) as senders:
        list(senders.map(part, range(8)))
    tokens = {"input": 20_000, "output": 2000, "run_input": 20_000, "run_output": 2000, "cost": 100, "run_cost": 100}
    counted(collector, "wf_many", runs=200, steps=400, retries=400, spans=600, **tokens)
    assert collector.counted("runspan_cost_USD_total", gen_ai_agent_name="Think", job="runspan") == 100


@pytest.mark.parametrize("told", ["flag", "variable"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_replay_is_stored_and_not_counted(
    collector: Collector, backend: str, place: Path, protocol: str, told: str
) -> None:
    """``--replay``, or the header by OpenTelemetry's variable, works over both protocols, and changes no span."""
    workflow = f"wf_replay_{protocol[:4]}_{told}"
    otlp = collector.otlp if protocol != "grpc" else collector.url("GRPC")
    flag, headers = (("--replay",), "") if told == "flag" else ((), REPLAY)
    send(place, [document(f"run_{workflow}", workflow)], otlp, "--protocol", protocol, *flag, headers=headers)
    send(place, [document(f"run_{workflow}_2", workflow)], otlp, "--protocol", protocol)
    counted(collector, workflow, runs=1, steps=1, spans=2)
    for run_id in (f"run_{workflow}", f"run_{workflow}_2"):
        url = f"{backend}/api/v1/runs/{run_id}"
        wait_until(lambda url=url: httpx.get(url, trust_env=False).is_success, SECONDS, url)  # type: ignore[misc]


def test_revisions_count_as_unfinished_only(collector: Collector, place: Path) -> None:
    """A run that goes on has an age and is no run that ended. Its finished steps have ended. Neither its live span nor
    the points of its open steps count."""
    opened = {"id": "ask", "type": "approval", "status": "running", "startedAt": moment(60)}
    run = document("run_waits", "wf_waits", "suspended", [step("look"), opened], ago=60)
    assert {span.attributes()[ROLE] for span in spans_of(run)} == {"step", "live", "open_step", "revision"}
    send(place, [run], collector.otlp)
    counted(collector, "wf_waits", unfinished=1, steps=1, spans=1)
    labels = {"runspan_workflow_id": "wf_waits", "runspan_run_status": "suspended"}
    assert 70 <= collector.counted("runspan_unfinished_age_seconds_sum", **labels) < 130


def test_the_age_of_a_run_is_counted_however_old_it_is(collector: Collector, place: Path) -> None:
    """A revision lies at the start of its run, and is as new as its time of observation. One that was observed long ago
    is not counted."""
    run = document("run_days", "wf_days", "running", [step("look")], ago=200_000)
    past = write_json(spans_of(run, observed_at=time.time_ns() - 2 * HOUR), Resource("runspan", {}))
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{collector.otlp}/v1/traces", content=past, headers=headers, trust_env=False).is_success
    send(place, [run], collector.otlp)
    counted(collector, "wf_days", unfinished=1, steps=2, spans=2)
    assert 200_000 <= collector.counted("runspan_unfinished_age_seconds_sum", runspan_workflow_id="wf_days") < 200_100
    bounds = {"runspan_workflow_id": "wf_days", "le": "86400"}
    assert collector.counted("runspan_unfinished_age_seconds_bucket", **bounds) == 0


def test_a_failed_attempt_is_no_failed_step(collector: Collector, place: Path) -> None:
    """Its span has the status Error, and the step, which succeeded after it, has not."""
    attempts = [
        {"attempt": number, "status": status, "startedAt": moment(2 - number / 4), "completedAt": moment(1.5)}
        for number, status in enumerate(("failed", "completed"), 1)
    ]
    run = document("run_tries", "wf_tries", steps=[step("call", attempt=2, attempts=attempts)])
    assert [span.status for span in spans_of(run) if span.attributes()[ROLE] == "attempt"] == [2, 0]
    send(place, [run], collector.otlp)
    counted(collector, "wf_tries", runs=1, steps=1, retries=1, spans=2)
    failed = {"runspan_workflow_id": "wf_tries", "status_code": "STATUS_CODE_ERROR"}
    assert collector.counted("traces_span_metrics_calls_total", **failed) == 0


def test_a_skipped_step_took_no_time(collector: Collector, place: Path) -> None:
    """It counts as a step that was skipped, and is not among the durations."""
    skipped = {"id": "mail", "name": "Mail", "type": "email", "status": "skipped"}
    send(place, [document("run_skips", "wf_skips", steps=[step("look"), skipped])], collector.otlp)
    counted(collector, "wf_skips", runs=1, steps=2, spans=2)
    labels = {"runspan_workflow_id": "wf_skips", "runspan_step_status": "skipped"}
    assert collector.counted("runspan_steps_total", **labels) == 1
    assert collector.counted("traces_span_metrics_duration_seconds_count", **labels) == 0


def spans_of(run: dict[str, Any], **options: Any) -> list[Span]:
    return encode(Run.from_json(json.dumps(run).encode()), **options)


def test_a_run_that_is_told_again_and_again_costs_once(collector: Collector, place: Path) -> None:
    """An export of a run that goes on sends its finished steps each time. The run's totals count when it ends."""
    ended = document("run_followed", "wf_followed", steps=[agent()])
    going_on = {name: value for name, value in ended.items() if name not in {"completedAt", "durationMs"}}
    for found in ({**going_on, "status": "running"}, {**going_on, "status": "running"}, ended):
        send(place, [found], collector.otlp)
    wait_until(lambda: counts(collector, "wf_followed").get("runs") == 1, SECONDS, "the end was counted")
    totals = counts(collector, "wf_followed")
    assert (totals["run_cost"], totals["run_input"], totals["run_output"]) == (0.5, 100, 10)


@pytest.mark.parametrize("how", ["watch", "sync"])
def test_a_run_that_is_followed_counts_each_step_once(collector: Collector, tmp_path: Path, how: str) -> None:
    """Five revisions and the end, by ``export --watch`` and by ``sync``: steps, retries, tokens and cost, each once."""
    workflow = f"wf_{how}"
    steps = [agent(attempt=2) if number % 2 else step(f"step_{number}") for number in range(6)]
    begun = document(f"run_{how}", workflow, "running", steps[:1], ago=5)
    with following(how, tmp_path, collector.otlp) as write:
        for count in range(1, 6):
            write({**begun, "steps": [*steps[:count], {"id": "next", "type": "action", "status": "running"}]})
            wait_until(
                lambda count=count: counts(collector, workflow).get("unfinished") == count, SECONDS, "a revision"
            )  # type: ignore[misc]
        write({**document(f"run_{how}", workflow, steps=steps), "startedAt": begun["startedAt"]})
        wait_until(lambda: counts(collector, workflow).get("runs") == 1, SECONDS, "the end was counted")
    tokens = {"input": 300, "output": 30, "cost": 1.5, "run_input": 300, "run_output": 30, "run_cost": 1.5}
    counted(collector, workflow, runs=1, steps=6, retries=3, spans=7, unfinished=5, **tokens)


@contextmanager
def following(how: str, folder: Path, otlp: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes a run's document as it is now, and has it sent to the receiver."""
    if how == "sync":
        with platform(folder / "platform") as source:

            def write(found: dict[str, Any]) -> None:
                source.put(found)
                sync_command(source.url, otlp, folder / "checkpoint", "--heartbeat", "0s")

            yield write
        return
    watched = folder / "watched"
    watched.mkdir()
    with running("export", "--watch", watched, "--endpoint", otlp, "--poll", "0.1s") as child:
        child.wait_for("watching")

        def drop(found: dict[str, Any]) -> None:
            (watched / "run.json").write_text(json.dumps(found))

        yield drop
        assert child.end() == 0


def test_an_unfinished_run_that_is_sent_long_after_its_start_is_not_counted(collector: Collector, place: Path) -> None:
    """An export of old documents says nothing about approvals that somebody still waits for."""
    old = document("run_left", "wf_left", "suspended", [step("look", ago=800_000)], ago=800_000)
    send(place, [old, document("run_waiting", "wf_left", "suspended", ago=1000)], collector.otlp)
    wait_until(lambda: counts(collector, "wf_left").get("unfinished") == 1, SECONDS, "the recent one")
    assert collector.counted("runspan_unfinished_age_seconds_sum", runspan_workflow_id="wf_left") < 2000


def test_the_canary_is_not_counted(collector: Collector, backend: str) -> None:
    """A run that `verify` makes up is stored, and in no counter: no alert knows of it."""
    runspan("verify", "--canary", "--backend", backend, "--endpoint", collector.otlp)
    assert counts(collector, CANARY) == {}


def test_a_cancelled_step_is_no_failed_step(collector: Collector) -> None:
    """A task that is cancelled ends its run as cancelled. Its step is failed in the document, and fails in no alert."""

    async def engine(recorder: Recorder) -> None:
        async with recorder.run("wf_stopped") as run, run.step("wait"):
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(1)

    with Recorder(endpoint=collector.otlp) as recorder:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(engine(recorder))
        assert recorder.flush()
    counted(collector, "wf_stopped", runs=1, spans=2)
    assert (
        collector.counted("runspan_runs_total", runspan_workflow_id="wf_stopped", runspan_run_status="cancelled") == 1
    )


def test_a_run_in_the_trace_of_its_caller_is_counted_once(collector: Collector) -> None:
    """The copies there pass, and have neither role nor tokens and cost."""
    caller = {"traceparent": f"00-{'4b' * 16}-{'00f067aa0ba902b7'}-01"}
    before = collector.own("otelcol_exporter_sent_spans")
    with Recorder(endpoint=collector.otlp, run_parent="child") as recorder:
        for _ in range(2):
            with recorder.run("wf_called", headers=caller) as run, run.step("think", type="agent") as step:
                step.set_usage(prompt_tokens=100, completion_tokens=10, model="claude-sonnet-4-6", cost_usd=0.5)
        assert recorder.flush(SECONDS)
        sent = recorder.report().spans_sent
    wait_until(lambda: collector.own("otelcol_exporter_sent_spans") == before + sent, SECONDS, "all were sent")
    tokens = {"input": 200, "output": 20, "run_input": 200, "run_output": 20, "cost": 1, "run_cost": 1}
    expected = {"runs": 2, "steps": 2, "spans": 4, **tokens}
    wait_until(lambda: counts(collector, "wf_called").items() >= expected.items(), SECONDS, f"{expected}")


def test_what_is_old_is_not_counted(collector: Collector, place: Path) -> None:
    """Two hours ago is a backfill, half an hour ago is a run that arrives late."""
    old, late = document("run_old", "wf_age", ago=7200), document("run_late", "wf_age", ago=1800)
    send(place, [old, late], collector.otlp)
    counted(collector, "wf_age", runs=1, steps=1, spans=2)


def test_other_programs_spans_pass_and_are_not_counted(collector: Collector) -> None:
    """An HTTP server's span in a step would be a run to whoever goes by its kind."""
    before = collector.own("otelcol_exporter_sent_spans")
    post(collector, ("GET /", b"\x01" * 16, b"\x02" * 8))
    wait_until(lambda: collector.own("otelcol_exporter_sent_spans") == before + 1, SECONDS, "the span was sent")
    assert collector.counted("traces_span_metrics_calls_total", span_name="GET /") == 0


def test_a_span_without_ids_does_not_spoil_the_others(collector: Collector) -> None:
    """It is dropped and counted, and what came with it goes on."""
    before = collector.own("otelcol_exporter_sent_spans")
    post(
        collector,
        ("none", bytes(16), b"\x02" * 8),
        ("good", b"\x03" * 16, b"\x04" * 8),
        ("half", b"\x05" * 16, bytes(8)),
    )
    wait_until(lambda: collector.own("otelcol_exporter_sent_spans") == before + 1, SECONDS, "the good span was sent")
    assert collector.own("otelcol_processor_filter_spans_filtered", filter="filter/ids") == 2


def post(collector: Collector, *spans: tuple[str, bytes, bytes]) -> None:
    """Spans of another program: name, trace id, span id."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    for name, trace_id, span_id in spans:
        scope.spans.add(
            name=name, trace_id=trace_id, span_id=span_id, kind=2, start_time_unix_nano=now - 1, end_time_unix_nano=now
        )
    answer = httpx.post(
        f"{collector.otlp}/v1/traces", content=request.SerializeToString(), headers=PROTOBUF, trust_env=False
    )
    assert answer.status_code == 200, answer.text


def test_runspans_own_health_arrives_under_the_names_of_its_metrics_page(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process sends as OTLP metrics is named as what `runspan serve` and `sync` answer at ``/metrics``."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.otlp}/v1/metrics")
    health = MetricsRegistry(time.time_ns)
    timestamps = {InstrumentKind.AGE: time.time_ns() - HOUR, InstrumentKind.UNTIL: time.time_ns() + HOUR}
    health.register(lambda: {metric: timestamps.get(metric.kind, 1) for metric in INSTRUMENTS})
    with push_metrics(health, os.environ):
        pass
    wanted = {metric.prometheus_name for metric in INSTRUMENTS}
    told = re.compile(r"^(runspan_\w+)[{ ]", re.MULTILINE)
    wait_until(lambda: wanted <= set(told.findall(scraped(collector.url("HEALTH")))), SECONDS, "its metrics")


def test_durations_have_exemplars_that_name_the_trace(collector: Collector, place: Path) -> None:
    """A point in a graph leads to the trace of a run, in the format in which Prometheus asks for them."""
    trace_id = run_ids("run_example").trace_id.hex()

    def told() -> bool:
        send(place, [document("run_example", "wf_example")], collector.otlp)
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        text = httpx.get(f"{collector.url('SPANS')}/metrics", headers=accept, trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith("traces_span_metrics_duration_seconds_bucket")]
        return any(f'trace_id="{trace_id}"' in line for line in lines if 'runspan_role="run"' in line)

    wait_until(told, SECONDS, "an exemplar")


def test_a_newer_prometheus_reads_the_same_names(collector: Collector, place: Path) -> None:
    """Prometheus 3 asks for names with dots where there are any. What the rules read has underscores all the same."""
    send(place, [document("run_names", "wf_names", steps=[agent()])], collector.otlp)
    wait_until(lambda: counts(collector, "wf_names").get("spans") == 2, SECONDS, "span metrics")
    rules = yaml.safe_load(OUTPUT.read_text())["groups"]
    read = {name for group in rules for rule in group["rules"] for name in names(rule["expr"])}
    for port in ("SPANS", "OWN"):
        older, newer = (named(collector.url(port), escaping) for escaping in ("underscores", "allow-utf-8"))
        assert read & older
        assert read & older <= newer


def named(url: str, escaping: str) -> set[str]:
    """The names of all samples, as a Prometheus gets them that asks for this escaping."""
    accept = {"accept": f"application/openmetrics-text;version=1.0.0;escaping={escaping}"}
    text = httpx.get(f"{url}/metrics", headers=accept, trust_env=False).raise_for_status().text
    return set(re.findall(r'^\{?"?([\w.]+)', text, flags=re.MULTILINE))


def test_memory_that_is_used_up_refuses_with_a_code_to_try_again(tmp_path: Path, backend: str) -> None:
    """Senders hear 503 while the heap is over its limit, and are taken again once what was there is delivered."""
    collector = start_collector(tmp_path, runspan=backend, env={"MEMORY_MIB": "190"})
    large, small = (one_span("x" * size) for size in (20_000_000, 1))

    def status(body: bytes) -> int:
        url = f"{collector.otlp}/v1/traces"
        return httpx.post(url, content=body, headers=PROTOBUF, timeout=SECONDS, trust_env=False).status_code

    try:
        wait_until(lambda: status(large) == 503, SECONDS, "a refusal")
        assert collector.own("otelcol_receiver_refused_spans") > 0
        wait_until(lambda: status(small) == 200, 2 * SECONDS, "room again")
    finally:
        collector.stop()


def one_span(text: str) -> bytes:
    """A request with a span of another program that carries this text."""
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            name="padded", trace_id=b"\x06" * 16, span_id=b"\x07" * 8, start_time_unix_nano=1, end_time_unix_nano=2
        )
    )
    span.attributes.add(key="pad").value.string_value = text
    return request.SerializeToString()
