"""Helpers of the sync tests: two real servers, the sync between them, and the comparison of all documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx

from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import ROOT_REVISION, RUN_ID
from runspan.delivery import DeadLetters, ExporterConfig, RetryPolicy, connect
from runspan.http.retry import RateLimiter
from runspan.model.document import Run
from runspan.model.timestamps import SECOND
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes
from runspan.platform_api.client import ApiClient, PlatformClient, run_path
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState, sync_binding
from runspan.sync.context import MINUTE, SyncConfig
from runspan.sync.engine import SyncEngine
from runspan.sync.queues import PlannedSend, plan_send
from runspan.sync.report import SyncReport
from runspan.sync.service import SyncService
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import WAIT, runspan
from support.receivers import Post
from support.web import serving

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

Place: TypeAlias = "Path | PostgresDatabase"
NOW = 1_800_000_000 * SECOND
POLICY = SyncConfig(poll=15 * SECOND, heartbeat=5 * MINUTE)


@dataclass
class LocalServer:
    """A server in this process, on a real port."""

    store: SqliteStore
    url: str

    def put(self, *documents: bytes | dict[str, Any]) -> None:
        """Store documents, each observed now."""
        for document in documents:
            run = _parse(document)
            assert not self.store.put(run, observed_at=time.time_ns()).rejected

    def fill(self, *documents: bytes | dict[str, Any]) -> None:
        """Store the first documents of many runs at once."""
        runs = [_parse(document) for document in documents]
        for first in range(0, len(runs), 200):
            spans = chain.from_iterable(
                [write_run(run, observed_at=time.time_ns()) for run in runs[first : first + 200]]
            )
            assert not self.store.write(read_protobuf(request_bytes(Resource(), spans))).rejected

    def documents(self) -> dict[str, bytes]:
        """Return every document by id, read over the API."""
        return documents(self.url)


def _parse(document: bytes | dict[str, Any]) -> Run:
    return Run.from_json(document) if isinstance(document, bytes) else Run.from_dict(document)


@contextmanager
def local_server(directory: Path, **options: Any) -> Iterator[LocalServer]:
    """Run a server until the block ends. options: Of the store."""
    with SqliteStore(directory, **options) as store:
        app = create_app(store, store, config=WebConfig())
        with serving(app) as client:
            yield LocalServer(store, str(client.base_url).rstrip("/"))


def documents(url: str) -> dict[str, bytes]:
    """Return every document of a server by id. None may be listed twice or incomplete."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        ids = list(_listed(client))
        assert len(ids) == len(set(ids))
        found = {}
        for run_id in ids:
            response = client.get(run_path(run_id)).raise_for_status()
            assert "x-runspan-incomplete" not in response.headers
            found[run_id] = response.content.removeprefix(b'{"success":true,"data":').removesuffix(b"}")
        return found


def _listed(client: httpx.Client) -> Iterator[str]:
    """Yield the ids of all pages in their order."""
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/api/v1/runs", params={"limit": "200", **cursor}).raise_for_status().json()
        yield from (run["id"] for run in page["data"])
        if not page["meta"]["hasMore"]:
            return
        cursor = {"cursor": page["meta"]["cursor"]}


def sync_command(source: str, target: str, checkpoint: Path, *args: object, code: int = 0, **env: str) -> Any:
    """Run ``runspan sync`` without a rate limit, check its exit code, and return its report."""
    options = ("--endpoint", target, "--state-file", checkpoint, "--requests-per-minute", 0, "--json")
    return json.loads(runspan("sync", source, *options, *args, code=code, **env).stdout)


def sync_once(
    source: str,
    target: str,
    checkpoint: Path,
    *,
    retry_max_time: float = 30.0,
    clock: Callable[[], int] = time.time_ns,
) -> SyncReport:
    """Sync in this process, with short pauses between attempts."""
    with _engine(source, target, checkpoint, SyncConfig(retry_max_time=retry_max_time), clock=clock) as engine:
        return engine.run()


