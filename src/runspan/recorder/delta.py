"""What is sent of a run: the spans that the receiver does not have yet, and a head that names all; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from runspan.codec.encode import RunEncoder
from runspan.codec.fields import OPEN_STEP_MARK, STEP_TABLE
from runspan.codec.semconv import Usage
from runspan.codec.span_templates import step_template
from runspan.model.document import step_text
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.recorder.state import RunSession


@dataclass(slots=True)
class RunDelta:
    """The spans of one run that are to be sent, the head last. final: the run changes no more here, and this is all."""

    post: RunExportState
    run: Run
    spans: list[Span]
    final: bool

    def acknowledged(self) -> None:
        """The receiver has it."""
        self.post.there.update([span.span_id for span in self.spans[:-1]])


@dataclass(slots=True, eq=False)
class RunExportState:
    """One run on its way. there: ids of the spans that the receiver has.

    changed: when the run first changed since it was last read, monotonic seconds; None when it did not. urgent: its
    own status did. sent: when a head was last taken. not_before: when it may be tried again. size: about how many
    bytes its document has, once it has ended. damaged: the receiver took it, but for some spans. usages:
    of its agent steps so far, by span id.
    """

    live: RunSession
    begun: float
    there: set[bytes] = field(default_factory=set)
    changed: float | None = None
    urgent: bool = True
    sent: float | None = None
    not_before: float = 0.0
    failures: int = 0
    size: int = 0
    damaged: bool = False
    usages: dict[bytes, list[Usage]] = field(default_factory=dict)

    def build_delta(self, now: int, exception_events: bool) -> RunDelta:
        """What is to be sent as of now, nanoseconds since 1970: of what ``encode`` makes of the run, the spans that the
        receiver lacks. Steps that it has are not worked out again: a snapshot costs what is new."""
        record = self.live.record
        run, step_ids, revision, final = record.state(now)
        encoder = RunEncoder(run, record.tenant, exception_events=exception_events)
        spans: list[Span] = []
        names: list[str] = []
        open_steps: list[bytes] = []
        for step, span_id in zip(run.steps, step_ids, strict=True):
            label = step_template(STEP_TABLE.get_labels(step))
            if label.finished:
                names.append(span_id.hex())
                if span_id in self.there:
                    encoder.step_parts.usages += self.usages.get(span_id, ())
                    continue
                before = len(encoder.step_parts.usages)
                spans.append(encoder.step_span(step, span_id, label))
                if label.is_agent:
                    self.usages[span_id] = encoder.step_parts.usages[before:]
            else:
                names.append(OPEN_STEP_MARK)
                open_steps.append(step_text(step))
            if step.extra:
                # Of a step that goes on they stand below its span to come, which is known here already.
                attempts = encoder.attempt_spans(step, span_id, label)
                spans += [span for span in attempts if span.span_id not in self.there]
        spans.append(encoder.revision_span("".join(names), open_steps, revision))
        return RunDelta(self, run, spans, final)
