"""Writes through a server before a remote backend: what is acknowledged, what is refused, and which revision counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan import Run
from runspan.backends.sqlite import Limits, SqliteStore
from runspan.delivery.config import exporter_config
from runspan.delivery.transport import Retryable
from runspan.errors import BackendTimeout, TraceIncomplete
from runspan.forward import MAX_REQUEST, Forwarder
from runspan.model.span import run_ids
from runspan.otlp.json import write_json
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import runspan, server, write_ndjson
from support.servers.collector import start_collector
from support.servers.process import free_ports
from support.web import JSON, PROTOBUF, document, error_of, otlp, serving, spans_of

NOW = 1_768_467_700_000_000_000
SLOW = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
"""Time enough for a receiver on a busy machine."""


@contextmanager
def receiver(directory: Path, **config: Any) -> Iterator[tuple[httpx.Client, SqliteStore]]:
    """A real OTLP receiver: a runspan server on its own store, which takes runs of two steps at most."""
    keys = config.pop("keys", None)
    with (
        SqliteStore(directory, limits=Limits(max_steps=config.pop("max_steps", 100_000))) as store,
        serving(create_app(store, store, keys=keys, config=WebConfig(**config)), max_body=64 << 20) as client,
    ):
        yield client, store


@contextmanager
def replica(
    store: SqliteStore, endpoint: str, *, keys: ApiKeyStore | None = None, max_request: int = MAX_REQUEST, **env: str
) -> Iterator[httpx.Client]:
    """A server that reads a store and forwards to its receiver."""
    config = exporter_config(SLOW | env, endpoint=endpoint, protocol="http/protobuf")
    forwarder = Forwarder(store, config, max_request=max_request)
    try:
        with serving(create_app(store, forwarder, keys=keys), max_body=64 << 20) as client:
            yield client
    finally:
        forwarder.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """A server that forwards, and the receiver that it forwards to."""
    with receiver(tmp_path / "store") as (target, store), replica(store, str(target.base_url)) as client:
        yield client, target


def push(client: httpx.Client, run: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/api/v1/runs", content=json.dumps(run), headers=JSON | headers)


def partial_success(response: httpx.Response) -> tuple[int, str]:
    assert response.status_code == 200, response.text
    found = ExportTraceServiceResponse.FromString(response.content).partial_success
    return found.rejected_spans, found.error_message


def test_a_pushed_document_is_accepted_once_the_receiver_has_it(pair: tuple[httpx.Client, httpx.Client]) -> None:
    """202 says that it was acknowledged elsewhere; the document is the same, however often it is pushed."""
    client, target = pair
    for _ in range(2):
        response = push(client, document())
        assert response.status_code == 202
        assert response.json()["data"].keys() == {"id", "traceId"}
        assert target.get("/api/v1/runs/run_1").json() == {"success": True, "data": document()}
    assert client.get("/api/v1/runs/run_1").content == target.get("/api/v1/runs/run_1").content


HISTORY = [
    document(status="running", completedAt=None, durationMs=None, steps=[]),
    document(status="running", completedAt=None, durationMs=None),
    document(),
    document(output={"corrected": 1}),
    document(output={"corrected": 2}),
    document(status="running", completedAt=None, startedAt="2024-01-15T10:00:00.000Z", steps=[]),
    document(output={"corrected": 2}),
]
OLD = document(status="running", completedAt=None, durationMs=None, steps=[], startedAt="2024-01-15T08:00:00.000Z")


@pytest.mark.parametrize("remembers", [True, False], ids=["one server", "another server each time"])
def test_each_change_ranks_above_what_was_pushed_before(tmp_path: Path, remembers: bool) -> None:
    """Progress, the end, corrections, a run that is reopened and ends as before: the last document pushed is the run,
    as in the embedded store, whichever server it is pushed to. An older state of a run that has ended is ignored."""
    with receiver(tmp_path / "store") as (target, store), receiver(tmp_path / "own") as (own, _), ExitStack() as stack:
        client = None
        for run in HISTORY:
            if client is None or not remembers:
                client = stack.enter_context(replica(store, str(target.base_url)))
            assert push(client, run).status_code == 202
            push(own, run)
            assert client.get("/api/v1/runs/run_1").json()["data"] == run
            assert client.get("/api/v1/runs/run_1").content == own.get("/api/v1/runs/run_1").content
        assert client is not None
        response = push(client, OLD)
        assert (response.status_code, response.json()["data"]["new"]) == (200, False)
        assert client.get("/api/v1/runs/run_1").json()["data"] == HISTORY[-1]


class Blind:
    """A store in which nothing that was written can be read yet, as in a backend behind a long queue."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def run_spans(self, run_id: str, tenant: str = "") -> Any:
        return self._store.spans(bytes(16), tenant)


