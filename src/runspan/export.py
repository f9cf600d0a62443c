"""The export use case: encode run documents in batches, send them, and report the result of each document."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from runspan.codec.encode import encode
from runspan.delivery import Batch, ExportReport, OtlpExporter, RunSpans
from runspan.errors import DocumentError, item_error
from runspan.model.document import Run
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_writer import Resource, scoped_bytes
from runspan.storage.span_acks import SpanAcks, digest_of

TARGET_SPANS: Final = 4096
"""Spans in a request. A request has a fixed cost, that of encoding twenty runs or more, so small ones are expensive.
Requests of large spans are limited by ``TARGET_BYTES`` instead."""

TARGET_BYTES: Final = 2_900_000
"""Bytes of the spans in a request; with resource and lengths it stays below the limit of a request."""


_log = logging.getLogger("runspan.export")


class ObservedRun(NamedTuple):
    """A run with known observation time. For the fields see ``codec.encode``."""

    run: Run
    observed_at: int
    after_root: bool = False

    def encode(self, tenant: str) -> RunSpans:
        """Return the spans, with the digests of those other than the revision span."""
        spans = encode(self.run, tenant=tenant, observed_at=self.observed_at, after_root=self.after_root)
        parts = [scoped_bytes(span) for span in spans]
        digests = tuple([digest_of(data) for _, data, _ in parts[:-1]])
        return RunSpans.of(self.run.id, parts, self.run.text, digests)

    def without_acked(self, spans: SpanAcks, key: bytes, tenant: str, now: int) -> Run | RunSpans:
        """Return what to send: the spans that the receiver does not have, with their digests, which are to be added to
        ``spans`` once they are acknowledged. The age of the others stays.

        A run span does not depend on when the run was observed, so if nothing is left out, many are written at once.

        - ``key``: the run in ``spans``, which forgets there what this revision does not contain.
        - ``now``: in nanoseconds since 1970.
        """
        acked = spans.get(key, now)
        if self.run.finished and not (acked or self.after_root):
            return self.run
        encoded = self.encode(tenant)
        if not acked:
            return encoded
        spans.retain_only(key, encoded.step_digests)
        return encoded.without(acked)


def export(
    documents: Iterable[Run | DocumentError],
    delivery: OtlpExporter,
    *,
    tenant: str = "",
    observed_at: Callable[[], int],
    resource: Resource,
    after_root: bool = False,
    target_spans: int = TARGET_SPANS,
    on_progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Send every document, wait for all responses, and return the report of the exporter, which stays open.

    If the exporter stops, reading stops too, unless it has dead letters: then the remaining documents are written
    there, because standard input can be read only once. On KeyboardInterrupt nothing more is sent or awaited, and the
    report has ``stopped="interrupted"``.

    - ``documents``: runs, or the errors of documents that could not be read. Both are counted.
    - ``observed_at``: returns the observation time of an unfinished run or a correction, in nanoseconds since 1970.
    - ``after_root``: whether the documents are corrections, which rank above the ends that were sent before.
    - ``on_progress``: called after each request that was queued.
    """

    def readable(documents: Iterable[Run | DocumentError]) -> Iterator[Run]:
        for document in documents:
            if isinstance(document, DocumentError):
                delivery.stats.refused(document)
            else:
                yield document

    def refuse(run: Run, error: Exception) -> None:
        _log.error("run %s cannot be encoded", run.id, exc_info=error)
        found = item_error(error, f"run {run.id}")
        delivery.stats.refused(DocumentError(found.message, where=found.where, hint=found.hint))

    def corrections(runs: Iterator[Run]) -> Iterator[RunSpans]:
        for run in runs:
            try:
                encoded = ObservedRun(run, observed_at(), after_root=True).encode(tenant)
            except Exception as error:
                refuse(run, error)
            else:
                yield encoded

    letters = delivery.stats.dead_letters
    runs = readable(documents if letters is None else letters.track(documents))
    try:
        for batch in batches(
            corrections(runs) if after_root else runs,
            tenant=tenant,
            observed_at=observed_at,
            resource=resource,
            target_spans=target_spans,
            keep_text=letters is not None,
            on_failed=refuse,
        ):
            if not delivery.submit(batch):
                if letters is not None:
                    for run in runs:
                        letters.write_text(run.text)
                break
            if on_progress is not None:
                on_progress(delivery.report())
        return delivery.flush()
    except KeyboardInterrupt:
        delivery.interrupt()
        return delivery.report()


def batches(
    items: Iterable[Run | RunSpans],
    *,
    tenant: str = "",
    observed_at: Callable[[], int],
    resource: Resource,
    target_spans: int = TARGET_SPANS,
    keep_text: bool = True,
    on_failed: Callable[[Run, Exception], None] | None = None,
) -> Iterable[Batch]:
    """Yield the encoded runs in batches of about ``target_spans``. A run is in one batch, a large run alone in one.

    - ``items``: runs to encode, or the encoded spans of one.
    - ``keep_text``: whether the batches contain the texts of the runs that are encoded here.
    - ``on_failed``: called with a run that cannot be encoded, for a reason that no code expected; None: raise it.
    """
    runs: list[RunSpans] = []
    spans = size = 0
    for item in items:
        if isinstance(item, Run):
            try:
                written = write_run(item, tenant=tenant, observed_at=observed_at())
            except Exception as error:
                if on_failed is None:
                    raise
                on_failed(item, error)
                continue
            run = RunSpans.of(item.id, written, item.text if keep_text else b"")
        else:
            run = item
        if runs and size + run.size > TARGET_BYTES:
            yield Batch(resource, tuple(runs))
            runs, spans, size = [], 0, 0
        runs.append(run)
        spans += run.span_count
        size += run.size
        if spans >= target_spans:
            yield Batch(resource, tuple(runs))
            runs, spans, size = [], 0, 0
    if runs:
        yield Batch(resource, tuple(runs))
