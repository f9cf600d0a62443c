"""A tenant that does its worst within its limits: large changed runs, spans that wait, large pages, many connections.

It is a process of its own, so that it takes no time from the one that measures, ``python -m support.heavy_tenant URL
KEY STEPS SEED``, where STEPS are the most that a run may have. It ends when its standard input is closed, and prints
how many requests had which status.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, count
from random import Random
from typing import Any

import httpx
import msgspec

from runspan import Run, encode
from runspan.codec.fields import DIGEST
from runspan.model.timestamps import canonical_text
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.testing import generate

T0 = 1_768_467_700_000_000_000
JSON = {"Content-Type": "application/json"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}
GZIP = {"Content-Encoding": "gzip"}
TENANT = "heavy"

Request = tuple[str, str, bytes, dict[str, str]]


def minimal_run(run_id: str, steps: int, version: int, status: str = "running") -> bytes:
    """A run of steps that are as small as they can be, all of which differ from version to version."""
    start = f'"startedAt":"{canonical_text(T0)}"'
    listed = ",".join([f'{{"id":"{number}","status":"completed","attempt":{version}}}' for number in range(steps)])
    return f'{{"id":"{run_id}","status":"{status}",{start},"steps":[{listed}]}}'.encode()


def spans(run: bytes, observed_at: int = T0) -> list[Any]:
    return encode(Run.from_json(run), tenant=TENANT, observed_at=observed_at)


def otlp(found: list[Any]) -> bytes:
    return gzip.compress(request_bytes(Resource(), [scoped_bytes(span) for span in found]), 1)


def post_run(body: bytes) -> Request:
    return "POST", "/api/v1/runs", body, JSON


def post_spans(body: bytes) -> Request:
    return "POST", "/v1/traces", body, PROTOBUF | GZIP


def get(path: str) -> Request:
    return "GET", path, b"", {}


# The bodies are made before anything is sent, and sent again and again.


def changed_runs(steps: int) -> Iterator[Request]:
    """The largest run, each time with all of its steps changed, and one that is too large."""
    bodies = [minimal_run("changed", steps, version) for version in range(4)]
    bodies.append(minimal_run("too large", 4 * steps, 0))
    for number in count():
        yield post_run(bodies[number % len(bodies)])


def waiting_steps(most: int) -> Iterator[Request]:
    """Steps without a revision span, then one more of the same traces in each request."""
    parts = []
    for trace in range(3):
        steps = spans(minimal_run(f"waiting {trace}", most // 2, 0))[:-1]
        parts += [otlp(steps[start : start + 8000]) for start in range(0, len(steps), 8000)]
    singles = [otlp(spans(minimal_run(f"waiting {trace}", 1, 1))[:1]) for trace in range(3)]
    for body in parts:
        yield post_spans(body)
    for number in count():
        yield post_spans(singles[number % 3])
        yield get(f"/api/v1/runs/waiting%20{number % 3}")


def forged_revisions(most: int) -> Iterator[Request]:
    """All steps of a revision span whose digest is wrong, which is sent again and again with another one."""
    *steps, root = spans(minimal_run("forged", most // 5, 0))
    for start in range(0, len(steps), 8000):
        yield post_spans(otlp(steps[start : start + 8000]))
    bodies = []
    for number in range(8):
        own = list({**root.attributes(), DIGEST: f"{number:064x}"}.items())
        bodies.append(otlp([msgspec.structs.replace(root, shared=(), own=own)]))
    for number in count():
        yield post_spans(bodies[number % len(bodies)])


def changed_spans(most: int) -> Iterator[Request]:
    """A snapshot of a large run over OTLP, each time with all of its steps changed."""
    bodies = [otlp(spans(minimal_run("snapshots", most // 5, version), T0 + version)) for version in range(8)]
    for number in count():
        yield post_spans(bodies[number % len(bodies)])


def many_runs(most: int) -> Iterator[Request]:
    """Requests of many runs."""
    bodies = []
    for seed in range(4):
        runs = [Run.from_json(text) for text in generate(most // 50, seed=seed)]
        bodies.append(otlp([span for run in runs for span in encode(run, tenant=TENANT)]))
    for number in count():
        yield post_spans(bodies[number % len(bodies)])


def large_pages(_: int) -> Iterator[Request]:
    """Runs with a large error each, and pages of them."""
    run = {"id": "page", "status": "failed", "startedAt": canonical_text(T0), "error": "x" * 160_000}
    for number in range(100):
        yield post_run(json.dumps(run | {"id": f"page {number}"}).encode())
    while True:
        yield get("/api/v1/runs?limit=200&status=failed")
        yield get("/api/v1/runs/changed")


def small_runs(_: int) -> Iterator[Request]:
    """One run after the other."""
    while True:
        for text in generate(500, seed=7):
            yield post_run(text)


WORKS: list[tuple[Callable[[int], Iterator[Request]], int]] = [
    (changed_runs, 4),
    (waiting_steps, 4),
    (forged_revisions, 3),
    (changed_spans, 3),
    (many_runs, 3),
    (large_pages, 6),
    (small_runs, 8),
]
"""What is sent, by how many connections."""


def send(url: str, key: str, work: Iterator[Request], lock: threading.Lock, seen: Counter[str]) -> None:
    with httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=120, trust_env=False) as client:
        while True:
            with lock:
                method, path, body, headers = next(work)
            try:
                response = client.request(method, path, content=body, headers=headers)
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1
                time.sleep(0.2)
                continue
            seen[str(response.status_code)] += 1
            if response.status_code in (429, 503):
                time.sleep(0.2)


def main(url: str, key: str, steps: str, seed: str) -> None:
    seen: Counter[str] = Counter()
    threads = []
    for make, connections in WORKS:
        work, lock = make(int(steps)), threading.Lock()
        work = chain([next(work)], work)  # its bodies are made now
        threads += [threading.Thread(target=send, args=(url, key, work, lock, seen)) for _ in range(connections)]
    Random(seed).shuffle(threads)
    for thread in threads:
        thread.start()
    sys.stdout.write("sending\n")
    sys.stdout.flush()
    sys.stdin.read()
    sys.stdout.write(json.dumps(seen.copy()) + "\n")
    sys.stdout.flush()
    os._exit(0)  # without the responses that are on their way


if __name__ == "__main__":
    main(*sys.argv[1:])