def test_a_correction_ranks_above_an_end_that_cannot_be_read_yet(tmp_path: Path) -> None:
    """A server remembers what it has forwarded until the backend has it."""
    with receiver(tmp_path / "store") as (target, store):
        forwarder = Forwarder(Blind(store), exporter_config({}, endpoint=str(target.base_url)))
        for number in range(3):
            forwarder.put(Run.from_dict(document(output=number)), observed_at=NOW)
        forwarder.close()
        assert target.get("/api/v1/runs/run_1").json()["data"]["output"] == 2
        assert not store.document("run_1").conflict


def test_a_correction_ranks_above_an_end_that_was_sent_over_otlp_and_cannot_be_read_yet(tmp_path: Path) -> None:
    """It is no conflict, as from another server. An unfinished document is refused, since it may be an older one."""
    with receiver(tmp_path / "store") as (target, store):
        forwarder = Forwarder(Blind(store), exporter_config({}, endpoint=str(target.base_url)))
        with closing(forwarder):
            forwarder.write(TracesData.FromString(otlp(document(output=0))), "")
            with pytest.raises(TraceIncomplete, match="the end of the run was forwarded"):
                forwarder.put(Run.from_dict(document(status="running", completedAt=None)), observed_at=NOW)
            assert target.get("/api/v1/runs/run_1").json()["data"]["output"] == 0
            forwarder.put(Run.from_dict(document(output=1)), observed_at=NOW)
            forwarder.write(TracesData.FromString(otlp(document(output=0))), "")
            assert target.get("/api/v1/runs/run_1").json()["data"]["output"] == 1
            forwarder.put(Run.from_dict(document(output=2)), observed_at=NOW)
        assert target.get("/api/v1/runs/run_1").json()["data"]["output"] == 2
        assert not store.document("run_1").conflict


@pytest.mark.parametrize("arrives", [True, False])
def test_a_correction_ranks_above_an_end_that_may_have_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """A response was lost. The next document is returned and no conflict, whichever digest is higher. An unfinished one
    ranks below the end that arrived, and is stored if none did."""
    with receiver(tmp_path / "store") as (target, store):
        forwarder = Forwarder(Blind(store), exporter_config({}, endpoint=str(target.base_url)))
        send = forwarder._transport.send

        def lost(*args: Any) -> Retryable:
            if arrives:
                send(*args)
            return Retryable("the response was lost", timed_out=True)

        def put(run: dict[str, Any]) -> None:
            forwarder.put(Run.from_dict(run), observed_at=NOW)

        with closing(forwarder):
            for run_id in "abcdefgh":
                end = document(run_id)
                unfinished = document(run_id, status="running", completedAt=None)
                with monkeypatch.context() as context:
                    context.setattr(forwarder._transport, "send", lost)
                    with pytest.raises(BackendTimeout):
                        put(end)
                put(unfinished)
                assert store.document(run_id).text == Run.from_dict(end if arrives else unfinished).text
                for output in range(2):
                    corrected = document(run_id, output=output)
                    put(corrected)
                    found = store.document(run_id)
                    assert (found.text, found.conflict) == (Run.from_dict(corrected).text, ())


