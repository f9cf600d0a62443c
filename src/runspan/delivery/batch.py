"""What is sent: a run's spans as wire bytes, batches of runs, and the requests made of them; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

Frame = Callable[[Iterable[bytes]], bytes]
"""Makes a serialized ExportTraceServiceRequest of serialized spans, each a ``ScopeSpans.spans`` field with its tag."""


@dataclass(frozen=True, slots=True)
class Request:
    """One OTLP trace request. body: a serialized ExportTraceServiceRequest. runs: the ids of the runs in it."""

    body: bytes
    runs: tuple[str, ...]
    spans: int


class RunSpans(NamedTuple):
    """The spans of one run, each a serialized ``ScopeSpans.spans`` field, the head span last. size: their bytes.

    text: the document, for whoever keeps what was not taken; else empty. names: the digests of all spans below the
    head, those that were left out too, for whoever remembers what was taken; else none.
    """

    run_id: str
    spans: Sequence[bytes]
    size: int
    text: bytes = b""
    names: Sequence[bytes] = ()

    def without(self, there: Container[bytes]) -> RunSpans:
        """The same, but for the spans below the head that the receiver has. there: their digests."""
        *below, head = self.spans
        kept = [span for span, name in zip(below, self.names, strict=True) if name not in there]
        kept.append(head)
        return self._replace(spans=kept, size=sum(map(len, kept)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that go in one request as long as the receiver takes them together."""

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
        """All runs in one body."""
        body = self.frame(chain.from_iterable([run.spans for run in self.runs]))
        return Request(body, tuple([run.run_id for run in self.runs]), self.spans)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches of half the runs, or of half the spans of the only run; the head span stays last."""
        if len(self.runs) > 1:
            middle = len(self.runs) // 2
            return Batch(self.frame, self.runs[:middle]), Batch(self.frame, self.runs[middle:])
        run = self.runs[0]
        middle = len(run.spans) // 2
        first, second = run.spans[:middle], run.spans[middle:]
        return (
            Batch(self.frame, (RunSpans(run.run_id, first, sum(map(len, first))),)),
            Batch(self.frame, (RunSpans(run.run_id, second, sum(map(len, second))),)),
        )
