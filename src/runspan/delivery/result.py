"""What can come of one request, the same for OTLP over HTTP and gRPC, and what a transport is; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.delivery.batch import Request


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver took every span. message: what it said nevertheless."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class PartialSuccess:
    """The receiver took the request without some spans, and does not say which. OTLP forbids to send it again."""

    rejected_spans: int
    message: str


class RejectionScope(Enum):
    """Whom a refusal concerns."""

    SIZE = "the request is too large"
    RUNS = "something in the request is wrong"
    REQUEST = "this request, as a whole"
    ENDPOINT = "any request to this endpoint with these settings"


@dataclass(frozen=True, slots=True)
class Rejected:
    """The receiver will not take this request; sending it again will not help."""

    reason: str
    scope: RejectionScope


@dataclass(frozen=True, slots=True)
class Retryable:
    """The receiver did not take the request now. delay: the seconds it asks to wait, None when it does not say."""

    reason: str
    delay: float | None = None


ExportResult = Accepted | PartialSuccess | Rejected | Retryable


class Transport(Protocol):
    """Sends requests to one endpoint. Called from several threads; raises nothing that an endpoint can cause."""

    @property
    def endpoint(self) -> str:
        """Where it sends to, without secrets."""
        ...

    def send(self, request: Request) -> ExportResult:
        """Sends once and reads the answer."""
        ...

    def close(self) -> None:
        """Releases connections. Calling it twice is allowed."""
        ...


def read_response(body: bytes) -> ExportResult:
    """The outcome that a serialized ExportTraceServiceResponse tells."""
    try:
        return result_of_status(ExportTraceServiceResponse.FromString(body))
    except DecodeError:
        return not_otlp("a body that is no ExportTraceServiceResponse")


def result_of_status(response: ExportTraceServiceResponse) -> ExportResult:
    """The outcome that the response to a successful request tells."""
    partial = response.partial_success
    return counted(partial.rejected_spans, partial.error_message)


def counted(rejected_spans: int, message: str) -> ExportResult:
    """The outcome of a ``partial_success``. Zero rejected spans with a message is a warning, not a loss."""
    return PartialSuccess(rejected_spans, message) if rejected_spans > 0 else Accepted(message)


def not_otlp(got: str) -> Rejected:
    """A success that no OTLP receiver would answer: to count it would lose the spans without a word."""
    return Rejected(
        f"the answer is not OTLP: got {got}; is this the address of an OTLP receiver?", RejectionScope.ENDPOINT
    )