def test_what_the_receiver_rejects_counts_for_no_revision(tmp_path: Path) -> None:
    """Nobody knows which spans those were, so the end that is pushed next is the run's first."""
    steps = [{"id": str(number), "status": "completed"} for number in range(3)]
    with receiver(tmp_path / "store", max_steps=2) as (target, store):
        with closing(Forwarder(Blind(store), exporter_config({}, endpoint=str(target.base_url)))) as forwarder:
            assert forwarder.write(TracesData.FromString(otlp(document(steps=steps))), "").rejected
            forwarder.put(Run.from_dict(document()), observed_at=NOW)
        assert target.get("/api/v1/runs/run_1").json()["data"] == document()
        assert [span.attributes()["runspan.role"] for span in store.run_spans("run_1")].count("run") == 1


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_spans_are_forwarded_in_both_encodings(pair: tuple[httpx.Client, httpx.Client], encoding: str) -> None:
    """Spans of runs and of other instrumentation arrive, and the response is in the encoding of the request."""
    client, target = pair
    if encoding == "json":
        response = client.post("/v1/traces", content=write_json(spans_of(document())), headers=JSON)
        assert response.json() == {}
    else:
        response = client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF)
        assert partial_success(response) == (0, "")
    assert target.get("/api/v1/runs/run_1").json()["data"] == document()
    metrics = client.get("/metrics").text
    assert "runspan_spans_received_total 3.0" in metrics


def test_what_is_too_large_for_one_request_is_forwarded_in_parts(tmp_path: Path) -> None:
    """Backends refuse more than 4 MiB behind a Collector that has acknowledged them, so no request is larger."""
    steps = [{"id": f"s{n}", "status": "completed", "output": "x" * 400_000} for n in range(20)]
    with (
        receiver(tmp_path / "store", max_body=3 << 20) as (target, store),
        replica(store, str(target.base_url)) as client,
    ):
        body = otlp(document("a", steps=steps))
        assert partial_success(client.post("/v1/traces", content=body, headers=PROTOBUF)) == (0, "")
        assert push(client, document("b", steps=steps)).status_code == 202
        for run_id in "ab":
            assert target.get(f"/api/v1/runs/{run_id}").json()["data"] == document(run_id, steps=steps)


def test_resources_count_in_the_size_of_a_part(tmp_path: Path) -> None:
    """Many resources, each larger than its spans, are parts of the size that backends take; one that leaves no room
    for spans is refused, since every part has it."""
    request = TracesData()
    for number in range(20):
        outer = request.resource_spans.add()
        outer.resource.attributes.add(key="text").value.string_value = "x" * 400_000
        outer.scope_spans.add().spans.add(trace_id=bytes(15) + b"1", span_id=bytes([1, *[number] * 7]), name="foreign")
    with (
        receiver(tmp_path / "store", max_body=3 << 20) as (target, store),
        replica(store, str(target.base_url)) as client,
    ):
        response = client.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF)
        assert partial_success(response) == (0, "")
        assert len(store.spans(bytes(15) + b"1")) == 20
        outer.resource.attributes.add(key="more").value.string_value = "x" * 2_000_000
        assert client.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF).status_code == 413


def test_a_span_that_backends_refuse_is_refused_before_it_is_forwarded(tmp_path: Path) -> None:
    """The Collector would acknowledge it, and drop it once a backend has refused it. Nothing of its request is sent."""

    def run(run_id: str, size: int) -> dict[str, Any]:
        steps = [{"id": "small", "status": "completed"}, {"id": "s", "status": "completed", "output": "x" * size}]
        return document(run_id, steps=steps)

    with receiver(tmp_path / "store", max_body=64 << 20) as (target, store):
        with replica(store, str(target.base_url)) as client:
            error = error_of(push(client, run("a", 4 << 20)), 413, "PAYLOAD_TOO_LARGE")
            assert "run a: " in error["message"]
            response = client.post("/v1/traces", content=otlp(run("b", 4 << 20), document()), headers=PROTOBUF)
            assert response.status_code == 413
            for message in (error["message"], Status.FromString(response.content).message):
                assert "at most 3594304 bytes in a span" in message
                assert "takes requests of 4194304 bytes" in message
                assert "--max-forwarded" in message
            assert store.stats().runs == 0
            assert push(client, run("c", 3_400_000)).status_code == 202
            body = otlp(run("d", 3_400_000))
            assert partial_success(client.post("/v1/traces", content=body, headers=PROTOBUF)) == (0, "")
            for run_id in "cd":
                assert target.get(f"/api/v1/runs/{run_id}").json()["data"] == run(run_id, 3_400_000)
        with replica(store, str(target.base_url), max_request=8 << 20) as client:
            assert push(client, run("a", 4 << 20)).status_code == 202


