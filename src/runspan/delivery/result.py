"""``ExportResult`` and ``Transport``: the results of one request, the same for OTLP over HTTP and gRPC; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.delivery.batch import Request


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver accepted every span."""

    message: str = ""
    """A warning of the receiver."""


@dataclass(frozen=True, slots=True)
class PartialSuccess:
    """The receiver accepted the request without some spans, and does not say which. OTLP forbids a retry."""

    rejected_spans: int
    message: str


class RejectionScope(Enum):
    """What a rejection applies to."""

    SIZE = "the request is too large"
    RUNS = "something in the request is wrong"
    REQUEST = "this request"
    ENDPOINT = "any request to this endpoint with this config"


@dataclass(frozen=True, slots=True)
class Rejected:
    """The receiver will not accept this request; a retry will not help."""

    reason: str
    scope: RejectionScope


@dataclass(frozen=True, slots=True)
class Retryable:
    """The receiver did not accept the request now."""

    reason: str
    delay: float | None = None
    """The seconds that it asks to wait; None if it does not say."""


ExportResult = Accepted | PartialSuccess | Rejected | Retryable


class Transport(Protocol):
    """Sends requests to one endpoint. Thread-safe; raises nothing that an endpoint can cause."""

    @property
    def endpoint(self) -> str:
        """The endpoint, without secrets."""
        ...

    def send(self, request: Request) -> ExportResult:
        """Send once and read the response."""
        ...

    def close(self) -> None:
        """Release connections. Idempotent."""
        ...


def read_response(body: bytes) -> ExportResult:
    """Return the result of a serialized ExportTraceServiceResponse."""
    try:
        return result_of(ExportTraceServiceResponse.FromString(body))
    except DecodeError:
        return not_otlp("a body that is no ExportTraceServiceResponse")


def result_of(response: ExportTraceServiceResponse) -> ExportResult:
    """Return the result of the response to a successful request."""
    partial = response.partial_success
    return result_of_partial(partial.rejected_spans, partial.error_message)


def result_of_partial(rejected_spans: int, message: str) -> ExportResult:
    """Return the result of a ``partial_success``. No rejected spans with a message is a warning, not a loss."""
    return PartialSuccess(rejected_spans, message) if rejected_spans > 0 else Accepted(message)


def not_otlp(got: str) -> Rejected:
    """Return the rejection of a success that is not from an OTLP receiver: counting it would silently lose spans."""
    return Rejected(
        f"the response is not OTLP: got {got}; is this the address of an OTLP receiver?", RejectionScope.ENDPOINT
    )
