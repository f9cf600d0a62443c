"""What a transport sends and how it ends: batches of encoded runs, requests and export results; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from typing import NamedTuple, Protocol

from runspan.http.retry import MAX_RETRY_AFTER, describe_delay
from runspan.otlp.protobuf_writer import Resource, ScopedBytes, request_bytes, single_spans


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver accepted every span."""

    message: str = ""
    """A warning of the receiver."""


@dataclass(frozen=True, slots=True)
class PartialSuccess:
    """The receiver accepted the request without some spans, and does not say which."""

    rejected_spans: int
    message: str
    unsent_spans: int = 0
    """The last spans of a divided run, which were not sent because of this."""


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
    status: int | None = None
    """The HTTP status of its response; None without one."""
    timed_out: bool = False
    """Whether no response came in time, so that the receiver may have accepted the request nevertheless."""

    def describe(self, longest: float = MAX_RETRY_AFTER) -> str:
        """Return the reason and what the receiver asks for. longest: Seconds that the sender waits at most."""
        return f"{self.reason}, {describe_delay(self.delay, longest)}" if self.delay else self.reason


ExportResult = Accepted | PartialSuccess | Rejected | Retryable


class Transport(Protocol):
    """Sends requests to one endpoint. Thread-safe; raises nothing that an endpoint can cause."""

    endpoint: str
    """The endpoint, without secrets."""

    def send(self, body: bytes) -> ExportResult:
        """Send a serialized ExportTraceServiceRequest once and read the response."""
        ...

    def close(self) -> None:
        """Release connections. Idempotent."""
        ...


def result_of(rejected_spans: int, message: str) -> ExportResult:
    """Return the result of a ``partial_success``. No rejected spans with a message is a warning, not a loss."""
    if rejected_spans < 0:
        return not_otlp(f"{rejected_spans} rejected spans")
    return PartialSuccess(rejected_spans, message or "no reason given") if rejected_spans > 0 else Accepted(message)


def not_otlp(got: str) -> Rejected:
    """Return the rejection of a success that is not from an OTLP receiver: counting it would silently lose spans."""
    return Rejected(
        f"the response is not OTLP: got {got}; is this the address of an OTLP receiver?", RejectionScope.ENDPOINT
    )


class RunSpans(NamedTuple):
    """The spans of one run."""

    run_id: str
    spans: Sequence[ScopedBytes]
    """The revision span last."""

    span_count: int
    """How many spans these are."""

    size: int
    """Bytes of all spans."""

    text: bytes = b""
    """The run document, for dead letters; else empty."""

    step_digests: Sequence[bytes] = ()
    """The digests of these single spans but the revision span, for callers that record which were acknowledged."""

    @classmethod
    def of(
        cls, run_id: str, spans: Sequence[ScopedBytes], text: bytes = b"", step_digests: Sequence[bytes] = ()
    ) -> RunSpans:
        """Return the spans of a run with their number and size."""
        count = size = 0
        for _, data, number in spans:
            count += number
            size += len(data)
        return cls(run_id, spans, count, size, text, step_digests)

    def without(self, acked: Container[bytes]) -> RunSpans:
        """Return the same run without the step spans whose digests are acknowledged."""
        *steps, revision = self.spans
        kept = [pair for pair in zip(steps, self.step_digests, strict=True) if pair[1] not in acked]
        spans = [span for span, _ in kept]
        return RunSpans.of(self.run_id, [*spans, revision], self.text, [digest for _, digest in kept])


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that share one request as long as the receiver accepts them together."""

    resource: Resource
    runs: tuple[RunSpans, ...]

    @property
    def size(self) -> int:
        """The bytes of all spans; the body is a little larger."""
        return sum(run.size for run in self.runs)

    @property
    def spans(self) -> int:
        return sum([run.span_count for run in self.runs])

    def body(self) -> bytes:
        """Return all runs in one serialized request."""
        return request_bytes(self.resource, chain.from_iterable([run.spans for run in self.runs]))

    def send(self, send: Callable[[Batch], ExportResult], max_bytes: int) -> ExportResult:
        """Pass the batch to ``send``; the spans of a single run in several batches if they are too large for one.

        The revision span is sent last, and only if all others were accepted, so that no receiver holds a finished run
        without its steps.
        """
        divisible = len(self.runs) == 1 and self.spans > 1
        if self.size <= max_bytes or not divisible:
            result = send(self)
            if not (divisible and isinstance(result, Rejected) and result.scope is RejectionScope.SIZE):
                return result
        first, second = self.halves()
        match result := first.send(send, max_bytes):
            case Accepted():
                return second.send(send, max_bytes)
            case PartialSuccess(_, _, unsent):
                return replace(result, unsent_spans=unsent + second.spans)
            case _:
                return result

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches of half the runs, or of half the spans of the only run, its revision span last."""
        if len(self.runs) > 1:
            middle = len(self.runs) // 2
            return replace(self, runs=self.runs[:middle]), replace(self, runs=self.runs[middle:])
        run = self.runs[0]
        spans = single_spans(run.spans)
        middle = len(spans) // 2
        first, second = spans[:middle], spans[middle:]
        return (
            replace(self, runs=(RunSpans.of(run.run_id, first),)),
            replace(self, runs=(RunSpans.of(run.run_id, second),)),
        )
