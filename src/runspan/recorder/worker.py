"""``ExportWorker``: the thread that sends what is due to a receiver, and handles each result.

It sends through one of two sinks: ``OtlpSink`` sends to an OTLP receiver and reads every response, ``SdkProcessorSink``
passes the spans to the processors of a TracerProvider.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (else the first look-up of a host imports it, see ``Recorder.__init__``)
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final

from opentelemetry.context import attach, set_value
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from runspan.delivery import Batch, DeadLetters, ExporterConfig, RunSpans, transport_for
from runspan.delivery.exporter import MAX_REQUEST_BYTES
from runspan.delivery.transport import (
    Accepted,
    ExportResult,
    PartialSuccess,
    Rejected,
    RejectionScope,
    Retryable,
)
from runspan.errors import ConfigError
from runspan.otlp.protobuf_writer import Resource, scoped_bytes
from runspan.otlp.sdk_bridge import to_readable_span
from runspan.recorder.config import ExportConfig
from runspan.recorder.outbox import Counters, Outbox, RunDelta, RunExportState

_log = logging.getLogger("runspan.recorder")

_SUPPRESS_INSTRUMENTATION: Final = "suppress_instrumentation"
"""The context key that ``is_instrumentation_enabled`` of opentelemetry-instrumentation reads."""
_ERROR_PAUSE: Final = 1.0
"""Seconds that the thread waits after an internal error, so that one that stays does not use up a processor."""
_RESPONSE_GRACE: Final = 1.0
"""Seconds that ``close`` waits for the response to a request in flight."""
_MAX_RETRY_AFTER: Final = 300.0
"""Seconds that a receiver may ask to wait."""
_MAX_GROUP_BYTES: Final = 2_900_000
"""Bytes of spans in a request of several runs."""
_MAX_CONSECUTIVE_REJECTIONS: Final = 3
"""After so many runs in a row that fail alone too, the cause is not the runs."""
_SPANS_PER_FLUSH: Final = 256
"""Spans that processors get between two flushes: half of what the SDK's batch processor sends at once, and an eighth of
what it holds before it drops."""


class OtlpSink:
    """Sends OTLP over HTTP or gRPC."""

    def __init__(self, config: ExporterConfig, resource: Resource, on_request: Callable[[], None]) -> None:
        """on_request: called for each request."""
        self._transport = transport_for(config)
        self.endpoint = self._transport.endpoint
        self._resource = resource
        self._on_request = on_request

    def send(self, deltas: Sequence[RunDelta]) -> list[ExportResult]:
        """Send several runs in one request if the receiver accepts that, else each alone, so that a run that is
        rejected affects no other. Return the result of each.

        After a failure that concerns the endpoint, the remaining runs are not tried.
        """
        results: list[ExportResult] = []
        failure: ExportResult | None = None
        for group in _groups(deltas):
            if failure is None:
                is_retry = any(delta.state.failures for delta, _ in group)
                results += self._send_group([spans for _, spans in group], is_retry)
                failure = results[-1] if _concerns_endpoint(results[-1]) else None
            else:
                results += [failure] * len(group)
        return results

    def _send_group(self, runs: list[RunSpans], is_retry: bool) -> list[ExportResult]:
        """Send runs together, or each alone when the request fails, or is accepted in part.

        is_retry: whether one of them failed before. Such a group is divided after a retryable failure too: some stores
        always answer "retry" to a request with one run that is too large for them.
        """
        together = self._send(runs)
        if len(runs) == 1 or isinstance(together, Accepted):
            return [together] * len(runs)
        if _concerns_endpoint(together) and not (is_retry and isinstance(together, Retryable)):
            return [together] * len(runs)
        results: list[ExportResult] = []
        failures = 0
        for run in runs:
            result = together if failures == _MAX_CONSECUTIVE_REJECTIONS else self._send([run])
            failures = min(failures + 1, _MAX_CONSECUTIVE_REJECTIONS) if _concerns_endpoint(result) else 0
            results.append(result)
        return results

    def _send(self, runs: Iterable[RunSpans]) -> ExportResult:
        return Batch(self._resource, tuple(runs)).send(lambda part: self._post(part.body()), MAX_REQUEST_BYTES)

    def _post(self, body: bytes) -> ExportResult:
        self._on_request()
        return self._transport.send(body)

    def send_foreign_spans(self, spans: Sequence[ReadableSpan]) -> ExportResult:
        """Send spans of other instrumentation, encoded by the SDK. Those that it cannot encode count as rejected."""
        try:
            return self._post(encode_spans(spans).SerializePartialToString())
        except Exception as error:
            reason = f"{type(error).__name__} in the encoder: {error}"
        encoded = [span for span in spans if _is_encodable(span)]
        rejected = len(spans) - len(encoded)
        if not rejected:
            return Retryable(reason)
        result = self._post(encode_spans(encoded).SerializePartialToString()) if encoded else Accepted()
        match result:
            case Accepted():
                return PartialSuccess(rejected, reason)
            case PartialSuccess(more, message):
                return PartialSuccess(rejected + more, message)
        return result

    def close(self) -> None:
        """Release connections. Idempotent."""
        self._transport.close()


def _is_encodable(span: ReadableSpan) -> bool:
    try:
        encode_spans([span]).SerializePartialToString()
    except Exception:
        return False
    return True


def _groups(deltas: Iterable[RunDelta]) -> Iterator[list[tuple[RunDelta, RunSpans]]]:
    """Encode runs, in groups that fit into one request each."""
    group: list[tuple[RunDelta, RunSpans]] = []
    size = 0
    for delta in deltas:
        spans = RunSpans.of(delta.run.id, [scoped_bytes(span) for span in delta.spans])
        if group and size + spans.size > _MAX_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append((delta, spans))
        size += spans.size
    if group:
        yield group


def _concerns_endpoint(result: ExportResult) -> bool:
    """Return whether a request failed for a reason that concerns every request to the endpoint: it cannot accept any
    now, or not with this configuration."""
    return isinstance(result, Retryable) or (isinstance(result, Rejected) and result.scope is RejectionScope.ENDPOINT)


class SdkProcessorSink:
    """Passes spans to the processors of a TracerProvider.

    It flushes after each small portion, so that the processors' queues do not overflow. What a processor or exporter
    loses after that is not known here.
    """

    endpoint = "the given TracerProvider"

    def __init__(
        self, provider: TracerProvider, tracer: Any, flush_seconds: float, on_request: Callable[[], None]
    ) -> None:
        """tracer: a tracer of the provider; it has the provider's processors.

        on_request: called for each portion.
        """
        self._provider = provider
        self._processor: Any = tracer.span_processor
        self._flush_millis = int(flush_seconds * 1000)
        self._on_request = on_request

    def send(self, deltas: Sequence[RunDelta]) -> list[ExportResult]:
        """Pass on each run by itself, its revision span last. After a failure the remaining runs are not tried."""
        results: list[ExportResult] = []
        failure: ExportResult | None = None
        for delta in deltas:
            result = failure or self._process(delta)
            failure = result if isinstance(result, Retryable) else None
            results.append(result)
        return results

    def _process(self, delta: RunDelta) -> ExportResult:
        for start in range(0, len(delta.spans), _SPANS_PER_FLUSH):
            self._on_request()
            try:
                for span in delta.spans[start : start + _SPANS_PER_FLUSH]:
                    self._processor.on_end(to_readable_span(span, self._provider.resource))
                if not self._provider.force_flush(self._flush_millis):
                    return Retryable("the TracerProvider did not flush: it is slow, or was shut down")
            except Exception as error:
                return Retryable(f"{type(error).__name__} in a span processor: {error}")
        return Accepted()

    def send_foreign_spans(self, spans: Sequence[ReadableSpan]) -> ExportResult:
        """Do nothing: spans of other instrumentation are in the processors already."""
        return Accepted()

    def close(self) -> None:
        """Do nothing: the provider belongs to the caller."""


SpanSink = OtlpSink | SdkProcessorSink
"""Where spans go. Called from one thread; raises nothing that a receiver can cause."""


class ExportWorker:
    """Owns an outbox, and sends what is due in it from a thread."""

    def __init__(
        self,
        make_sink: Callable[[], SpanSink],
        counters: Counters,
        config: ExportConfig,
        *,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        random: Random,
        dead_letters: DeadLetters | None,
        exception_events: bool,
        disabled: bool,
    ) -> None:
        """make_sink: called when a sink is needed first, and again in a forked child, which must not use the parent's
        connections.

        clock: returns nanoseconds since 1970. monotonic: returns seconds. random: jitters the backoff.
        disabled: record and send nothing. For the others see ``Recorder``.
        """
        self._make_sink = make_sink
        self._counters = counters
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._dead_letters = dead_letters
        self._dead_letter_path = "" if dead_letters is None else dead_letters.path
        self._reopen_path = self._dead_letter_path
        self._exception_events = exception_events
        self._disabled = disabled
        self._reset()

    def _reset(self) -> None:
        self._sink: SpanSink | None = None
        self._thread: threading.Thread | None = None
        self._start_lock = threading.RLock()
        self._unsettled: list[ReadableSpan] = []
        """The spans of other instrumentation in this round whose result is not known."""
        self._dead_letter_lock = threading.RLock()
        self._failures = 0
        self._is_shut_down = False
        self.outbox = Outbox(
            self._counters, self._config, self._monotonic, self._start, self._give_up, disabled=self._disabled
        )

    def after_fork(self) -> None:
        """Begin anew in a forked child, which sends nothing of the parent's.

        The child's dead letters go to a file of its own. It is made when the child needs it, since the parent removes
        an empty file at its end.
        """
        self._counters.after_fork()
        self.outbox.disown()
        if self._dead_letter_path:
            self._reopen_path = f"{self._dead_letter_path}.{os.getpid()}"
            self._dead_letters = None
        self._reset()

    def count_internal_error(self, what: str) -> None:
        """Count and log the error that is being handled."""
        self._counters.add("internal_errors")
        _log.exception("runspan.Recorder: internal error; %s", what)

    def close(self, timeout: float) -> None:
        """Flush, then give up and count what the receiver lacks. Idempotent."""
        if self.outbox.closed:
            return
        self.outbox.wait(timeout)
        self.outbox.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(min(timeout, _RESPONSE_GRACE))
        for state in self.outbox.drain():
            self._give_up(state, "the time to shut down was over")
        if self._sink is not None:
            try:
                self._sink.close()
            except Exception:
                self.count_internal_error("its connections are not closed")
        with self._dead_letter_lock:
            self._is_shut_down = True
            self._close_dead_letters()

    # The thread.

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        with self._start_lock:
            if self._thread is None or not self._thread.is_alive():
                # A daemon, so that the process does not wait for a receiver longer than ``close`` does.
                thread = threading.Thread(target=self._work, name="runspan-recorder", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # No thread can be started, as at the end of the interpreter: the next change tries again.
                    self._counters.last_error = str(error)
                    return
                self._thread = thread

    def _work(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION, True))  # an instrumented HTTP client would trace these requests
        outbox = self.outbox
        while not outbox.closed:
            try:
                self._round(outbox)
            except BaseException:
                # Whatever it is, also a SystemExit of a span processor: without this thread nothing is sent any more.
                self.count_internal_error(f"sending goes on in {_ERROR_PAUSE:g} s")
                time.sleep(_ERROR_PAUSE)

    def _round(self, outbox: Outbox) -> None:
        """Wait for what is due, and send it."""
        due = outbox.get_due()
        if due is None:
            return
        states, foreign = due
        self._unsettled = foreign
        try:
            self._send(states, foreign)
        except BaseException as error:
            self.count_internal_error("what was to be sent is retried")
            for state in states:
                self._retry_later(state, f"internal error: {type(error).__name__}")
            outbox.requeue_foreign_spans(self._unsettled)
            outbox.pause(_ERROR_PAUSE)
        finally:
            outbox.finish_round()

    def _send(self, states: list[RunExportState], foreign: list[ReadableSpan]) -> None:
        if self._sink is None:
            self._sink = self._make_sink()
        deltas = self._build_deltas(states)
        last: ExportResult = Accepted()
        if deltas:
            results = self._sink.send(deltas)
            for delta, result in zip(deltas, results, strict=True):
                self._handle_result(delta, result)
            last = results[-1]
        if foreign:
            if _concerns_endpoint(last):
                self._unsettled = []
                self.outbox.requeue_foreign_spans(foreign)
            else:
                last = self._sink.send_foreign_spans(foreign)
                self._unsettled = []
                self._handle_foreign_result(foreign, last)
        self._pause_after(last)

    def _build_deltas(self, states: list[RunExportState]) -> list[RunDelta]:
        now = self._clock()
        deltas = []
        for state in states:
            try:
                deltas.append(state.build_delta(now, self._exception_events))
            except Exception:
                self._counters.add("internal_errors")
                _log.exception("runspan.Recorder: run %s cannot be encoded", state.record.id)
                self.outbox.drop(state, "it cannot be encoded")
        return deltas

    # Results.

    def _handle_result(self, delta: RunDelta, result: ExportResult) -> None:
        rejected = unsent = 0
        match result:
            case PartialSuccess(rejected_spans, message, unsent):
                # The receiver does not say which spans, and OTLP forbids a retry.
                sent = len(delta.spans) - unsent
                rejected = min(rejected_spans, sent)
                delta.state.rejection = f"the receiver rejected {rejected} of its spans: {message}"
                self._counters.last_refusal = delta.state.rejection
                _log.error(
                    "runspan.Recorder: run %s: %d of %d spans rejected: %s", delta.run.id, rejected, sent, message
                )
            case Rejected(reason, scope) if scope is not RejectionScope.ENDPOINT:
                self._handle_rejection(delta, reason)
                return
            case Rejected(reason, _):
                self._retry_later(delta.state, reason)
                return
            case Retryable():
                self._retry_later(delta.state, result.describe(_MAX_RETRY_AFTER))
                return
        delta.state.ack_spans(delta.spans[: -max(unsent, 1)])
        self._counters.add("spans_rejected", rejected)
        self._counters.add("spans_sent", len(delta.spans) - unsent - rejected)
        if unsent and not delta.is_final:
            self._retry_later(delta.state, f"{rejected} spans rejected, {unsent} not sent")
            return
        self._counters.add("snapshots_sent", not delta.run.finished and not rejected)
        if delta.is_final and delta.state.rejection:
            self.outbox.drop(delta.state, delta.state.rejection)
        else:
            self.outbox.ack(delta.state, delta.is_final)

    def _handle_rejection(self, delta: RunDelta, reason: str) -> None:
        """Give up a run whose final revision is rejected. The spans of any other are sent again with the next one."""
        state = delta.state
        if delta.is_final:
            self._counters.add("spans_rejected", len(delta.spans))
            self.outbox.drop(state, f"the receiver rejected it: {reason}")
            return
        if not state.failures:
            _log.warning("runspan.Recorder: a snapshot of run %s is rejected: %s", delta.run.id, reason)
        self._counters.add("retries")
        self._retry_later(state, reason)

    def _retry_later(self, state: RunExportState, reason: str) -> None:
        state.failures += 1
        self._counters.last_error = reason
        self.outbox.retry_later(state, self._backoff(state.failures))

    def _handle_foreign_result(self, spans: list[ReadableSpan], result: ExportResult) -> None:
        match result:
            case Accepted():
                self._counters.add("foreign_spans_sent", len(spans))
            case PartialSuccess(rejected_spans, _):
                self._counters.add("foreign_spans_sent", max(0, len(spans) - rejected_spans))
                self._counters.add("foreign_spans_dropped", min(len(spans), rejected_spans))
            case Rejected(_, scope) if scope is not RejectionScope.ENDPOINT:
                self._counters.add("foreign_spans_dropped", len(spans))
            case Rejected(reason, _):
                self._counters.last_error = reason
                self.outbox.requeue_foreign_spans(spans)
            case Retryable():
                self._counters.last_error = result.describe(_MAX_RETRY_AFTER)
                self.outbox.requeue_foreign_spans(spans)

    def _pause_after(self, last: ExportResult) -> None:
        """Pause after a round whose last request failed for a reason that concerns the endpoint."""
        if not _concerns_endpoint(last):
            if self._failures and self._sink is not None:
                _log.info("runspan.Recorder: %s accepts spans again", self._sink.endpoint)
            self._failures = 0
            self._counters.last_error = last.reason if isinstance(last, Rejected) else ""
            return
        self._failures += 1
        self._counters.add("retries")
        retry_after = last.delay if isinstance(last, Retryable) and last.delay else 0.0
        self.outbox.pause(max(self._backoff(self._failures), min(retry_after, _MAX_RETRY_AFTER)))
        if self._failures == 1 and self._sink is not None:
            reason = self._counters.last_error
            _log.warning("runspan.Recorder: %s accepts no spans, retrying: %s", self._sink.endpoint, reason)

    def _backoff(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        exponential = self._config.retry_initial_delay * 2.0 ** min(failures - 1, 16)
        return min(self._config.retry_max_delay, exponential) * (0.5 + self._random.random() / 2)

    # Runs that are given up.

    def _give_up(self, state: RunExportState, reason: str) -> None:
        """Count, log and keep a run of which the receiver lacks something and will not get it from here."""
        # A run in progress at the shutdown is given up then, and once more when it has ended.
        is_first, state.record.dropped = not state.record.dropped, reason
        self._counters.last_refusal = reason
        try:
            path, error = self._keep(state.record.document().text)
        except Exception as defect:  # this may be the engine's thread
            self.count_internal_error(f"run {state.record.id} is not kept")
            path, error = self._dead_letter_path, f"internal error: {type(defect).__name__}"
        if is_first:
            self._counters.add_dropped_run(not error and bool(path))
        where = f"not kept in {path}: {error}" if error else f"kept in {path}" if path else "not kept"
        _log.error("runspan.Recorder: run %s is not delivered: %s; %s", state.record.id, reason, where)

    def _keep(self, text: bytes) -> tuple[str, str]:
        """Write a document to the dead letters. Return the file's path, "" without one, and why it was not written."""
        with self._dead_letter_lock:
            if self._dead_letters is None and self._reopen_path:
                try:
                    self._dead_letters = DeadLetters(self._reopen_path)
                except ConfigError as error:
                    return error.where, error.got
            if self._dead_letters is None:
                return "", ""
            letters, before = self._dead_letters, self._dead_letters.kept
            letters.write_text(text)
            if self._is_shut_down:
                self._close_dead_letters()
            return letters.path, "" if letters.kept > before else letters.write_error

    def _close_dead_letters(self) -> None:
        """Close the file, so that it is on disk. ``_keep`` opens it again when needed."""
        if self._dead_letters is not None:
            letters, self._dead_letters = self._dead_letters, None
            try:
                letters.close()
            except OSError as error:
                _log.error("runspan.Recorder: %s: may be incomplete: %s", letters.path, error.strerror or error)
