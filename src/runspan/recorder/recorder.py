"""``Recorder``: the plugin for engines written in Python, which makes live runs traces and their exact documents."""

from __future__ import annotations

import atexit
import os
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from types import TracebackType
from typing import Self

from msgspec import UNSET
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan

from runspan.delivery import HTTP, DeadLetters
from runspan.errors import DocumentError, SettingError
from runspan.model.parse import MAX_RUN_ID_BYTES
from runspan.otlp.env import validate_text
from runspan.otlp.protobuf_writer import SCOPE_NAME
from runspan.otlp.sdk_bridge import sdk_resource
from runspan.recorder.checkpoint import restored
from runspan.recorder.config import ExportConfig, exporter_config_from, resource_of
from runspan.recorder.context import active_spans, caller_of, outgoing_headers
from runspan.recorder.run import KNOWN, RunRecording
from runspan.recorder.serialize import members, payload, to_utf8_text
from runspan.recorder.sinks import OtlpSink, SdkProcessorSink, SpanSink
from runspan.recorder.state import PRECISIONS, RunRecord, RunSession, TimestampFormat, extra_members
from runspan.recorder.stats import Counters, RecorderReport, recorder_samples
from runspan.recorder.step import StepRecording
from runspan.recorder.worker import ExportWorker
from runspan.telemetry import MetricsRegistry


def new_run_id() -> str:
    """``run_`` and 128 random bits."""
    return f"run_{uuid.uuid4().hex}"