@pytest.mark.parametrize("kind", ["array_value", "kvlist_value"])
def test_a_run_id_that_is_no_text_rejects_its_span_alone(pair: tuple[httpx.Client, httpx.Client], kind: str) -> None:
    """The other spans of the request are forwarded, and what the sender has chosen does not fill the response."""
    client, target = pair
    request = TracesData()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number, name in enumerate((kind, "string_value"), start=1):
        span = spans.add(trace_id=bytes([number]) * 16, span_id=bytes([number]) * 8)
        span.attributes.add(key="runspan.role").value.string_value = "step"
        value = span.attributes.add(key="runspan.run.id").value
        if name == "string_value":
            value.string_value = "x" * 100_000
        else:
            getattr(value, name).values.add()
    content = request.SerializeToString() + otlp(document())
    rejected, reason = partial_success(client.post("/v1/traces", content=content, headers=PROTOBUF))
    assert rejected == 2
    assert reason.count("its trace id does not follow from run id") == 2
    assert len(reason) < 2000
    assert target.get("/api/v1/runs/run_1").json()["data"] == document()


def test_a_revision_above_which_there_is_none_is_rejected(pair: tuple[httpx.Client, httpx.Client]) -> None:
    """Nothing could correct its run any more."""
    client, target = pair
    request = TracesData()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=run_ids("a").trace_id, span_id=b"revision")
    span.attributes.add(key="runspan.role").value.string_value = "revision"
    span.attributes.add(key="runspan.run.id").value.string_value = "a"
    span.attributes.add(key="runspan.revision").value.int_value = (1 << 63) - 1
    response = client.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF)
    rejected, reason = partial_success(response)
    assert rejected == 1
    assert "follows from no time of observation" in reason
    assert target.get("/metrics").text.count("runspan_spans_received_total 0.0") == 1


def test_a_receiver_that_takes_a_part_is_a_partial_success(tmp_path: Path) -> None:
    """Its numbers and reasons are passed on; of one document, a part is an error, since it is not stored."""
    small, large = document("small"), document("large", steps=[{"id": str(n), "status": "completed"} for n in range(3)])
    with (
        receiver(tmp_path / "store", max_steps=2) as (target, store),
        replica(store, str(target.base_url)) as client,
    ):
        rejected, reason = partial_success(client.post("/v1/traces", content=otlp(small, large), headers=PROTOBUF))
        assert rejected == 4
        assert "run large: it has 3 steps, and this store takes 2" in reason
        error = error_of(push(client, large), 502, "BACKEND_REFUSED")
        assert "4 rejected: run large" in error["message"]
        assert client.get("/api/v1/runs/small").json()["data"] == small
        error_of(client.get("/api/v1/runs/large"), 404, "NOT_FOUND")


def test_a_run_of_another_tenant_is_not_forwarded(tmp_path: Path) -> None:
    """A remote backend would take it: the spans of another tenant's run are rejected here, those of the own pass."""
    with (
        receiver(tmp_path / "store") as (target, store),
        closing(ApiKeyStore(tmp_path / "keys.sqlite3")) as keys,
    ):
        secret, _ = keys.create("acme", tenant="acme")
        with replica(store, str(target.base_url), keys=keys) as client:
            mine = (
                otlp(document("mine"), tenant="acme") + otlp(document("theirs"), tenant="beta") + otlp(document("no"))
            )
            headers = PROTOBUF | {"x-api-key": secret}
            rejected, reason = partial_success(client.post("/v1/traces", content=mine, headers=headers))
            assert rejected == 9  # the receiver, which has no keys, takes no run of a tenant
            assert reason.count("the run is of tenant 'beta', the sender of 'acme'") == 1
            assert reason.count("the run is of tenant '', the sender of 'acme'") == 1
            assert "the run is of tenant 'acme', the sender of ''" in reason
            assert partial_success(client.post("/v1/traces", content=otlp(document("no")), headers=headers))[0] == 3
            error_of(client.post("/api/v1/runs", json=document()), 401, "UNAUTHORIZED")
    with SqliteStore(tmp_path / "store") as store:
        assert store.stats().runs == 0


