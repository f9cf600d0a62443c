"""The export use case: run documents to spans to OTLP requests, in batches, and a report of each document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from runspan.codec.encode import encode
from runspan.delivery import Batch, ExportReport, OtlpExporter, RunSpans
from runspan.errors import DocumentError
from runspan.model.run import Run
from runspan.otlp.bulk_writer import write_runs
from runspan.otlp.protobuf_writer import Resource, request_bytes, span_bytes
from runspan.storage.span_acks import digest_of

TARGET_SPANS: Final = 4096
"""A request has a price of its own, that of encoding twenty runs or more, so small ones are dear. Where spans are not
small, ``TARGET_BYTES`` ends a request first."""

GROUP_SPANS: Final = 256
"""So many are written at once: their columns stay in the processor's cache, which is worth a fifth of the time."""

TARGET_BYTES: Final = 2_900_000
"""Of spans; the resource and lengths around them stay below the bound of a request."""


class ObservedRun(NamedTuple):
    """A run by somebody who knows when it was seen, nanoseconds since 1970, and whether its run span was written
    before: see ``encode``."""

    run: Run
    observed_at: int
    after_root: bool = False

    def written(self, tenant: str) -> RunSpans:
        """Its spans with the digests of those below the head, which follow from the document alone."""
        spans = encode(self.run, tenant=tenant, observed_at=self.observed_at, after_root=self.after_root)
        parts = [span_bytes(span) for span in spans]
        names = tuple([digest_of(part) for part in parts[:-1]])
        return RunSpans(self.run.id, parts, sum(map(len, parts)), self.run.text, names)


Sendable = Run | ObservedRun | RunSpans
"""A run, or what is left to be written or to be sent of it."""


def export(
    documents: Iterable[Run | DocumentError],
    delivery: OtlpExporter,
    *,
    tenant: str = "",
    observed_at: Callable[[], int],
    resource: Resource,
    target_spans: int = TARGET_SPANS,
    on_progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Sends every document, waits for all answers, and reports what the delivery did so far.

    documents: runs, and in their places the errors of documents that could not be read; both are counted.
    observed_at: the time for a run that has not ended, nanoseconds since 1970. on_progress: called after each request
    that was handed over. The delivery stays open; it is the caller's.

    When the delivery stops, reading stops as well, unless it has dead letters: then the rest of the documents goes
    there, because standard input can be read only once. On KeyboardInterrupt nothing more is sent or waited for, and
    the report says ``stopped="interrupted"``: the caller decides whether to go on.
    """
    letters = delivery.stats.dead_letters
    read = iter(documents) if letters is None else letters.track(documents)
    try:
        for batch in batches(
            read,
            tenant=tenant,
            observed_at=observed_at,
            resource=resource,
            target_spans=target_spans,
            on_refused=delivery.stats.refused,
            keep_texts=letters is not None,
        ):
            if not delivery.submit(batch):
                _keep_rest(read, delivery)
                break
            if on_progress is not None:
                on_progress(delivery.report())
        return delivery.flush()
    except KeyboardInterrupt:
        delivery.interrupt()
        return delivery.report()


def _keep_rest(documents: Iterable[Run | DocumentError], delivery: OtlpExporter) -> None:
    """Nothing is sent any more: what is still to be read becomes dead letters."""
    letters = delivery.stats.dead_letters
    if letters is None:
        return
    for document in documents:
        if isinstance(document, DocumentError):
            delivery.stats.refused(document)
        else:
            letters.write_text(document.text)


def batches(
    documents: Iterable[Sendable | DocumentError],
    *,
    tenant: str = "",
    observed_at: Callable[[], int],
    resource: Resource,
    target_spans: int = TARGET_SPANS,
    on_refused: Callable[[DocumentError], None],
    keep_texts: bool = False,
) -> Iterable[Batch]:
    """Encoded documents in batches of about ``target_spans``; a run is in one batch, a large one alone.

    keep_texts: whether the batches hold the documents' texts too.
    """
    frame = partial(request_bytes, resource)
    runs: list[RunSpans] = []
    spans = size = 0
    for group in _groups(documents, min(GROUP_SPANS, target_spans), on_refused):
        for run in _written(group, tenant, observed_at(), keep_texts):
            if runs and size + run.size > TARGET_BYTES:
                yield Batch(frame, tuple(runs))
                runs, spans, size = [], 0, 0
            runs.append(run)
            spans += len(run.spans)
            size += run.size
            if spans >= target_spans:
                yield Batch(frame, tuple(runs))
                runs, spans, size = [], 0, 0
    if runs:
        yield Batch(frame, tuple(runs))


def _written(group: list[Sendable], tenant: str, now: int, keep_texts: bool) -> Iterator[RunSpans]:
    """The spans of each run."""
    runs = [document for document in group if isinstance(document, Run)]
    written = iter(write_runs(runs, tenant=tenant, observed_at=now))
    for document in group:
        if isinstance(document, Run):
            parts = next(written)
            yield RunSpans(document.id, parts, sum(map(len, parts)), document.text if keep_texts else b"")
        else:
            yield document.written(tenant) if isinstance(document, ObservedRun) else document


def _groups(
    documents: Iterable[Sendable | DocumentError], group_spans: int, on_refused: Callable[[DocumentError], None]
) -> Iterator[list[Sendable]]:
    """Runs to be written at once: about so many spans of them, and not too many bytes."""
    group: list[Sendable] = []
    spans = size = 0
    for document in documents:
        if isinstance(document, DocumentError):
            on_refused(document)
            continue
        group.append(document)
        if isinstance(document, RunSpans):
            spans += len(document.spans)
            size += document.size
        else:
            run = document if isinstance(document, Run) else document.run
            spans += 1 + len(run.envelope.steps or ())
            size += len(run.text)
        if spans >= group_spans or size >= TARGET_BYTES:
            yield group
            group, spans, size = [], 0, 0
    if group:
        yield group
