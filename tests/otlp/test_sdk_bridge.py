"""The SDK bridge gives the SDK's encoder spans that it encodes as the protobuf writer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runspan import Run, decode, encode
from runspan.errors import BackendRefused
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.otlp.sdk_bridge import SdkExporterWriter, sdk_resource, to_readable_span
from support.receivers import http_receiver

SAMPLES = sorted((Path(__file__).parents[2] / "examples" / "runs").glob("*.json"))
NOW = 1_790_000_000_000_000_000
RESOURCE = Resource("flows", {"service.namespace": "billing"})


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_sdks_encoder_and_the_protobuf_writer_agree(path: Path) -> None:
    """Both write the same protobuf message for every sample, including flags, scope and resource."""
    spans = encode(Run.from_json(path.read_bytes()), tenant="acme", observed_at=NOW)
    theirs = encode_spans([to_readable_span(span, sdk_resource(RESOURCE)) for span in spans])
    ours = ExportTraceServiceRequest.FromString(request_bytes(RESOURCE, [scoped_bytes(span) for span in spans]))
    assert ours == theirs


def test_a_run_through_the_sdks_own_exporter_decodes_to_the_same_document() -> None:
    """A run sent by the SDK's OTLP exporter decodes to the same document."""
    run = Run.from_json((SAMPLES[0].parent / "agent-support-triage.json").read_bytes())
    with http_receiver() as receiver:
        writer = SdkExporterWriter(OTLPSpanExporter(receiver.url), RESOURCE)
        result = writer.put(run, observed_at=NOW)
        writer.close()
    (post,) = receiver.posts
    assert result.accepted == len(post.spans)
    assert decode(read_protobuf(post.message.SerializeToString()).spans) == run


def test_any_exporter_gets_complete_readable_spans() -> None:
    """Ids, attributes and events are passed on, even more events than the SDK's limit of 128."""
    run = Run.from_dict({"id": "r", "status": "completed", "input": ["x" * 2000] * 10_000, "steps": []})
    exporter = InMemorySpanExporter()
    SdkExporterWriter(exporter).put(run, observed_at=NOW)
    (span,) = exporter.get_finished_spans()
    (own,) = encode(run, observed_at=NOW)
    assert span.context is not None
    assert span.context.trace_id.to_bytes(16, "big") == own.trace_id
    assert dict(span.attributes or {}) == own.attributes()
    assert [(event.name, dict(event.attributes or {}), event.timestamp) for event in span.events] == [
        (event.name, dict(event.attributes), event.time) for event in own.events
    ]
    assert len(own.events) > 128
    assert (span.dropped_attributes, span.dropped_events) == (0, 0)


class Failing(SpanExporter):
    """An exporter that fails; the interface has no way to give a reason."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


def test_a_failure_of_the_exporter_is_an_error() -> None:
    """FAILURE raises BackendRefused."""
    run = Run.from_json(SAMPLES[0].read_bytes())
    with pytest.raises(BackendRefused, match="Failing: expected SUCCESS, got FAILURE"):
        SdkExporterWriter(Failing()).put(run, observed_at=NOW)
