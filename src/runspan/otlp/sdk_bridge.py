"""Conversion of spans to the OpenTelemetry SDK's ReadableSpan, so that any SpanExporter can send them.

This is for interoperability, not for speed: the SDK's encoder is many times slower than ``otlp.protobuf_writer``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from runspan._version import __version__
from runspan.codec.encode import encode
from runspan.contracts import WriteResult
from runspan.errors import BackendRefused
from runspan.model.document import Run
from runspan.model.span import Span, Value, to_plain
from runspan.otlp.protobuf_writer import Resource

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


def sdk_resource(resource: Resource) -> SdkResource:
    """Return the SDK's resource, without the attributes that the SDK adds by default."""
    return SdkResource(resource.pairs())


def to_readable_span(span: Span, resource: SdkResource) -> ReadableSpan:
    """Return the span for the SDK's exporters, with all attributes regardless of the SDK's limits."""
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace_id, span.span_id),
        parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
        resource=resource,
        attributes=_attributes(span.pairs()),
        events=[Event(event.name, _attributes(event.attributes), event.time) for event in span.events],
        links=[Link(_context(link.trace_id, link.span_id), _attributes(link.attributes)) for link in span.links],
        kind=SpanKind(max(span.kind - 1, 0)),  # the SDK counts as OTLP does, but without OTLP's 0, unspecified
        status=Status(StatusCode(span.status), span.message or None),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=InstrumentationScope(span.scope, __version__),
    )


class SdkExporterWriter:
    """A ``TraceWriter`` that uses an SDK SpanExporter.

    The SDK's OTLP exporters return SUCCESS even if the receiver rejected some of the spans, so ``put`` cannot report
    rejections.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource | None = None) -> None:
        """exporter: any ``opentelemetry.sdk.trace.export.SpanExporter``, such as the SDK's ``OTLPSpanExporter``.

        resource: a ``runspan.otlp.protobuf_writer.Resource``, not one of the SDK; the default has the service name
        ``runspan``.
        """
        self._exporter = exporter
        self._resource = sdk_resource(resource or Resource())

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> WriteResult:
        """Send the spans of a run. See ``TraceWriter``.

        run: a ``runspan.Run``, as ``Run.from_json(text)`` returns it.
        tenant: whose run it is, "" for none.
        observed_at: when the document was read, in nanoseconds since 1970 as ``time.time_ns()`` returns it: the
        revision of a run that has not ended.

        Return how many spans were sent. Raises BackendRefused if the exporter fails.
        """
        spans = encode(run, tenant=tenant, observed_at=observed_at)
        result = self._exporter.export([to_readable_span(span, self._resource) for span in spans])
        if result is not SpanExportResult.SUCCESS:
            raise BackendRefused(
                where=type(self._exporter).__name__,
                expected="SUCCESS",
                got=getattr(result, "name", repr(result)),
                hint="the SDK's exporter logs the reason",
            )
        return WriteResult(accepted=len(spans))

    def close(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()


def _context(trace_id: bytes, span_id: bytes) -> SpanContext:
    return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), False, _SAMPLED)


def _attributes(pairs: Iterable[tuple[str, Value]]) -> dict[str, Any]:
    return {key: to_plain(value) for key, value in pairs}
