"""What the tests of sync share: two real servers, the command between them, and the comparison of all documents."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx

from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import RUN_ID
from runspan.delivery import DeadLetters, ExporterConfig, RetryPolicy, connect
from runspan.http.rate_limiter import RateLimiter
from runspan.model.run import Run
from runspan.model.timestamps import SECOND
from runspan.otlp.bulk_writer import write_runs
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes
from runspan.platform_api import PlatformClient, run_path
from runspan.sync import Binding, Checkpoint, RefreshPolicy, SyncConfig, SyncEngine, SyncReport
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import WAIT, runspan
from support.receivers import Post
from support.web import serving


@dataclass
class Place:
    """A server in this process, on a real port: its store and its address."""

    store: SqliteStore
    url: str

    def put(self, *documents: bytes | dict[str, Any]) -> None:
        """Takes documents as they are now."""
        for document in documents:
            run = _run_of(document)
            written = self.store.put(run, observed_at=time.time_ns())
            assert not written.rejected

    def fill(self, *documents: bytes | dict[str, Any]) -> None:
        """Takes the first documents of many runs at once."""
        runs = [_run_of(document) for document in documents]
        for first in range(0, len(runs), 200):
            spans = chain.from_iterable(write_runs(runs[first : first + 200], observed_at=time.time_ns()))
            assert not self.store.write(read_protobuf(request_bytes(Resource(), spans))).rejected

    def documents(self) -> dict[str, bytes]:
        """Every document by id, read over the API."""
        return documents(self.url)


def _run_of(document: bytes | dict[str, Any]) -> Run:
    return Run.from_json(document) if isinstance(document, bytes) else Run.from_dict(document)


@contextmanager
def place(folder: Path, **settings: Any) -> Iterator[Place]:
    """A server until the block ends. settings: of the store."""
    with SqliteStore(folder, **settings) as store:
        app = create_app(store, store, config=WebConfig())
        with serving(app, threads=8) as client:
            yield Place(store, str(client.base_url).rstrip("/"))


def listed(client: httpx.Client) -> list[str]:
    """The ids of all pages, in their order."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/api/v1/runs", params={"limit": "200", **cursor}).raise_for_status().json()
        ids += [run["id"] for run in page["data"]]
        if not page["meta"]["hasMore"]:
            return ids
        cursor = {"cursor": page["meta"]["cursor"]}


def documents(url: str) -> dict[str, bytes]:
    """Every document of a server by id; none of them stands twice in the list, or incomplete."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        ids = listed(client)
        assert len(ids) == len(set(ids))
        found = {}
        for run_id in ids:
            answer = client.get(run_path(run_id)).raise_for_status()
            assert "x-runspan-incomplete" not in answer.headers
            found[run_id] = answer.content.removeprefix(b'{"success":true,"data":').removesuffix(b"}")
        return found


def synced(source: str, target: str, checkpoint: Path, *args: object, code: int = 0, **env: str) -> dict[str, Any]:
    """The report of ``runspan sync``, once through and as fast as it goes, which must end with this exit code."""
    fast = ("--requests-per-minute", 0)
    result = runspan(
        "sync", source, "--endpoint", target, "--state-file", checkpoint, *fast, "--json", *args, code=code, **env
    )
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def once(
    source: str, target: str, checkpoint: Path, *, give_up: float = 30.0, clock: Callable[[], int] = time.time_ns
) -> SyncReport:
    """A sync in this process, whose single requests lose patience within a moment."""
    with _sync(source, target, checkpoint, SyncConfig(give_up=give_up, rescan=0), clock) as syncing:
        return syncing.run()


@contextmanager
def followed(
    source: str,
    target: str,
    checkpoint: Path,
    *,
    clock: Callable[[], int] = time.time_ns,
    poll: int = SECOND // 5,
    rescan: int = SECOND,
    heartbeat: int = 0,
) -> Iterator[SyncEngine]:
    """The same, which follows at a quick pace until the block ends, and must not end before."""
    settings = SyncConfig(
        follow=True, poll=poll, rescan=rescan, rhythm=RefreshPolicy(refresh=poll, heartbeat=heartbeat)
    )
    with _sync(source, target, checkpoint, settings, clock) as syncing, ThreadPoolExecutor(1) as thread:
        ended = thread.submit(syncing.run)
        try:
            yield syncing
            assert not ended.done()
        finally:
            syncing.stop()
        ended.result(WAIT)


@contextmanager
def _sync(
    source: str, target: str, checkpoint: Path, settings: SyncConfig, clock: Callable[[], int]
) -> Iterator[SyncEngine]:
    halted = threading.Event()

    def sleep(seconds: float) -> None:
        halted.wait(seconds)

    asking = PlatformClient(
        source,
        key=lambda: None,
        rate_limiter=RateLimiter(0, sleep=sleep),
        sleep=sleep,
        halted=halted.is_set,
        retry=RetryPolicy(max_attempts=2, first_delay=0.01, max_delay=0.02),
        timeout=5.0,
    )
    delivery = ExporterConfig(f"{target}/v1/traces")
    with (
        closing(Checkpoint(checkpoint, Binding(source, delivery.display_url))) as remembered,
        DeadLetters(f"{checkpoint}.letters") as letters,
    ):
        yield SyncEngine(
            settings,
            asking,
            remembered,
            connect=lambda on_settled: connect(delivery, on_settled=on_settled),
            halt=halted.set,
            letters=letters,
            tenant="",
            resource=Resource("runspan", {}),
            clock=clock,
        )


def run_ids_of(post: Post) -> set[str]:
    """The runs of a request: what all their spans are marked with."""
    marks = [mark for span in post.spans for mark in span.attributes if mark.key == RUN_ID]
    return {mark.value.string_value for mark in marks}


def make(folder: Path) -> Path:
    """The folder, which is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def eventually(holds: Callable[[], bool], what: str = "") -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline, what or "it never held"
        time.sleep(0.02)


def run_document(run_id: str, status: str = "completed", start: int = 0, **members: Any) -> dict[str, Any]:
    """A run of two steps that began so many seconds after a certain noon; the second step goes on like the run."""
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
