"""What is sent: a run's spans as wire bytes, batches of runs, and the requests made of them; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

ScopedBytes = tuple[str, bytes]
"""The name of a span's instrumentation scope, and the span as a serialized ``ScopeSpans.spans`` field."""

Frame = Callable[[Iterable[ScopedBytes]], bytes]
"""Serializes an ExportTraceServiceRequest of spans."""


@dataclass(frozen=True, slots=True)
class Request:
    """One OTLP trace request."""

    body: bytes
    """A serialized ExportTraceServiceRequest."""

    runs: tuple[str, ...]
    """The ids of the runs in it."""

    spans: int


class RunSpans(NamedTuple):
    """The spans of one run."""

    run_id: str
    spans: Sequence[ScopedBytes]
    """The revision span last."""

    size: int
    """Bytes of all spans."""

    text: bytes = b""
    """The run document, for dead letters; else empty."""

    step_digests: Sequence[bytes] = ()
    """The digests of all spans but the revision span, for callers that record which of them were acknowledged."""

    @classmethod
    def of(
        cls, run_id: str, spans: Sequence[ScopedBytes], text: bytes = b"", step_digests: Sequence[bytes] = ()
    ) -> RunSpans:
        """Return the spans of a run with their size."""
        return cls(run_id, spans, sum([len(data) for _, data in spans]), text, step_digests)

    def without(self, acked: Container[bytes]) -> RunSpans:
        """Return the same run without the step spans whose digests are acknowledged."""
        *steps, revision = self.spans
        kept = [span for span, digest in zip(steps, self.step_digests, strict=True) if digest not in acked]
        kept.append(revision)
        return RunSpans.of(self.run_id, kept, self.text, self.step_digests)


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that share one request as long as the receiver accepts them together."""

    frame: Frame
    runs: tuple[RunSpans, ...]

    @property
    def size(self) -> int:
        """The bytes of all spans; the body is a little larger."""
        return sum(run.size for run in self.runs)

    @property
    def spans(self) -> int:
        return sum(len(run.spans) for run in self.runs)

    def request(self) -> Request:
        """Return all runs in one request."""
        body = self.frame(chain.from_iterable([run.spans for run in self.runs]))
        return Request(body, tuple([run.run_id for run in self.runs]), self.spans)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches of half the runs, or of half the spans of the only run, its revision span last."""
        if len(self.runs) > 1:
            middle = len(self.runs) // 2
            return Batch(self.frame, self.runs[:middle]), Batch(self.frame, self.runs[middle:])
        run = self.runs[0]
        middle = len(run.spans) // 2
        first, second = run.spans[:middle], run.spans[middle:]
        return (
            Batch(self.frame, (RunSpans.of(run.run_id, first),)),
            Batch(self.frame, (RunSpans.of(run.run_id, second),)),
        )
