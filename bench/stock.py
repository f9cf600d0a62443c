"""The stock OpenTelemetry SDK's way to export a run document, as its documentation shows it.

The spans carry the same attributes as runspan's, but for what only runspan has (manifest, digest, revision): that
favours this side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context

from runspan.model.span import SERVER, Span

_RESULTS = {"completed": "success", "failed": "failure", "skipped": "skip"}
_RUN_RESULTS = {"completed": "success", "failed": "failure", "timed_out": "timeout", "cancelled": "cancellation"}


def provider(
    url: str, *, gzip: bool = False, queue: int | None = None, ids: IdGenerator | None = None
) -> TracerProvider:
    """Return a tracer provider with a batch processor. queue: Its size in spans; None: the default."""
    exporter = OTLPSpanExporter(endpoint=url, compression=Compression.Gzip if gzip else Compression.NoCompression)
    made = TracerProvider(resource=Resource({"service.name": "runspan"}), id_generator=ids)
    made.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=queue))
    return made


def send(lines: Iterable[bytes], tracer: Tracer) -> int:
    """Make the spans of each document, which the processor sends. Return their number."""
    spans = 0
    for line in lines:
        spans += trace_run(json.loads(line), tracer)
    return spans


def trace_run(run: Mapping[str, Any], tracer: Tracer) -> int:
    """Make the spans of one run: the root, and a child for each step."""
    status = run["status"]
    workflow = run["workflowId"]
    root = tracer.start_span(f"run {workflow}", kind=SpanKind.SERVER, start_time=_ns(run["startedAt"]))
    context = set_span_in_context(root)
    steps = run.get("steps", ())
    tokens = [_step(run, step, tracer, context) for step in steps]
    attributes: dict[str, Any] = {
        "runspan.run.id": run["id"],
        "runspan.workflow.id": workflow,
        "runspan.role": "run",
        "runspan.run.status": status,
        "runspan.run.trigger_type": run["triggerType"],
        "cicd.pipeline.name": workflow,
        "cicd.pipeline.result": _RUN_RESULTS[status],
        "runspan.run.step_count": len(steps),
        "runspan.run.duration_ms": run["durationMs"],
        "runspan.run.created_at": run["createdAt"],
        "cicd.pipeline.run.id": run["id"],
    }
    for name in ("input", "output", "error"):
        if name in run:
            attributes[f"runspan.run.{name}"] = _text(run[name])
    if any(tokens):
        attributes["runspan.run.input_tokens"] = sum(usage["promptTokens"] for usage in tokens if usage)
        attributes["runspan.run.output_tokens"] = sum(usage["completionTokens"] for usage in tokens if usage)
        attributes["runspan.run.cost_usd"] = sum(usage["estimatedCostUsd"] for usage in tokens if usage)
    end = _ns(run["completedAt"])
    if status in ("failed", "timed_out"):
        _fail(root, run.get("error"), attributes, end)
    root.set_attributes(attributes)
    root.end(end)
    return 1 + len(steps)


def _step(run: Mapping[str, Any], step: Mapping[str, Any], tracer: Tracer, context: Any) -> Mapping[str, Any] | None:
    name = step["name"]
    agent = step["type"] == "agent"
    start = _ns(step["startedAt"]) if step.get("startedAt") else _ns(run["startedAt"])
    end = _ns(step["completedAt"]) if step.get("completedAt") else start + 1
    shown = f"invoke_agent {name}" if agent else name
    span = tracer.start_span(shown, context=context, kind=SpanKind.INTERNAL, start_time=start)
    attributes: dict[str, Any] = {
        "runspan.run.id": run["id"],
        "runspan.workflow.id": run["workflowId"],
        "runspan.role": "step",
        "runspan.step.id": step["id"],
        "runspan.step.name": name,
        "runspan.step.type": step["type"],
        "runspan.step.status": step["status"],
        "cicd.pipeline.task.name": name,
        "cicd.pipeline.task.run.result": _RESULTS.get(step["status"], ""),
    }
    if "durationMs" in step:
        attributes["runspan.step.duration_ms"] = step["durationMs"]
    if "attempt" in step:
        attributes["runspan.step.attempt"] = step["attempt"]
    for member in ("input", "output", "error", "retryPolicy"):
        if member in step:
            attributes[f"runspan.step.{member}"] = _text(step[member])
    usage: Mapping[str, Any] | None = None
    if agent:
        attributes["gen_ai.operation.name"] = "invoke_agent"
        attributes["gen_ai.agent.name"] = name
        usage = (step.get("output") or {}).get("usage")
        if usage:
            attributes["gen_ai.provider.name"] = "anthropic" if usage["model"].startswith("claude") else "openai"
            attributes["gen_ai.request.model"] = usage["model"]
            attributes["gen_ai.usage.input_tokens"] = usage["promptTokens"]
            attributes["gen_ai.usage.output_tokens"] = usage["completionTokens"]
            attributes["runspan.cost.usd"] = usage["estimatedCostUsd"]
    if step["status"] == "failed":
        _fail(span, step.get("error"), attributes, end)
    span.set_attributes(attributes)
    span.end(end)
    return usage


def _fail(span: Any, error: Mapping[str, Any] | None, attributes: dict[str, Any], end: int) -> None:
    code, message = (error or {}).get("code", "_OTHER"), (error or {}).get("message", "")
    attributes["error.type"] = code
    span.set_status(Status(StatusCode.ERROR, message))
    span.add_event("exception", {"exception.type": code, "exception.message": message}, end)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000) * 1_000_000


class ReadyIds(IdGenerator):
    """Generates the ids of runspan's own spans, so that the SDK sends these."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class ReadySpan:
    """One of runspan's spans, prepared for the SDK before the measurement."""

    __slots__ = ("attributes", "end", "events", "kind", "name", "root", "span_id", "start", "status")

    def __init__(self, span: Span) -> None:
        self.name = span.name
        self.kind = SpanKind.SERVER if span.kind == SERVER else SpanKind.INTERNAL
        self.root = not span.parent_id
        self.span_id = int.from_bytes(span.span_id, "big")
        self.start, self.end = span.start, span.end
        self.attributes: dict[str, Any] = span.attributes()
        self.status = Status(StatusCode(span.status), span.message or None)
        self.events = [(event.name, dict(event.attributes), event.time) for event in span.events]


def send_ready(line: bytes, trace_id: int, spans: Sequence[ReadySpan], tracer: Tracer, ids: ReadyIds) -> None:
    """Parse a document, and start and end its prepared spans: less work than a user's code would have."""
    json.loads(line)
    ids.trace_id = trace_id
    *steps, run_span = spans
    ids.span_id = run_span.span_id
    root = tracer.start_span(run_span.name, kind=run_span.kind, start_time=run_span.start)
    context = set_span_in_context(root)
    for step in steps:
        ids.span_id = step.span_id
        _end(tracer.start_span(step.name, context=context, kind=step.kind, start_time=step.start), step)
    _end(root, run_span)


def _end(span: Any, ready: ReadySpan) -> None:
    span.set_attributes(ready.attributes)
    if ready.status.status_code is not StatusCode.UNSET:
        span.set_status(ready.status)
    for name, attributes, at in ready.events:
        span.add_event(name, attributes, at)
    span.end(ready.end)
