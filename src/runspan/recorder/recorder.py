"""``Recorder``: exports the runs of an engine written in Python while they happen, as traces and exact documents."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from typing import Any, Final, Self, Unpack

from msgspec import UNSET
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider

from runspan.delivery import HTTP, DeadLetters
from runspan.errors import ConfigError, DocumentError
from runspan.model.document import MAX_RUN_ID_BYTES
from runspan.otlp.env import validate_text
from runspan.otlp.protobuf_writer import SCOPE_NAME
from runspan.otlp.sdk_bridge import sdk_resource
from runspan.recorder.checkpoint import restore
from runspan.recorder.config import ExportConfig, exporter_config_from, resource_of
from runspan.recorder.context import active_spans, caller_of, outgoing_headers
from runspan.recorder.outbox import Counters, FlushResult
from runspan.recorder.recording import KNOWN_RUN_MEMBERS, RunRecording, StepOptions, StepRecording
from runspan.recorder.serialize import members, object_text, optional_text, payload, to_utf8_text
from runspan.recorder.state import PRECISIONS, RunRecord
from runspan.recorder.worker import ExportWorker, OtlpSink, SdkProcessorSink, SpanSink
from runspan.telemetry import MetricsRegistry, Samples
from runspan.telemetry.registry import EXPORTED, QUEUE, RECORDED, RECORDER_FAILED, REQUESTS, RETRIED, WITHOUT_RUN

_log = logging.getLogger("runspan.recorder")

LINK: Final = "link"
CHILD: Final = "child"
"""What a run is to the span of its caller."""


@dataclass(frozen=True, slots=True)
class RecorderReport:
    """Counts of what a recorder has done, and what is pending. "Delivered" and "sent" mean acknowledged by the
    receiver."""

    runs_started: int = 0
    runs_ended: int = 0
    runs_delivered: int = 0
    """Ended runs of which the receiver has everything."""
    runs_dropped: int = 0
    """Runs that were given up: too many were pending, the receiver rejected them, the time to shut down was over, or
    they ended after the shutdown."""
    runs_dead_lettered: int = 0
    """Dropped runs whose document is in the dead letter file."""
    runs_released: int = 0
    """Runs that another process continues, and of which the receiver has everything that was recorded here."""
    runs_pending: int = 0
    """Runs whose current state is not delivered yet."""
    bytes_pending: int = 0
    """Approximate memory of ended runs that are pending."""
    spans_sent: int = 0
    snapshots_sent: int = 0
    spans_rejected: int = 0
    foreign_spans_sent: int = 0
    """Spans of other instrumentation."""
    foreign_spans_dropped: int = 0
    """Those that were rejected, or for which the queue had no room."""
    foreign_spans_pending: int = 0
    requests: int = 0
    retries: int = 0
    """Requests that have to be sent again."""
    steps_without_run: int = 0
    """Steps that began where no run was current, as in a thread without context, and were not recorded."""
    late_calls: int = 0
    """Calls after the run or step had ended, which were ignored."""
    inexact_payloads: int = 0
    """Payloads with values that JSON cannot represent, written as text."""
    internal_errors: int = 0
    """Errors of the recorder itself, which were logged."""
    last_error: str = ""
    """Why the latest request failed; "" when it did not."""

    @property
    def complete(self) -> bool:
        """Whether the receiver has everything that was recorded so far."""
        lost = self.runs_dropped + self.spans_rejected + self.foreign_spans_dropped + self.internal_errors
        return not (lost or self.runs_pending or self.foreign_spans_pending)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"complete": self.complete, **asdict(self)}


def recorder_samples(report: RecorderReport) -> Samples:
    """Return the report as metrics."""
    dropped = report.runs_dropped + report.foreign_spans_dropped + report.spans_rejected
    return {
        RECORDED: report.runs_ended,
        RECORDER_FAILED: report.internal_errors + dropped,
        WITHOUT_RUN: report.steps_without_run,
        EXPORTED: report.runs_delivered,
        QUEUE: report.runs_pending,
        REQUESTS: report.requests,
        RETRIED: report.retries,
    }


def new_run_id() -> str:
    """Return ``run_`` and 128 random bits in hexadecimal."""
    return f"run_{uuid.uuid4().hex}"


class Recorder:
    """Exports runs while they happen: a snapshot when one changes, each step once, the run span at the end.

    Where to send to, as OTLP; at least one of ``endpoint``, ``environ`` and ``provider`` is required:

    - endpoint: a receiver such as ``http://127.0.0.1:8321``.
    - environ: a mapping such as ``os.environ``, whose ``OTEL_`` variables and ``RUNSPAN_API_KEY`` are honoured. With
      ``OTEL_SDK_DISABLED=true`` nothing is sent; documents are returned all the same.
    - protocol, headers, timeout (seconds): take precedence over the variables.
    - provider: a TracerProvider of the SDK whose span processors get the spans, in place of all these.

    Whose runs they are:

    - service_name, resource_attributes: the resource, unless a provider has it.
    - tenant: whose runs they are.

    What is exported when, and what happens to runs that cannot be:

    - export: when snapshots are sent, and how much is held while the receiver accepts nothing.
    - dead_letter: a file for the documents of runs that cannot be delivered, which ``runspan export`` reads.
    - exit_timeout: seconds that the end of the process waits for the delivery.
    - precision: of times in documents: ``ms`` (the platform's), ``us`` or ``ns``.
    - run_parent: ``child`` copies a run that has a caller into the trace of the caller too, as a child of its span, and
      the spans that are made inside the run are in that trace. By default, ``link``, the run only links to its caller.
    - exception_events: whether a failed span gets the semantic conventions' ``exception`` event.
    - metrics: gets the counts, for Prometheus and as OpenTelemetry metrics; see ``runspan.telemetry``.

    For tests:

    - clock: returns nanoseconds since 1970. monotonic: returns seconds.
    - new_id: makes ids for runs that are given none.
    - random: jitters the backoff.

    ConfigError when the configuration is wrong. After that no error of telemetry is raised and no call waits for the
    receiver, except ``flush`` and ``shutdown``. A receiver that is down costs memory up to
    ``export.max_pending_bytes``; what is dropped then is logged and counted in ``report``.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        environ: Mapping[str, str] | None = None,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        provider: TracerProvider | None = None,
        service_name: str | None = None,
        resource_attributes: Mapping[str, str] | None = None,
        tenant: str = "",
        export: ExportConfig | None = None,
        dead_letter: str | os.PathLike[str] | None = None,
        exit_timeout: float = 5.0,
        precision: str = "ms",
        run_parent: str = LINK,
        exception_events: bool = True,
        metrics: MetricsRegistry | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = new_run_id,
        random: Random | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(where="precision", expected=" or ".join(PRECISIONS), got=repr(precision))
        if run_parent not in (LINK, CHILD):
            raise ConfigError(where="run_parent", expected=f"{LINK} or {CHILD}", got=repr(run_parent))
        self.tenant = validate_text("tenant", tenant)
        self._joins_caller = run_parent == CHILD
        self._counters = Counters()
        self._make_record = partial(
            RunRecord,
            clock=clock,
            precision=PRECISIONS[precision],
            count=self._counters.add,
            on_change=self._mark_dirty,
        )
        self._new_id = new_id
        self._exit_timeout = exit_timeout
        self._own_provider: TracerProvider | None = None
        self._given_provider = provider
        on_request = partial(self._counters.add, "requests")
        make_sink: Callable[[], SpanSink]
        disabled = (environ or {}).get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if provider is not None:
            if endpoint is not None:
                raise ConfigError(where="Recorder", expected="endpoint= or provider=", got="both")
            tracer = provider.get_tracer(SCOPE_NAME)
            disabled = disabled or not isinstance(tracer, Tracer)
            make_sink = partial(SdkProcessorSink, provider, tracer, exit_timeout, on_request)
            self._resource = provider.resource
        else:
            config = exporter_config_from(environ, endpoint, protocol, headers, timeout)
            resource = resource_of(environ, service_name, resource_attributes)
            make_sink = partial(OtlpSink, config, resource, on_request)
            if config.protocol == HTTP or config.tls.certificate or config.tls.client_certificate:
                # Make one sink for its errors: a file that cannot be read is an error of the caller's. It also imports
                # what the first request needs: a fork while the worker's thread imports a module would leave the child
                # with a lock on that module that is never released. A gRPC channel must not exist before a fork.
                make_sink().close()
            self._resource = sdk_resource(resource)
        self._worker = ExportWorker(
            make_sink,
            self._counters,
            export or ExportConfig(),
            clock=clock,
            monotonic=monotonic,
            random=random or Random(),  # noqa: S311  (jitter is no secret)
            dead_letters=None if dead_letter is None or disabled else DeadLetters(os.fspath(dead_letter)),
            exception_events=exception_events,
            disabled=disabled,
        )
        if metrics is not None:
            metrics.register(lambda: recorder_samples(self.report()))
        self._at_exit = _weakly(self.shutdown)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_weakly(self._worker.after_fork))

    # Runs and steps.

    def run(
        self,
        workflow_id: str | None = None,
        *,
        run_id: str | None = None,
        trigger: str | None = None,
        input: object = UNSET,
        headers: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        extra: Mapping[str, object] | None = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> RunRecording:
        """Return a run: a context manager, or a decorator of the function that executes it.

        run_id: a new one when it is None.
        trigger: ``webhook``, ``api``, ``schedule``, ``event`` or ``manual``.
        headers: of the request that started the run. The run links to their ``traceparent``, and its parent is the run
        in their ``baggage``. Without headers it links to the span that is current, for example that of a web framework
        or a step of another run.
        parent_run_id: takes precedence over the headers.
        extra: further members of the document.
        capture_input, capture_output: whether a decorator records arguments and result.

        DocumentError when the run id is empty or longer than 512 bytes. ValueError when ``extra`` has a member that is
        set otherwise.
        """
        if run_id is not None:
            _check_run_id(run_id)
        extra_text = members(extra, KNOWN_RUN_MEMBERS) if extra else b""

        def make() -> RunRecord:
            own_id = _check_run_id(self._new_id()) if run_id is None else run_id
            record = self._make_record(own_id, optional_text(workflow_id), self.tenant)
            record.trigger = optional_text(trigger)
            traceparent, caller_id = caller_of(headers, record.trace_id)
            parent = parent_run_id or (caller_id if caller_id != own_id else "")
            links: dict[str, bytes] = {}
            if parent:
                links["parentRunId"] = payload(to_utf8_text(parent)).text
            if traceparent:
                links["traceparent"] = payload(traceparent).text
            record.extra = b",".join(filter(None, [object_text(links)[1:-1], extra_text]))
            if self._joins_caller:
                record.join_caller()
            return record

        return RunRecording(self._worker, make, input=input, capture_input=capture_input, capture_output=capture_output)

    def _mark_dirty(self, record: RunRecord, is_urgent: bool) -> None:
        self._worker.outbox.mark_dirty(record, is_urgent)  # a forked child has an outbox of its own

    def resume(self, checkpoint: bytes | str) -> RunRecording:
        """Continue the run of a ``RunRecording.checkpoint``, for example in another process after an approval.

        Steps that had ended stay as they are. One that was in progress continues at its place when a step of its id
        begins. ValueError when it is not a checkpoint, or when the run has ended.
        """
        record = restore(checkpoint, self._make_record)
        if self._joins_caller:
            record.join_caller()
        return RunRecording(self._worker, lambda: record)

    def step(self, step_id: str, **options: Unpack[StepOptions]) -> StepRecording:
        """Return a step of the current run: a context manager, or a decorator of the function that does the work.

        name, input: of the step.
        type: the platform's word for the block, such as ``action``, ``agent``, ``approval``, ``sub-workflow``.
        retry: the retry policy, ``{"maxAttempts": 3, "initialDelayMs": 1000, …}``.
        extra: further members of the step.
        capture_input, capture_output: whether a decorator records arguments and result.

        ValueError when ``extra`` has a member that is set otherwise.
        """
        return StepRecording(None, step_id, on_no_run=self._count_step_without_run, **options)

    def _count_step_without_run(self, step_id: str) -> None:
        if self._counters.add_step_without_run():
            _log.warning(
                "runspan.Recorder: step %r in thread %r is not recorded, because no run is current there: use "
                "run.step, or runspan.propagate for a pool of threads. Others are only counted, as steps_without_run",
                step_id,
                threading.current_thread().name,
            )

    @property
    def current_run(self) -> RunRecording | None:
        """The run that is current in this thread or task: that of the current step, if there is one."""
        return next((span.run for span in active_spans()), None)

    @property
    def current_step(self) -> StepRecording:
        """The step that is current in this thread or task; outside any step, one that records nothing."""
        innermost = next((span.recording for span in active_spans()), None)
        return innermost if isinstance(innermost, StepRecording) else StepRecording(None, "none")

    def headers(self, headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return headers for a call to another service, with ``traceparent`` and the run's id as ``baggage``."""
        return outgoing_headers(headers)

    # Spans of other instrumentation.

    @property
    def tracer_provider(self) -> TracerProvider:
        """The given TracerProvider, or one whose spans are delivered together with the runs.

        Use it for the instrumentation of HTTP clients and LLM libraries:
        ``trace.set_tracer_provider(recorder.tracer_provider)``.
        """
        if self._given_provider is not None:
            return self._given_provider
        if self._own_provider is None:
            self._own_provider = TracerProvider(resource=SdkResource(self._resource.attributes), shutdown_on_exit=False)
            self._own_provider.add_span_processor(_ForeignSpanProcessor(self._worker))
        return self._own_provider

    # Delivery.

    def report(self) -> RecorderReport:
        """Return the counts so far."""
        counts = {**self._worker.outbox.backlog(), **self._counters.collect()}
        return RecorderReport(last_error=self._counters.last_error, **counts)

    def flush(self, timeout: float = 5.0) -> FlushResult:
        """Wait until the receiver has the current state of everything, for ``timeout`` seconds at most. Return what is
        delivered and pending, and what was refused since the last flush; see ``FlushResult``."""
        return self._worker.outbox.flush(timeout)

    def shutdown(self, timeout: float | None = None) -> RecorderReport:
        """Flush, for ``timeout`` or ``exit_timeout`` seconds, then log, count and drop what was not delivered.

        Called at the end of the process. Runs that have not ended keep their status in the backend.
        """
        self._worker.close(self._exit_timeout if timeout is None else timeout)
        atexit.unregister(self._at_exit)
        return self.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _ForeignSpanProcessor(SpanProcessor):
    """Puts the spans of other instrumentation into the outbox."""

    def __init__(self, worker: ExportWorker) -> None:
        self._worker = worker

    def on_end(self, span: ReadableSpan) -> None:
        """Add the span if it was sampled."""
        if span.context is not None and span.context.trace_flags.sampled:
            try:
                self._worker.outbox.add_foreign_span(span)
            except Exception:  # the SDK would raise it where the span ends
                self._worker.count_internal_error("a span is not exported")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the outbox. Return False if it is not empty in time."""
        return self._worker.outbox.wait(timeout_millis / 1000)


def _check_run_id(run_id: str) -> str:
    size = len(run_id.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_RUN_ID_BYTES or to_utf8_text(run_id) != run_id:
        raise DocumentError(where="run_id", expected=f"1 to {MAX_RUN_ID_BYTES} bytes of Unicode", got=f"{size} bytes")
    return run_id


def _weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls the method as long as its object exists."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        target = reference()
        if target is not None:
            target()

    return call