def test_a_receiver_that_is_not_there_is_503(tmp_path: Path) -> None:
    """Nothing is acknowledged, and the status says that it may be sent again."""
    (port,) = free_ports(1)
    with SqliteStore(tmp_path) as store, replica(store, f"http://127.0.0.1:{port}") as client:
        response = client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF)
        assert response.status_code == 503
        assert "expected a response" in Status.FromString(response.content).message
        assert f"the Collector at http://127.0.0.1:{port}" in Status.FromString(response.content).message
        error_of(push(client, document()), 503, "BACKEND_UNREACHABLE")


def test_a_login_that_the_receiver_refuses_keeps_senders_sending(tmp_path: Path) -> None:
    """Wrong headers are the operator's fault: senders hear a status after which they retry, and no secret."""
    with closing(ApiKeyStore(tmp_path / "keys.sqlite3")) as keys:
        secret, _ = keys.create("x", permissions=["runs:read"])
        env = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={secret}"}
        with (
            receiver(tmp_path / "s", keys=keys) as (target, store),
            replica(store, str(target.base_url), **env) as client,
        ):
            response = client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF)
            assert response.status_code == 503
            message = Status.FromString(response.content).message
            assert "HTTP 403" in message
            assert "--forward-to" in message
            assert secret not in message


def test_a_receiver_that_asks_to_wait_is_passed_on(tmp_path: Path) -> None:
    """Its Retry-After is that of the response."""
    with closing(ApiKeyStore(tmp_path / "keys.sqlite3")) as keys:
        secret, _ = keys.create("x")
        env = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={secret}"}
        with (
            receiver(tmp_path / "s", keys=keys, traces_per_minute=1) as (target, store),
            replica(store, str(target.base_url), **env) as client,
        ):
            assert client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF).status_code == 200
            response = client.post("/v1/traces", content=otlp(document("2")), headers=PROTOBUF)
            assert response.status_code == 503
            assert 5 < int(response.headers["retry-after"]) <= 60
            assert "HTTP 429" in Status.FromString(response.content).message


def test_what_the_receiver_cannot_read_is_refused_for_good(tmp_path: Path) -> None:
    """A body that is too large for it is 413, after which senders divide what they send."""
    big = document(steps=[{"id": "s", "status": "completed", "output": "x" * 2_000_000}])
    with (
        receiver(tmp_path / "store", max_body=1 << 20) as (target, store),
        replica(store, str(target.base_url)) as client,
    ):
        assert client.post("/v1/traces", content=otlp(big), headers=PROTOBUF).status_code == 413
        error_of(push(client, big), 413, "PAYLOAD_TOO_LARGE")


# A real Collector.


