"""The SDK bridge against the SDK itself: its encoder makes of our spans what our wire writer makes."""

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
from runspan.otlp.protobuf_writer import Resource, request_bytes, span_bytes
from runspan.otlp.sdk_bridge import SdkExporterWriter, sdk_resource, to_readable_span
from support.receivers import http_receiver

SAMPLES = sorted((Path(__file__).parents[2] / "examples" / "runs").glob("*.json"))
NOW = 1_790_000_000_000_000_000
RESOURCE = Resource("flows", {"service.namespace": "billing"})


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_sdks_encoder_and_our_wire_writer_agree(path: Path) -> None:
    """Every sample's spans give the same protobuf message by both ways, flags, scope and resource included."""
    spans = encode(Run.from_json(path.read_bytes()), tenant="acme", observed_at=NOW)
    theirs = encode_spans([to_readable_span(span, sdk_resource(RESOURCE)) for span in spans])
    ours = ExportTraceServiceRequest.FromString(request_bytes(RESOURCE, [span_bytes(span) for span in spans]))
    assert ours == theirs


def test_a_run_through_the_sdks_own_exporter_decodes_to_the_same_document() -> None:
    """The SDK's OTLP exporter sends it, a receiver reads it, and the document is the same."""
    run = Run.from_json((SAMPLES[0].parent / "agent-support-triage.json").read_bytes())
    with http_receiver() as receiver:
        writer = SdkExporterWriter(OTLPSpanExporter(receiver.url), RESOURCE)
        written = writer.put(run, observed_at=NOW)
        writer.close()
    (post,) = receiver.posts
    assert written.accepted == len(post.spans)
    assert decode(read_protobuf(post.message.SerializeToString()).spans) == run


def test_any_exporter_gets_whole_readable_spans() -> None:
    """All attributes are there, more than the SDK's limit of 128 included, and ids are the run's own."""
    run = Run.from_dict({"id": "r", "status": "completed", "input": ["x" * 2000] * 200, "steps": []})
    exporter = InMemorySpanExporter()
    SdkExporterWriter(exporter).put(run, observed_at=NOW)
    (span,) = exporter.get_finished_spans()
    (own,) = encode(run, observed_at=NOW)
    assert span.context is not None
    assert span.context.trace_id.to_bytes(16, "big") == own.trace_id
    assert dict(span.attributes or {}) == own.attributes()
    assert len(own.attributes()) > 128
    assert span.dropped_attributes == 0


class Failing(SpanExporter):
    """An exporter that fails without saying why, as the interface has it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


def test_a_failure_of_the_exporter_is_an_error() -> None:
    """FAILURE is never taken for success."""
    run = Run.from_json(SAMPLES[0].read_bytes())
    with pytest.raises(BackendRefused, match="Failing: expected SUCCESS, got FAILURE"):
        SdkExporterWriter(Failing()).put(run, observed_at=NOW)
