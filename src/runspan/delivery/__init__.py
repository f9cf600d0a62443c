"""Delivery of OTLP trace requests over HTTP and gRPC: retries, back-pressure, and a status for every run."""

from __future__ import annotations

from runspan.delivery.config import GRPC, HTTP, ExporterConfig, exporter_config
from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.exporter import OtlpExporter
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.report import ExportReport, OnSettled, RunStatus, export_samples
from runspan.delivery.transport import Batch, RunSpans, Transport
from runspan.http.retry import RetryPolicy

__all__ = [
    "GRPC",
    "HTTP",
    "Batch",
    "DeadLetters",
    "ExportReport",
    "ExporterConfig",
    "HttpTransport",
    "OnSettled",
    "OtlpExporter",
    "RetryPolicy",
    "RunSpans",
    "RunStatus",
    "connect",
    "export_samples",
    "exporter_config",
    "transport_for",
]


def connect(
    config: ExporterConfig,
    *,
    workers: int = 4,
    retry: RetryPolicy | None = None,
    dead_letters: DeadLetters | None = None,
    on_settled: OnSettled | None = None,
) -> OtlpExporter:
    """Return an exporter to the endpoint of a config. ConfigError if a TLS file cannot be read."""
    transport = transport_for(config, connections=workers)
    return OtlpExporter(transport, workers=workers, retry=retry, dead_letters=dead_letters, on_settled=on_settled)


def transport_for(config: ExporterConfig, *, connections: int = 4) -> Transport:
    """Return the transport to the endpoint of a config. ConfigError if a TLS file cannot be read.

    connections: The most connections at once; gRPC has one.
    """
    if config.protocol != GRPC:
        return HttpTransport(config, connections=connections)
    from runspan.delivery.grpc_transport import GrpcTransport  # noqa: PLC0415  # grpc is slow to import

    return GrpcTransport(config)
