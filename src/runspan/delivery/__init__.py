"""Delivery of OTLP trace requests over HTTP and gRPC: retries, back-pressure, and a report of every run."""

from __future__ import annotations

from runspan.delivery.batch import Batch, Frame, Request, RunSpans
from runspan.delivery.config import GRPC, HTTP, DeliverySettings, settings_from, with_api_key
from runspan.delivery.dead_letters import DeadLetters
from runspan.delivery.exporter import Delivery, RetryPolicy
from runspan.delivery.grpc_transport import GrpcTransport
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.report import OnSettled, Report, Verdict
from runspan.delivery.result import Accepted, Later, Outcome, Partial, Refused, Scope, Transport

__all__ = [
    "GRPC",
    "HTTP",
    "Accepted",
    "Batch",
    "DeadLetters",
    "Delivery",
    "DeliverySettings",
    "Frame",
    "GrpcTransport",
    "HttpTransport",
    "Later",
    "OnSettled",
    "Outcome",
    "Partial",
    "Refused",
    "Report",
    "Request",
    "RetryPolicy",
    "RunSpans",
    "Scope",
    "Transport",
    "Verdict",
    "connect",
    "settings_from",
    "with_api_key",
]


def connect(
    settings: DeliverySettings,
    *,
    workers: int = 4,
    retry: RetryPolicy | None = None,
    letters: DeadLetters | None = None,
    on_settled: OnSettled | None = None,
) -> Delivery:
    """A delivery to the endpoint of the settings. SettingError when a TLS file cannot be read."""
    grpc = settings.protocol == GRPC
    transport: Transport = GrpcTransport(settings) if grpc else HttpTransport(settings, connections=workers)
    return Delivery(transport, workers=workers, retry=retry, letters=letters, on_settled=on_settled)