class Recorder:
    """Tells of runs as they happen: a snapshot whenever one changes, its steps once each, its root span at the end.

    endpoint: an OTLP receiver such as ``http://127.0.0.1:8321``; or environ: a mapping such as ``os.environ``, whose
    ``OTEL_`` variables are honoured (and ``RUNSPAN_API_KEY``); or both. protocol, headers, timeout: go before the
    variables'. provider: in place of these, a TracerProvider of the SDK: spans go through its processors.
    service_name, resource_attributes: who sends, unless a provider says it. tenant: whose the runs are.

    pace: when snapshots are sent, and what is held back when the receiver takes nothing. dead_letter: a file that gets
    the documents of runs that cannot be delivered, for ``runspan export``. exit_timeout: seconds that the end of the
    process waits for a delivery. precision: of times in documents, ``ms`` (the platform's form), ``us`` or ``ns``.
    exception_events: whether a failed span gets the conventions' ``exception`` event.

    health: is told how it goes, for Prometheus and as OpenTelemetry metrics; see ``runspan.health``.
    clock: nanoseconds since 1970. monotonic: seconds. new_id: ids for runs that are given none. random: the jitter.

    Where OpenTelemetry is disabled (``OTEL_SDK_DISABLED``), nothing is sent, and documents are handed out all the same.

    SettingError when a setting is wrong. Afterwards nothing about telemetry is raised or waited for: a receiver that is
    down costs memory up to ``pace.max_held_bytes``, and what is dropped then is logged and counted in ``report``.
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
        pace: ExportConfig | None = None,
        dead_letter: str | os.PathLike[str] | None = None,
        exit_timeout: float = 5.0,
        precision: str = "ms",
        exception_events: bool = True,
        health: MetricsRegistry | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = new_run_id,
        random: Random | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise SettingError(where="precision", expected=" or ".join(PRECISIONS), got=repr(precision))
        self.tenant = validate_text("tenant", tenant)
        self.counts = Counters()
        self._clock = TimestampFormat(clock, precision)
        self._new_id = new_id
        self._exit_timeout = exit_timeout
        self._own_provider: TracerProvider | None = None
        self._given_provider = provider
        requested = partial(self.counts.add, "requests")
        outlet: Callable[[], SpanSink]
        disabled = (environ or {}).get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if provider is not None:
            if endpoint is not None:
                raise SettingError(where="Recorder", expected="endpoint= or provider=", got="both")
            tracer = provider.get_tracer(SCOPE_NAME)
            disabled = disabled or not isinstance(tracer, Tracer)
            outlet = partial(SdkProcessorSink, provider, tracer, exit_timeout, requested)
            self._resource = provider.resource
        else:
            settings = exporter_config_from(environ, endpoint, protocol, headers, timeout)
            resource = resource_of(environ, service_name, resource_attributes)
            outlet = partial(OtlpSink, settings, resource, requested)
            if settings.protocol == HTTP or settings.tls.certificate or settings.tls.client_certificate:
                # Files that cannot be read are told of while there is somebody to hear it. And what the first request
                # needs is imported here: a fork while the sender's thread imports it would leave the child a lock that
                # nobody opens. A channel of gRPC must not be there before a fork.
                outlet().close()
            self._resource = sdk_resource(resource)
        self._sender = ExportWorker(
            outlet,
            self.counts,
            pace or ExportConfig(),
            clock=clock,
            monotonic=monotonic,
            random=random or Random(),  # noqa: S311  (jitter is no secret)
            letters=None if dead_letter is None or disabled else DeadLetters(os.fspath(dead_letter)),
            exception_events=exception_events,
            disabled=disabled,
        )
        if health is not None:
            health.register(lambda: recorder_samples(self.report()))
        self._at_exit = _weakly(self.shutdown)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_weakly(self._after_fork))

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
        """A run: ``with recorder.run("wf_billing") as run``, or a decorator of the function that executes it.

        trigger: webhook, api, schedule, event or manual. headers: of the request that started it; the run links to
        their ``traceparent``, and its parent is the run in their ``baggage``. Without headers, what is current counts:
        the span of a web framework, or the step of another run. extra: further members of the document.

        DocumentError when the run id has no bytes or more than 512, ValueError when extra has a member that is set
        otherwise.
        """
        if run_id is not None:
            _check_id(run_id)
        more = members(extra, KNOWN) if extra else b""
        make = partial(self._make, workflow_id, run_id, trigger, headers, parent_run_id, more)
        return RunRecording(self, make, input=input, capture_input=capture_input, capture_output=capture_output)

    def _make(
        self,
        workflow_id: str | None,
        run_id: str | None,
        trigger: str | None,
        headers: Mapping[str, str] | None,
        parent_run_id: str | None,
        extra: bytes,
    ) -> RunSession:
        found = _check_id(self._new_id() if run_id is None else run_id)
        workflow = UNSET if workflow_id is None else to_utf8_text(workflow_id)
        epoch = self._clock.now()
        record = RunRecord(found, workflow, self.tenant, self._clock.cut(epoch), epoch)
        record.trigger = UNSET if trigger is None else to_utf8_text(trigger)
        caller = caller_of(headers, record.trace_id)
        parent = parent_run_id or (caller.run_id if caller.run_id != found else "")
        told: dict[str, bytes] = {}
        if parent:
            told["parentRunId"] = payload(to_utf8_text(parent)).text
        if caller.traceparent:
            told["traceparent"] = payload(caller.traceparent).text
        record.extra = b",".join(filter(None, [extra_members(told), extra]))
        return RunSession(record, self._clock, self.counts, self._sender.mark)

    def resume(self, checkpoint: bytes | str) -> RunRecording:
        """Takes up the run of a ``RunRecording.checkpoint``, in another process, say, after an approval came in.

        Steps that had ended stay as they are. One that was under way goes on at its place when a step of its id begins.
        ValueError when it is no checkpoint, or one of a run that has ended.
        """
        live = RunSession(restored(checkpoint, self._clock), self._clock, self.counts, self._sender.mark)
        return RunRecording(self, lambda: live)

    def step(
        self,
        step_id: str,
        *,
        name: str | None = None,
        type: str | None = None,
        input: object = UNSET,
        retry: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> StepRecording:
        """A step of the run that is current: a context manager, or a decorator of the function that does the work.

        type: the platform's word for the block, such as ``action``, ``agent``, ``approval``, ``sub-workflow``. retry:
        its retry policy, ``{"maxAttempts": 3, "initialDelayMs": 1000, …}``. extra: further members of the step.
        capture_input, capture_output: whether a decorator tells arguments and result.
        """
        return StepRecording(
            None,
            step_id,
            name=name,
            type=type,
            input=input,
            retry=retry,
            extra=extra,
            capture_input=capture_input,
            capture_output=capture_output,
        )

    @property
    def current_run(self) -> RunRecording | None:
        """The run that is current in this thread or task."""
        return next((scope.recording for scope in active_spans() if isinstance(scope.recording, RunRecording)), None)

    @property
    def current_step(self) -> StepRecording:
        """The step that is current in this thread or task; outside any, one that records nothing."""
        for scope in active_spans():
            if isinstance(scope.recording, StepRecording):
                return scope.recording
            break
        return StepRecording(None, "none")

    def headers(self, headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """The headers for a call to another service, with ``traceparent`` and the run's id as ``baggage``."""
        return outgoing_headers(headers)

    # Other people's spans.

    @property
    def tracer_provider(self) -> TracerProvider:
        """The given TracerProvider, or one of its own, whose spans are delivered with the runs: for instrumentation of
        HTTP clients and LLM libraries, ``trace.set_tracer_provider(recorder.tracer_provider)``."""
        if self._given_provider is not None:
            return self._given_provider
        if self._own_provider is None:
            self._own_provider = TracerProvider(resource=SdkResource(self._resource.attributes), shutdown_on_exit=False)
            self._own_provider.add_span_processor(_ForeignSpanProcessor(self._sender))
        return self._own_provider

    # How it goes.

    def report(self) -> RecorderReport:
        """What was recorded and what became of it so far."""
        return self.counts.report(**self._sender.outbox.backlog())

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until the receiver has everything as it stands; False when it has not after ``timeout`` seconds."""
        return self._sender.outbox.flush(timeout)

    def shutdown(self, timeout: float | None = None) -> RecorderReport:
        """Flushes, for ``exit_timeout`` seconds unless told otherwise, and gives up the rest, logged and counted.

        It happens by itself at the end of the process. Runs that have not ended stay in the backend as they are.
        """
        self._sender.close(self._exit_timeout if timeout is None else timeout)
        atexit.unregister(self._at_exit)
        return self.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    # What runs ask of it.

    def begin(self, live: RunSession) -> None:
        """See ``runs.Owner``."""
        self._sender.outbox.register(live)

    def wait_for(self, live: RunSession, timeout: float) -> bool:
        """See ``runs.Owner``."""
        return self._sender.outbox.flush(timeout, live)

    def _after_fork(self) -> None:
        self.counts.after_fork()
        self._sender.after_fork()


class _ForeignSpanProcessor(SpanProcessor):
    """Puts other people's spans into the outbox."""

    def __init__(self, sender: ExportWorker) -> None:
        self._sender = sender

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Nothing yet."""

    def on_end(self, span: ReadableSpan) -> None:
        """Takes spans that were sampled."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._sender.outbox.add_foreign(span)

    def shutdown(self) -> None:
        """The recorder's own does it."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """The outbox's."""
        return self._sender.outbox.flush(timeout_millis / 1000)


def _check_id(run_id: str) -> str:
    size = len(run_id.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_RUN_ID_BYTES or to_utf8_text(run_id) != run_id:
        raise DocumentError(where="run_id", expected=f"1 to {MAX_RUN_ID_BYTES} bytes of Unicode", got=f"{size} bytes")
    return run_id


def _weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Calls a method of an object that may be gone by then."""
    found = weakref.WeakMethod(method)

    def call() -> None:
        alive = found()
        if alive is not None:
            alive()

    return call