def eventually(check: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["tempo", "jaeger_memory"])
def test_through_a_collector_into_a_real_backend(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """Documents and spans that are sent to the server come back from it, corrected by a second server too."""
    backend = request.getfixturevalue(name)
    tenant, run_id = f"tenant-{uuid4().hex}", uuid4().hex
    collector = start_collector(tmp_path, runspan=backend.otlp)
    try:
        args = ("--backend", f"{name.partition('_')[0]}+{backend.url}", "--forward-to", collector.otlp)
        secret = json.loads(
            runspan("keys", "create", "--data", tmp_path, "--name", "x", "--tenant", tenant, "--json").stdout
        )["key"]
        headers = {"x-api-key": secret}
        with (
            server(tmp_path, *args, **SLOW) as (one, child),
            server(tmp_path, *args, **SLOW) as (two, _),
            httpx.Client(headers=headers, trust_env=False, timeout=60) as client,
        ):
            assert any("forwarded to" in line for line in child.lines) or child.wait_for("forwarded to")
            for number, url in enumerate((one, one, two, one)):
                run = document(run_id, output=number)
                response = client.post(f"{url}/api/v1/runs", json=run)
                assert response.status_code == 202, response.text
                eventually(lambda: client.get(f"{two}/api/v1/runs/{run_id}").json().get("data") == run)  # noqa: B023
            found = client.get(f"{two}/api/v1/runs/{run_id}")
            assert "x-runspan-conflict" not in found.headers
            texts = {f"{run_id}-{n}": json.dumps(document(f"{run_id}-{n}")).encode() for n in range(20)}
            path = write_ndjson(tmp_path / "runs.ndjson", texts)
            report = runspan("export", path, "--endpoint", one, "--tenant", tenant, RUNSPAN_API_KEY=secret)
            assert "20" in report.stderr
            for item in texts:
                eventually(lambda: client.get(f"{two}/api/v1/runs/{item}").status_code == 200)  # noqa: B023
            wrong = runspan("export", path, "--endpoint", one, "--tenant", "other", RUNSPAN_API_KEY=secret, code=1)
            assert "the run is of tenant" in wrong.output
    finally:
        collector.stop()


def test_a_collector_that_does_not_answer_is_504(tmp_path: Path) -> None:
    """The time of the config bounds the wait, and once it is back the same request is accepted."""
    with SqliteStore(tmp_path / "store") as store, receiver(tmp_path / "target") as (target, _):
        collector = start_collector(tmp_path, runspan=str(target.base_url).rstrip("/"))
        try:
            with replica(store, collector.otlp, OTEL_EXPORTER_OTLP_TIMEOUT="1") as client:
                collector.program.freeze()
                began = time.monotonic()
                response = client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF)
                assert response.status_code == 504
                assert "within 1 seconds" in Status.FromString(response.content).message
                error_of(push(client, document()), 504, "BACKEND_TIMEOUT")
                assert time.monotonic() - began < 60
                collector.program.thaw()
                eventually(
                    lambda: client.post("/v1/traces", content=otlp(document()), headers=PROTOBUF).status_code == 200
                )
            eventually(lambda: target.get("/api/v1/runs/run_1").status_code == 200)
        finally:
            collector.program.thaw()
            collector.stop()


def test_a_collector_goes_and_comes_back(tmp_path: Path) -> None:
    """While it is down nothing is acknowledged; what was acknowledged arrives although the Collector was killed."""
    with SqliteStore(tmp_path / "store") as store, receiver(tmp_path / "target") as (target, _):
        collector = start_collector(tmp_path, runspan=str(target.base_url).rstrip("/"))
        try:
            with replica(store, collector.otlp) as client:
                assert push(client, document("first")).status_code == 202
                collector.program.kill()
                error_of(push(client, document("second")), 503, "BACKEND_UNREACHABLE")
                assert client.post("/v1/traces", content=otlp(document("third")), headers=PROTOBUF).status_code == 503
                collector.start()
                eventually(lambda: target.get("/api/v1/runs/first").status_code == 200)
                assert push(client, document("second")).status_code == 202
                eventually(lambda: target.get("/api/v1/runs/second").status_code == 200)
        finally:
            collector.stop()


def test_forwarding_needs_a_remote_backend(tmp_path: Path) -> None:
    """The embedded store takes runs itself; a wrong URL is refused before the server listens."""
    refused = runspan("serve", "--data", tmp_path, "--port", 0, "--forward-to", "http://127.0.0.1:4318", code=2)
    assert "--forward-to: expected Tempo or Jaeger as --backend" in refused.stderr
    args = ("--backend", "tempo+http://127.0.0.1:1", "--forward-to")
    assert "login" in runspan("serve", "--data", tmp_path, "--port", 0, *args, "http://u:p@x", code=2).stderr
