"""The encoder, which converts a run document to spans and is the inverse of ``decode``; no I/O, no clock.

Every finished step is a span with an id derived from its content, written once. A *revision span* carries one version
of the run: its members, the manifest of step span ids and the digest of the document. For a finished run it is the root
span of the trace. An unfinished run has a *live span*, and its revision spans and the points of its open steps are
children of the live span, without length: a bar in a trace view is always a real duration.

``otlp.bulk_writer`` writes the same spans of most finished runs directly to bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from runspan.codec import fields, semconv
from runspan.codec.attributes import (
    SpanContent,
    SpanTemplate,
    encode_extra,
    encode_run_times,
    encode_text,
    encode_times,
    encode_value,
    run_template,
    step_template,
    text_events,
)
from runspan.codec.facts import encode_label_set, model_names, step_types
from runspan.codec.fields import ROOT_REVISION
from runspan.codec.placement import LOOP, Interval, enclosing_loops, parents_first, positions
from runspan.model.document import (
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Run,
    Step,
    by_content,
    latest_time,
    sort_time,
    step_text,
    summary_text,
    time_ns,
)
from runspan.model.span import (
    ERROR,
    INTERNAL,
    Attributes,
    Event,
    Link,
    Pairs,
    Span,
    child_span_id,
    live_span_id,
    revision_span_id,
    run_ids,
    step_span_id,
    summary_digest,
)
from runspan.model.span import UNSET as STATUS_UNSET
from runspan.model.timestamps import MAX_NS, MICROSECOND, SECOND, rfc3339

OPEN_STEP_AFTER: Final = 5 * SECOND
"""How long a step is open before it is shown as a point: most steps end sooner and need none."""
_OPEN: Final = b""
"""In a list of span ids: an open step, which has no span."""
_POINT_LABELS: Final = [field for field in fields.STEP_TABLE.labels if field.member != "status"]


def encode(
    run: Run,
    *,
    tenant: str = "",
    observed_at: int | None = None,
    after_root: bool = False,
    step_ids: Sequence[bytes] | None = None,
    exception_events: bool = True,
) -> list[Span]:
    """Return the spans of a run: its finished steps in order, the revision span last.

    The same arguments always return the same spans.

    - ``tenant``: the tenant of the run, part of every id.
    - ``observed_at``: when the document was read, in nanoseconds since 1970: the revision of an unfinished run, and
      the position of a run without any time. The default is the latest time in the document.
    - ``after_root``: whether the run's root span was written already with another document. The change is written as
      a revision span with a higher revision than the root.
    - ``step_ids``: the span ids of the finished steps, in order, if a live recorder assigned them before the content.
    - ``exception_events``: whether a failed span has an ``exception`` event.
    """
    encoder = RunEncoder(run, tenant, observed_at=observed_at, exception_events=exception_events, after_root=after_root)
    return encoder.spans(step_ids)


def content_step_ids(run: Run, tenant: str = "", observed_at: int | None = None) -> list[bytes]:
    """Return the ids that ``encode`` assigns to the spans of the finished steps, without encoding the run."""
    layout = StepLayout(RunEncoder(run, tenant, observed_at=observed_at), run.steps)
    return [span_id for span_id in layout.span_ids(None) if span_id]


class SpanStatus(NamedTuple):
    """The status code, status description and events of a span."""

    code: int = STATUS_UNSET
    message: str = ""
    events: tuple[Event, ...] = ()


NO_ERROR: Final = SpanStatus()


def set_run_status(own: Pairs, error: object, template: SpanTemplate, end: int, exception_events: bool) -> SpanStatus:
    """Return the status of a run or revision span, and append ``error.type`` if the run failed or its error has a code.

    A cancelled run may have an error too, and backends find the runs of an error code by this attribute alone.
    """
    if template.error_type is not None:
        return set_error_status(own, error, template, end, exception_events)
    code = semconv.error_code(error)
    if code is not None:
        own.append((semconv.ERROR_TYPE, code))
    return NO_ERROR


def set_error_status(own: Pairs, error: object, template: SpanTemplate, end: int, exception_events: bool) -> SpanStatus:
    """Return the status of a span, and append ``error.type`` if the template is that of a failed span."""
    if template.error_type is None:
        return NO_ERROR
    info = semconv.read_error(error, template.error_type)
    own.append((semconv.ERROR_TYPE, info.type))
    return SpanStatus(ERROR, info.message, (info.event(end),) if exception_events else ())


class StepSpanParts(NamedTuple):
    """The parts of a step span that are neither in its template nor canonical attributes of its members."""

    content: SpanContent
    start: int
    end: int
    status: SpanStatus
    links: tuple[Link, ...]


class StepPartsBuilder:
    """Builds the ``StepSpanParts`` of the steps of one run.

    ``usages`` is the list to which the token usage of each agent step is appended.
    """

    def __init__(self, tenant: str, exception_events: bool = True, usages: list[semconv.Usage] | None = None) -> None:
        self.tenant = tenant
        self.exception_events = exception_events
        self.usages = [] if usages is None else usages

    def build(self, step: Step, template: SpanTemplate, position: int) -> StepSpanParts:
        """Return the parts of a step. ``position`` is the start of a step without times."""
        content = SpanContent()
        encode_extra(content, fields.STEP_EXTRA, step.extra)
        start, end = encode_times(content, fields.STEP_TABLE, step.started_at, step.completed_at, position)
        links: tuple[Link, ...] = ()
        if template.is_agent:
            usage = semconv.read_usage(step.output)
            if usage is not None:
                self.usages.append(usage)
                semconv.add_model(content.pairs, usage.model)
                semconv.add_counts(content.pairs, usage)
        elif template.is_sub_workflow:
            child = semconv.read_child_run_id(step.output)
            if child:
                content.pairs.append((semconv.CHILD_RUN_ID, child[:500]))
                links = (semconv.child_link(child, self.tenant),)
        status = set_error_status(content.pairs, step.error, template, end, self.exception_events)
        return StepSpanParts(content, start, end, status, links)


class RunEncoder:
    """Encodes one run."""

    def __init__(
        self,
        run: Run,
        tenant: str,
        *,
        observed_at: int | None = None,
        exception_events: bool = True,
        after_root: bool = False,
        is_root: bool | None = None,
    ) -> None:
        """``is_root``: whether the revision span is the run span; None derives it from the status."""
        envelope = run.envelope
        self.envelope = envelope
        self.steps = run.steps
        self.run_text = run.text
        self.tenant = tenant
        self.exception_events = exception_events
        self.after_root = after_root
        has_ended = envelope.status in TERMINAL_RUN_STATUSES
        self.is_root = (not after_root and has_ended) if is_root is None else is_root
        self.is_live = not self.is_root and not has_ended
        self.trace_id, root_id, seed = run_ids(envelope.id, tenant)
        self.template = run_template(self.is_root, fields.RUN_TABLE.get_labels(envelope))
        position = sort_time(envelope)
        self.position = position or (1 if observed_at is None else min(max(observed_at, 1), MAX_NS))
        """Where the run lies in time, in nanoseconds since 1970."""
        self.observed_at = max(latest_time(envelope), self.position) if observed_at is None else observed_at
        # Two exports of a run without any time are two roots of one document, since a span id is written once.
        self.root_id = root_id if position or self.position == 1 else child_span_id(root_id, "at", self.position)
        self.step_seed = seed ^ self.template.salt ^ self.position ^ (not exception_events)
        self.seed = self.step_seed.to_bytes(8, "big")
        self.identity = Attributes(
            [(fields.RUN_ID, envelope.id), (semconv.PIPELINE_RUN_ID, envelope.id), *self.template.identity.pairs]
        )
        self.step_parts = StepPartsBuilder(tenant, exception_events)
        self.has_started = time_ns(envelope.started_at) == self.position
        self.live_id = live_span_id(self.trace_id, fields.ROLE_LIVE, self.seed, b"started" if self.has_started else b"")

    def spans(self, step_ids: Sequence[bytes] | None = None, ended: Sequence[bool] | None = None) -> list[Span]:
        """See ``encode``. ``ended``: for each step whether it has a span; None derives it from the status."""
        return list(self.iter_spans(step_ids, ended))

    def iter_spans(
        self, step_ids: Sequence[bytes] | None = None, ended: Sequence[bool] | None = None
    ) -> Iterator[Span]:
        """Yield the spans of ``spans`` one by one: those of a long run take many times the memory of its document."""
        layout = StepLayout(self, self.steps, ended)
        span_ids = layout.span_ids(step_ids)
        below: list[Span] = []
        open_steps: list[bytes] = []
        for index, (step, span_id) in enumerate(zip(layout.steps, span_ids, strict=True)):
            template = layout.template(index)
            if not layout.ended[index]:
                below += self._open_attempts(step, template, index)
                open_steps.append(step_text(step))
                continue
            parent_id = layout.parent_id(index, span_ids)
            yield self.step_span(step, span_id, template, parent_id, layout.position(index))
            if step.extra:
                below += self.attempt_spans(step, span_id, template)
        manifest = "".join([span_id.hex() or fields.OPEN_STEP_MARK for span_id in span_ids])
        if self.is_live:
            below += [self.live_span(), *layout.points()]
        yield from below
        yield self.revision_span(manifest, open_steps)

    def step_span(
        self,
        step: Step,
        span_id: bytes,
        template: SpanTemplate,
        parent_id: bytes | None = None,
        position: int | None = None,
    ) -> Span:
        """Return the span of a finished step.

        ``parent_id`` is that of its loop, by default the root; ``position`` the start of a step without times, by
        default that of the run.
        """
        parts = self.step_parts.build(step, template, self.position if position is None else position)
        content = SpanContent()
        for field, value in zip(fields.STEP_TABLE.values, fields.STEP_TABLE.get_values(step), strict=True):
            encode_value(content, field, value)
        texts = [*template.texts, *content.texts, *parts.content.texts]
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=self.root_id if parent_id is None else parent_id,
            name=template.name,
            kind=template.kind,
            start=parts.start,
            end=parts.end,
            status=parts.status.code,
            message=parts.status.message,
            shared=(template.shared, self.identity),
            own=[(semconv.TASK_RUN_ID, span_id.hex()), *content.pairs, *parts.content.pairs],
            events=(*text_events(texts, parts.end), *parts.status.events) if texts else parts.status.events,
            links=parts.links,
            scope=fields.SCOPE_STEP,
        )

    def attempt_spans(self, step: Step, step_id: bytes, template: SpanTemplate) -> Iterator[Span]:
        """Yield the spans of a finished step's ended attempts, children of the step's span."""
        for attempt in semconv.read_attempts(step.extra):
            yield self._attempt(attempt, child_span_id(step_id, "attempt", attempt.position), step_id, step, template)

    def _open_attempts(self, step: Step, template: SpanTemplate, position: int) -> Iterator[Span]:
        """Yield the attempts of an open step, children of the live span.

        Every revision repeats them, so their ids are derived from everything that the span carries: repetitions are
        the same span. ``position`` is that of the step in the document.
        """
        attempts = semconv.read_attempts(step.extra)
        if not attempts and step.status == "retrying":
            current = semconv.current_attempt(
                step.attempt, "retrying", step.error, time_ns(step.started_at) or self.position
            )
            attempts = [] if current is None else [current]
        for attempt in attempts:
            content = _label_text(step, *attempt.values())
            key = sha256(self.live_id + position.to_bytes(8, "big") + content).digest()
            span_id = child_span_id(key, "open attempt", attempt.position)
            yield self._attempt(attempt, span_id, self.live_id, step, template)

    def _attempt(
        self, attempt: semconv.Attempt, span_id: bytes, parent_id: bytes, step: Step, template: SpanTemplate
    ) -> Span:
        own: Pairs = [(fields.ROLE, fields.ROLE_ATTEMPT), (semconv.ATTEMPT_NUMBER, attempt.number)]
        if attempt.status:
            own.append(("runspan.attempt.status", attempt.status[:500]))
        own += _labels(step)
        status = NO_ERROR
        if attempt.error is not None:
            own.append((semconv.ERROR_TYPE, attempt.error.type))
            events = (attempt.error.event(attempt.end),) if self.exception_events else ()
            status = SpanStatus(ERROR, attempt.error.message, events)
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=f"attempt of {template.name}",
            kind=INTERNAL,
            start=attempt.start,
            end=attempt.end,
            status=status.code,
            message=status.message,
            shared=(self.identity,),
            own=own,
            events=status.events,
            scope=fields.SCOPE_STEP,
        )

    def live_span(self) -> Span:
        """Return the span that represents the run while it is unfinished.

        It is written once, so it carries nothing that changes. Search lists name a trace after its first span without
        a parent: after this one while the run goes on. It starts just after the run, so that the root is the first.
        Before the run has started, the root's start is unknown, and the live span is a child of the root.
        """
        pipeline = self.template.pipeline
        own: Pairs = [(fields.ROLE, fields.ROLE_LIVE), (semconv.PIPELINE_NAME, pipeline)]
        parent_id = b"" if self.has_started else self.root_id
        start = min(self.position + MICROSECOND, MAX_NS)
        return self._point(self.live_id, parent_id, f"run {pipeline} (live)", start, own)

    def open_step_span(self, step: Step, start: int, span_id: bytes) -> Span:
        """Return the point of an open step, at its start."""
        name = next((value for value in (step.name, step.id) if type(value) is str and value), "step")[:500]
        own: Pairs = [(fields.ROLE, fields.ROLE_OPEN_STEP), *_labels(step)]
        return self._point(span_id, self.live_id, f"{name} (started)", start, own)

    def open_step_id(self, step: Step, start: int, number: int) -> bytes:
        """Return the id of ``open_step_span``. ``number`` counts the open steps with the same labels and start."""
        content = _label_text(step, start, number)
        return live_span_id(self.trace_id, fields.ROLE_OPEN_STEP, self.live_id, content)

    def _point(self, span_id: bytes, parent_id: bytes, name: str, start: int, own: Pairs) -> Span:
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=name,
            kind=INTERNAL,
            start=start,
            end=start + 1,
            status=STATUS_UNSET,
            message="",
            shared=(self.identity,),
            own=own,
            scope=fields.SCOPE_LIVE,
        )

    def revision_span(self, manifest: str, open_steps: list[bytes]) -> Span:
        """Return the root span or a revision span. For ``manifest`` and ``open_steps`` see ``fields.MANIFEST``."""
        envelope = self.envelope
        revision = ROOT_REVISION
        content = SpanContent()
        own = content.pairs
        own.append((fields.DIGEST, sha256(self.run_text).hexdigest()))
        if not self.is_root:
            # A time after 2116 would rank an unfinished run above its end.
            revision = min(self.observed_at, ROOT_REVISION - 1) + (ROOT_REVISION if self.after_root else 0)
            own += [(fields.REVISION, revision), (fields.OBSERVED_AT, rfc3339(self.observed_at))]
        sets = [encode_label_set(labels) for labels in (model_names(self.steps), step_types(self.steps))]
        digest = summary_digest(summary_text(envelope), sets, self.tenant, revision, self.position)
        own.append((fields.SUMMARY_DIGEST, digest))
        own += [(key, text) for key, text in zip(fields.LABEL_SETS, sets, strict=True) if text]
        if self.tenant:
            own.append((fields.TENANT, self.tenant))
        if type(envelope.steps) is list:
            own.append((fields.STEP_COUNT, len(manifest) // len(fields.OPEN_STEP_MARK)))
            if manifest:
                encode_text(content, fields.MANIFEST, manifest.encode(), preview=False)
            if open_steps:
                encode_text(content, fields.OPEN_STEPS, b"[" + b",".join(open_steps) + b"]", preview=False)
        elif envelope.steps is None:
            own.append((fields.MANIFEST + fields.NON_CANONICAL, "null"))
        for field, value in zip(fields.RUN_TABLE.values, fields.RUN_TABLE.get_values(envelope), strict=True):
            encode_value(content, field, value)
        encode_extra(content, fields.RUN_EXTRA, envelope.extra)
        parent = semconv.read_parent_run_id(envelope.extra)
        if parent:
            own.append((semconv.PARENT_RUN_ID, parent[:500]))
        start, end = encode_run_times(
            content, envelope.started_at, envelope.completed_at, self.position, has_end=self.is_root
        )
        semconv.add_totals(own, self.step_parts.usages)
        template = self.template
        status = set_run_status(own, envelope.error, template, end, self.exception_events)
        span_id, parent_id = self.root_id, b""
        if not self.is_root:
            span_id = revision_span_id(self.trace_id, self.run_text, revision, self.seed)
            parent_id = self.live_id if self.is_live else self.root_id
        texts = [*template.texts, *content.texts]
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            name=template.name,
            kind=template.kind,
            start=start,
            end=end,
            status=status.code,
            message=status.message,
            shared=(template.shared, self.identity),
            own=own,
            events=(*text_events(texts, end), *status.events) if texts else status.events,
            links=semconv.caller_links(envelope.extra, self.trace_id),
            scope=fields.SCOPE_RUN if self.is_root else fields.SCOPE_REVISION,
        )


class StepLayout:
    """The ids, parents and positions of the steps of one run."""

    def __init__(self, encoder: RunEncoder, steps: Sequence[Step], ended: Sequence[bool] | None = None) -> None:
        """``ended``: for each step whether it has a span; None derives it from the status."""
        self.encoder = encoder
        self.steps = steps
        self.ended = [step.status in TERMINAL_STEP_STATUSES for step in steps] if ended is None else list(ended)
        self._positions: dict[int, int] = {}
        self._loops: dict[int, int] = {}
        self._points: dict[int, tuple[int, bytes]] = {}
        """Start and span id of the open steps that are shown as points."""
        has_loops = any(step.type == LOOP for step in steps)
        is_timeless = any(time_ns(step.started_at) is None and time_ns(step.completed_at) is None for step in steps)
        if has_loops or is_timeless or encoder.is_live:
            self._place(has_loops)

    def _place(self, has_loops: bool) -> None:
        envelope, encoder = self.encoder.envelope, self.encoder
        intervals = [Interval(time_ns(step.started_at), time_ns(step.completed_at)) for step in self.steps]
        self._positions = positions(intervals, encoder.position, time_ns(envelope.completed_at))
        if has_loops:
            self._loops = enclosing_loops(self.steps, intervals, self._positions, self.ended)
        if encoder.is_live:
            rounds = set(self._loops.values())
            same: Counter[bytes] = Counter()
            for index, (step, interval) in enumerate(zip(self.steps, intervals, strict=True)):
                start = interval.start
                if self.ended[index] or start is None:
                    continue
                if index in rounds or encoder.observed_at - start >= OPEN_STEP_AFTER:
                    key = _label_text(step, start)
                    self._points[index] = start, encoder.open_step_id(step, start, same[key])
                    same[key] += 1

    def template(self, index: int) -> SpanTemplate:
        """Return the template of a step. Those of a long run take longer than its layout, so none is made before."""
        return step_template(fields.STEP_TABLE.get_labels(self.steps[index]))

    def position(self, index: int) -> int:
        """Return the start of a step if it has no times."""
        return self._positions.get(index, self.encoder.position)

    def loop_of(self, index: int) -> int | None:
        """Return the index of the loop around a step."""
        return self._loops.get(index)

    def span_ids(self, given: Sequence[bytes] | None) -> list[bytes]:
        """Return the span ids of the steps, empty for open ones. ``given`` are those of the finished steps."""
        if given is not None:
            if len(set(given)) != len(given):
                raise ValueError("step_ids must be unique")
            if len(given) != sum(self.ended):
                raise ValueError(f"{len(given)} step ids for {sum(self.ended)} finished steps")
            assigned = iter(given)
            return [next(assigned) if ended else _OPEN for ended in self.ended]
        span_ids = [_OPEN] * len(self.steps)
        used_ids: dict[bytes, bytes] = {}
        outside = [index for index in range(len(self.steps)) if index not in self._loops]
        for index in (*outside, *parents_first(self._loops)):
            if self.ended[index]:
                seed = self.encoder.step_seed ^ self._positions.get(index, 0)
                if index in self._loops:
                    seed ^= int.from_bytes(self.parent_id(index, span_ids), "big")
                span_ids[index] = step_span_id(step_text(self.steps[index]), seed, used_ids)
        return span_ids

    def parent_id(self, index: int, span_ids: Sequence[bytes]) -> bytes:
        """Return the span id of the loop around a step, that of its point while the loop is open, else the root's."""
        loop = self._loops.get(index)
        if loop is None:
            return self.encoder.root_id
        if self.ended[loop]:
            return span_ids[loop]
        return self._points[loop][1] if loop in self._points else self.encoder.root_id

    def points(self) -> Iterator[Span]:
        """Yield the points of the open steps."""
        for index, (start, span_id) in self._points.items():
            yield self.encoder.open_step_span(self.steps[index], start, span_id)


def _label_text(step: Step, *others: object) -> bytes:
    """Return a text of a step's lasting labels and other values, for ids: the same in every process.

    ``repr`` would write a character as an escape or not by the Unicode version of the interpreter.
    """
    return ascii((*[by_content(getattr(step, field.member)) for field in _POINT_LABELS], *others)).encode()


def _labels(step: Step) -> Pairs:
    """Return the labels of a step that do not change while it runs, without long texts."""
    content = SpanContent()
    for field in _POINT_LABELS:
        encode_value(content, field, getattr(step, field.member))
    return content.pairs
