"""Section ``encode``: a document's text to OTLP bytes, by stages, against orjson with upb, and the SDK's encoder.

Measured in processor time of the one thread that does it, a batch of runs by one contestant and then the same runs by
the next: no contestant's data stays in the cache for longer than a batch of the exporter would.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from bench.data import seed
from bench.figures import Figure, at_most, ratio
from bench.plan import Plan
from runspan.codec.encode import encode
from runspan.model.document import Run
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_writer import Resource, request_bytes
from runspan.otlp.sdk_bridge import sdk_resource, to_readable_span
from runspan.testing import generate

_SECTION = 2
_BATCH = 320
"""Runs, about as many as in a request of the exporter."""

_RESOURCE = Resource()


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    runs = plan.runs or (1600 if plan.quick else 8000)
    rounds = plan.rounds or (3 if plan.quick else 7)
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)  # as the command line does
    try:
        _round(min(runs, 400), seed(_SECTION, 999))
        samples: dict[str, list[float]] = defaultdict(list)
        for turn in range(rounds):
            for name, seconds in _round(runs, seed(_SECTION, turn)).items():
                samples[name].append(seconds)
            stages = ", ".join(f"{name} {times[-1] / runs * 1e6:.1f}" for name, times in samples.items())
            plan.say(f"encode round {turn + 1}, µs a run: {stages}")
    finally:
        gc.set_threshold(*before)
    ours = _sum(samples, "parse", "write", "frame")
    bare = _sum(samples, "orjson", "upb")
    return [
        _figure("ours / (orjson + upb of ready messages)", ours, bare, at_most(2)),
        _figure("stage parse / the same", samples["parse"], bare),
        _figure("stage write / the same", samples["write"], bare),
        _figure("stage request body / the same", samples["frame"], bare),
        _figure("SDK encoder of ready spans / ours with parse", samples["sdk"], ours),
        _figure("SDK encoder of ready spans / our write stage", samples["sdk"], samples["write"]),
    ]


def _figure(name: str, over: list[float], under: list[float], goal: Any = None) -> Figure:
    return Figure("encode", name, *ratio(over, under), goal=goal)


def _sum(samples: dict[str, list[float]], *names: str) -> list[float]:
    return [sum(each) for each in zip(*[samples[name] for name in names], strict=True)]


def _round(runs: int, number: int) -> dict[str, float]:
    """Return the seconds of each contestant, for new runs."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.thread_time()
        result = work()
        seconds[name] += time.thread_time() - begun
        return result

    resource = sdk_resource(_RESOURCE)
    texts = list(generate(runs, seed=number))
    for position in range(0, runs, _BATCH):
        batch = texts[position : position + _BATCH]
        body = _ours(batch, timed)
        # Last, because the input of the others is made by runspan's code, which would have cached these runs.
        ready = ExportTraceServiceRequest.FromString(body)
        readable = [to_readable_span(span, resource) for text in batch for span in encode(Run.from_json(text))]
        timed("orjson", partial(_each, orjson.loads, batch))
        timed("upb", ready.SerializeToString)
        timed("sdk", partial(_sdk, readable))
    return dict(seconds)


def _each(work: Callable[[bytes], object], texts: list[bytes]) -> list[object]:
    return [work(text) for text in texts]


def _sdk(spans: list[ReadableSpan]) -> bytes:
    body: bytes = encode_spans(spans).SerializeToString()
    return body


def _ours(batch: list[bytes], timed: Callable[[str, Callable[[], Any]], Any]) -> bytes:
    found = timed("parse", lambda: [Run.from_json(text) for text in batch])
    parts = timed("write", lambda: [write_run(run, observed_at=1) for run in found])
    body: bytes = timed("frame", lambda: request_bytes(_RESOURCE, [span for spans in parts for span in spans]))
    return body
