"""Where spans go: straight to an OTLP receiver, every answer read, or through the processors of a TracerProvider."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (else the first look-up of a host imports it, see ``Recorder.__init__``)
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from runspan.delivery import (
    GRPC,
    Accepted,
    Batch,
    ExporterConfig,
    ExportResult,
    GrpcTransport,
    HttpTransport,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Request,
    Retryable,
    RunSpans,
    Transport,
)
from runspan.delivery.exporter import MAX_REQUEST_BYTES
from runspan.otlp.protobuf_writer import Resource, request_bytes, span_bytes
from runspan.otlp.sdk_bridge import to_readable_span
from runspan.recorder.delta import RunDelta

_TOGETHER: Final = 2_900_000
"""Bytes of spans in a request of several runs."""
_HANDED_OVER: Final = 256
"""Spans given to a provider's processors between two flushes: half of what the SDK's batch processor sends at once, and
an eighth of what it holds before it drops."""

_MAX_CONSECUTIVE_REJECTIONS: Final = 3
"""So many runs in a row that are not taken alone either: it is not the runs."""

Outcomes = list[tuple[RunDelta, ExportResult]]


class SpanSink(Protocol):
    """Sends what a recorder has. Called from one thread; raises nothing that a receiver can cause."""

    endpoint: str

    def send(self, parcels: Sequence[RunDelta]) -> Outcomes:
        """Sends each parcel; what came of each."""
        ...

    def send_foreign(self, spans: Sequence[ReadableSpan]) -> ExportResult:
        """Sends spans of other instrumentation."""
        ...

    def close(self) -> None:
        """Releases connections."""
        ...


class OtlpSink:
    """OTLP over HTTP or gRPC. on_request: called for each request that is sent."""

    def __init__(self, settings: ExporterConfig, resource: Resource, on_request: Callable[[], None]) -> None:
        self._transport: Transport = GrpcTransport(settings) if settings.protocol == GRPC else HttpTransport(settings)
        self._frame = partial(request_bytes, resource)
        self._on_request = on_request
        self.endpoint = self._transport.endpoint

    def send(self, parcels: Sequence[RunDelta]) -> Outcomes:
        """Runs together as long as the receiver takes them together, else each alone, so that one costs only itself.

        A receiver that takes nothing now is not asked again for each run.
        """
        done: Outcomes = []
        failure: ExportResult | None = None
        for group in _groups([(parcel, self._spans(parcel)) for parcel in parcels]):
            if failure is None:
                outcomes = self._send_group([spans for _, spans in group], any(p.post.failures for p, _ in group))
                failure = outcomes[-1] if _is_of_all(outcomes[-1]) else None
            else:
                outcomes = [failure] * len(group)
            done += zip([parcel for parcel, _ in group], outcomes, strict=True)
        return done

    def _send_group(self, runs: list[RunSpans], again: bool) -> list[ExportResult]:
        """again: it was not taken before. Some stores answer "later" for ever to a request in which one run is too
        large for them."""
        together = self._send(Batch(self._frame, tuple(runs)))
        if len(runs) == 1 or isinstance(together, Accepted | PartialSuccess):
            return [together] * len(runs)
        if _is_of_all(together) and not (again and isinstance(together, Retryable)):
            return [together] * len(runs)
        outcomes: list[ExportResult] = []
        in_a_row = 0
        for run in runs:
            outcome = together if in_a_row == _MAX_CONSECUTIVE_REJECTIONS else self._send(Batch(self._frame, (run,)))
            in_a_row = min(in_a_row + 1, _MAX_CONSECUTIVE_REJECTIONS) if _is_of_all(outcome) else 0
            outcomes.append(outcome)
        return outcomes

    def send_foreign(self, spans: Sequence[ReadableSpan]) -> ExportResult:
        """As the SDK's own exporters write them."""
        body: bytes = encode_spans(spans).SerializePartialToString()
        self._on_request()
        return self._transport.send(Request(body, (), len(spans)))

    def close(self) -> None:
        """Calling it twice is allowed."""
        self._transport.close()

    def _spans(self, parcel: RunDelta) -> RunSpans:
        parts = [span_bytes(span) for span in parcel.spans]
        return RunSpans(parcel.run.id, parts, sum(map(len, parts)))

    def _send(self, batch: Batch) -> ExportResult:
        """In several requests when it is too large for one: the head last, and only if the others were taken."""
        divisible = len(batch.runs) == 1 and batch.spans > 1
        if batch.size <= MAX_REQUEST_BYTES or not divisible:
            self._on_request()
            outcome = self._transport.send(batch.request())
            if not (divisible and isinstance(outcome, Rejected) and outcome.scope is RejectionScope.SIZE):
                return outcome
        first, second = batch.halves()
        outcome = self._send(first)
        return self._send(second) if isinstance(outcome, Accepted) else outcome


def _is_of_all(outcome: ExportResult) -> bool:
    """Whether any request to the endpoint would likely fare the same now."""
    return isinstance(outcome, Retryable) or (
        isinstance(outcome, Rejected) and outcome.scope is RejectionScope.ENDPOINT
    )


def _groups(parcels: list[tuple[RunDelta, RunSpans]]) -> Iterator[list[tuple[RunDelta, RunSpans]]]:
    group: list[tuple[RunDelta, RunSpans]] = []
    size = 0
    for parcel, spans in parcels:
        if group and size + spans.size > _TOGETHER:
            yield group
            group, size = [], 0
        group.append((parcel, spans))
        size += spans.size
    if group:
        yield group


class SdkProcessorSink:
    """The span processors of a TracerProvider. Spans are handed over in small portions, each flushed before the next,
    so that they do not fill the processors' queues. What a processor or exporter then loses, it alone knows."""

    endpoint = "the given TracerProvider"

    def __init__(
        self, provider: TracerProvider, tracer: Any, flush_seconds: float, on_request: Callable[[], None]
    ) -> None:
        """tracer: one of the provider, which knows its processors."""
        self._provider = provider
        self._processor: Any = tracer.span_processor
        self._flush = int(flush_seconds * 1000)
        self._on_request = on_request

    def send(self, parcels: Sequence[RunDelta]) -> Outcomes:
        """Each run by itself, its head last. After one that is not taken, the others wait too."""
        done: Outcomes = []
        failure: ExportResult | None = None
        for parcel in parcels:
            outcome = failure or self._hand_over(parcel)
            failure = outcome if isinstance(outcome, Retryable) else None
            done.append((parcel, outcome))
        return done

    def _hand_over(self, parcel: RunDelta) -> ExportResult:
        for start in range(0, len(parcel.spans), _HANDED_OVER):
            self._on_request()
            try:
                for span in parcel.spans[start : start + _HANDED_OVER]:
                    self._processor.on_end(to_readable_span(span, self._provider.resource))
                if not self._provider.force_flush(self._flush):
                    return Retryable("the TracerProvider did not flush: it is slow, or was shut down")
            except Exception as error:
                return Retryable(f"{type(error).__name__} in a span processor: {error}")
        return Accepted()

    def send_foreign(self, spans: Sequence[ReadableSpan]) -> ExportResult:
        """Never called: the provider has its own processors."""
        return Accepted()

    def close(self) -> None:
        """The provider stays open; it is the caller's."""
