"""One contestant's export as a process of its own: file → encode → send → acknowledged, timed after a warm-up.

Run as ``python -m bench.senders OPTIONS``; its last line is ``{"wall": s, "cpu": s, "spans": n, "warm_spans": n}``.
Warm-up and timed pass have different documents, so whatever a contestant caches, it has not seen these.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from bench import stock
from bench.machine import pin
from runspan.codec.encode import encode
from runspan.delivery import ExporterConfig, HttpTransport, connect
from runspan.errors import DocumentError
from runspan.export import batches, export
from runspan.model.document import Envelope, Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import documents

RESOURCE: Final = Resource()
ALL: Final = 1 << 22
"""A queue that holds every span of a pass."""

Pass = Callable[[str], int]
"""Sends the documents of a file, waits for the responses, and returns the number of spans."""


class Ours:
    """``runspan.export`` as the command line configures it."""

    def __init__(self, url: str, compression: str) -> None:
        self._settings = ExporterConfig(url, compression=compression, timeout=60)

    def prepare(self, path: str) -> None:
        """Prepare nothing."""

    def run(self, path: str) -> int:
        with connect(self._settings) as delivery:
            report = export(documents(path), delivery, observed_at=time.time_ns, resource=RESOURCE)
        if not report.complete:
            raise RuntimeError("\n".join(report.summary_lines()))
        return report.spans_accepted


class Stock:
    """The SDK with its batch processor and OTLP/HTTP exporter."""

    def __init__(self, url: str, *, gzip: bool = False, queue: int | None = ALL) -> None:
        self._url, self._gzip, self._queue = url, gzip, queue

    def prepare(self, path: str) -> None:
        """Prepare nothing."""

    def run(self, path: str) -> int:
        made = stock.provider(self._url, gzip=self._gzip, queue=self._queue)
        tracer = made.get_tracer("bench")
        with open(path, "rb") as lines:
            spans = stock.send(lines, tracer)
        made.force_flush(600_000)
        made.shutdown()
        return spans


class StockReady:
    """The SDK with runspan's own spans, whose ids and attributes were computed before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready: list[tuple[int, list[stock.ReadySpan]]] = []

    def prepare(self, path: str) -> None:
        self._ready = []
        for run in documents(path):
            if isinstance(run, DocumentError):
                raise run
            spans = encode(run)
            trace_id = int.from_bytes(spans[0].trace_id, "big")
            self._ready.append((trace_id, [stock.ReadySpan(span) for span in spans]))

    def run(self, path: str) -> int:
        ids = stock.ReadyIds()
        made = stock.provider(self._url, queue=ALL, ids=ids)
        tracer = made.get_tracer("bench")
        with open(path, "rb") as lines:
            for line, (trace_id, spans) in zip(lines, self._ready, strict=True):
                stock.send_ready(line, trace_id, spans, tracer, ids)
        made.force_flush(600_000)
        made.shutdown()
        return sum(len(spans) for _, spans in self._ready)


class Floor:
    """The least that any exporter does: parse each document, and send bytes that were encoded before."""

    def __init__(self, url: str) -> None:
        self._transport = HttpTransport(ExporterConfig(url, compression="none", timeout=60))
        self._requests: list[tuple[bytes, int]] = []
        """Bodies, and how many runs each contains."""
        self._spans = 0

    def prepare(self, path: str) -> None:
        made = batches(_readable(documents(path)), observed_at=time.time_ns, resource=RESOURCE)
        self._requests, self._spans = [], 0
        for batch in made:
            self._requests.append((batch.body(), len(batch.runs)))
            self._spans += batch.spans

    def run(self, path: str) -> int:
        decode = msgspec.json.Decoder(Envelope).decode
        send = self._transport.send
        waiting, due = iter(self._requests), 0
        body: bytes | None = None
        with open(path, "rb") as lines:
            for line in lines:
                if due == 0:
                    if body is not None:
                        send(body)
                    body, due = next(waiting)
                decode(line)
                due -= 1
        if body is not None:
            send(body)
        return self._spans


def _readable(found: Iterable[Run | DocumentError]) -> Iterator[Run]:
    for document in found:
        if isinstance(document, DocumentError):
            raise document
        yield document


CONTESTANTS: Final[dict[str, Callable[[str], Any]]] = {
    "stock": Stock,
    "stock gzip": lambda url: Stock(url, gzip=True),
    "stock default queue": lambda url: Stock(url, queue=None),
    "stock ready": StockReady,
    "ours": lambda url: Ours(url, "none"),
    "ours gzip": lambda url: Ours(url, "gzip"),
    "floor": Floor,
}


def main() -> None:
    options = json.loads(sys.argv[1])
    pin(options.get("cpu"))
    logging.disable(logging.CRITICAL)  # the processor writes a line for each span that it drops
    gc.set_threshold(50_000, 20, 20)  # as the command line does, and the same for every contestant
    contestant = CONTESTANTS[options["contestant"]](options["url"])
    warm_spans = 0
    if options.get("warm"):
        contestant.prepare(options["warm"])
        warm_spans = contestant.run(options["warm"])
    contestant.prepare(options["file"])
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    spans = contestant.run(options["file"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "spans": spans, "warm_spans": warm_spans}))


if __name__ == "__main__":
    main()