@contextmanager
def following(
    source: str,
    target: str,
    checkpoint: Path,
    *,
    clock: Callable[[], int] = time.time_ns,
    heartbeat: int = 0,
    rescan: int = SECOND,
    grace: float = 10.0,
    log: Callable[[str], None] = lambda message: None,
) -> Iterator[SyncService]:
    """Follow in this process, with short intervals, until the block ends. The sync must not end before."""
    config = SyncConfig(follow=True, poll=SECOND // 5, rescan=rescan, heartbeat=heartbeat, grace=grace)
    begin = partial(_engine, source, target, checkpoint, config, clock=clock, log=log)
    with (
        SyncService(lambda totals: begin(totals=totals), follow=True, retry_max_time=0.0, log=log) as service,
        ThreadPoolExecutor(1) as thread,
    ):
        ended = thread.submit(service.run)
        try:
            yield service
            assert not ended.done()
        finally:
            service.stop()
        assert ended.result(WAIT)[1] is None


@contextmanager
def _engine(source: str, target: str, checkpoint: Path, config: SyncConfig, **options: Any) -> Iterator[SyncEngine]:
    halted = threading.Event()

    def sleep(seconds: float) -> None:
        halted.wait(seconds)

    platform = PlatformClient(
        ApiClient(source, key_hint="", timeout=5.0),
        key=lambda: None,
        rate_limiter=RateLimiter(0, sleep=sleep),
        sleep=sleep,
        halted=halted.is_set,
        retry=RetryPolicy(max_attempts=2, first_delay=0.01, max_delay=0.02),
    )
    exporter = ExporterConfig(f"{target}/v1/traces")
    with (
        closing(Checkpoint(checkpoint, sync_binding(source, exporter.display_url))) as opened,
        DeadLetters(f"{checkpoint}.dead-letters") as dead_letters,
    ):
        yield SyncEngine(
            config,
            platform,
            opened,
            connect=lambda on_settled: connect(exporter, on_settled=on_settled),
            halt=halted.set,
            dead_letters=dead_letters,
            tenant="",
            resource=Resource("runspan", {}),
            **options,
        )


def run_ids_of(post: Post) -> set[str]:
    """Return the ids of the runs in a request, by the attribute of their spans."""
    found = [attribute for span in post.spans for attribute in span.attributes if attribute.key == RUN_ID]
    return {attribute.value.string_value for attribute in found}


def make_directory(path: Path) -> Path:
    """Create the directory, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def eventually(holds: Callable[[], bool], what: str = "") -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline, what or "it never held"
        time.sleep(0.02)


def run_document(run_id: str, status: str = "completed", start: int = 0, **members: Any) -> dict[str, Any]:
    """Return a run of two steps that started this many seconds after a fixed noon. Its second step ends with it."""
    ended = status not in ("pending", "running", "suspended")
    begin = f"2026-01-15T{12 + start // 3600:02}:{start // 60 % 60:02}:{start % 60:02}.000Z"
    return {
        "id": run_id,
        "workflowId": "wf_1",
        "status": status,
        "startedAt": begin,
        "completedAt": begin.replace(".000Z", ".500Z") if ended else None,
        "output": {"n": start},
        "createdAt": begin,
        "steps": [
            {"id": "first", "type": "action", "status": "completed", "startedAt": begin, "completedAt": begin},
            {"id": "second", "type": "action", "status": "completed" if ended else "running", "startedAt": begin},
        ],
        **members,
    }


def recent_document(run_id: str, status: str = "completed", days: float = 0.0, **members: Any) -> dict[str, Any]:
    """Return a run that started this many days ago."""
    start = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return run_document(run_id, status, **members) | {"startedAt": start, "createdAt": start}


def run_of(status: str, output: int = 0) -> Run:
    return Run.from_dict(run_document("run_1", status, output=output))


def planned(tracked: TrackedRun, run: Run, now: int) -> PlannedSend:
    """Return how to send a document that the receiver does not have."""
    found = plan_send(tracked, run, now, POLICY)
    assert found is not None
    return found


def mark_sent(tracked: TrackedRun, item: PlannedSend, at: int, *, acked: bool = True) -> None:
    """Update a run as the send queue does when a document is sent, and when it is acknowledged."""
    tracked.sent_digest, tracked.sent_revision = item.digest, item.revision
    tracked.run_span_sent = tracked.run_span_sent or item.revision == ROOT_REVISION
    if acked:
        tracked.acked_digest, tracked.acked_at = item.digest, at
        tracked.state = TrackState.ENDED if item.run.finished else TrackState.OPEN
