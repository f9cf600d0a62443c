"""Delivery of OTLP trace requests over HTTP and gRPC: retries, back-pressure, and a report of every run."""

from __future__ import annotations

from runspan.delivery.batch import Batch, Frame, Request, RunSpans
from runspan.delivery.config import GRPC, HTTP, ExporterConfig, exporter_config, with_api_key
from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.exporter import OtlpExporter, RetryPolicy
from runspan.delivery.grpc_transport import GrpcTransport
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.report import ExportReport, OnSettled, RunStatus
from runspan.delivery.result import (
    Accepted,
    ExportResult,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Retryable,
    Transport,
)

__all__ = [
    "GRPC",
    "HTTP",
    "Accepted",
    "Batch",
    "DeadLetters",
    "ExportReport",
    "ExportResult",
    "ExporterConfig",
    "Frame",
    "GrpcTransport",
    "HttpTransport",
    "OnSettled",
    "OtlpExporter",
    "PartialSuccess",
    "Rejected",
    "RejectionScope",
    "Request",
    "RetryPolicy",
    "Retryable",
    "RunSpans",
    "RunStatus",
    "Transport",
    "connect",
    "exporter_config",
    "with_api_key",
]


def connect(
    settings: ExporterConfig,
    *,
    workers: int = 4,
    retry: RetryPolicy | None = None,
    letters: DeadLetters | None = None,
    on_settled: OnSettled | None = None,
) -> OtlpExporter:
    """A delivery to the endpoint of the settings. SettingError when a TLS file cannot be read."""
    grpc = settings.protocol == GRPC
    transport: Transport = GrpcTransport(settings) if grpc else HttpTransport(settings, connections=workers)
    return OtlpExporter(transport, workers=workers, retry=retry, letters=letters, on_settled=on_settled)
