"""What questions about many runs are answered from: a document's durations, errors, steps, models and cost; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Raw, Struct

from runspan.codec.attributes import AttributeDecodeError
from runspan.codec.fields import MANY, MAX_ATTRIBUTE_BYTES
from runspan.codec.semconv import Usage, error_code, read_usage
from runspan.errors import PARSE_ERRORS
from runspan.model.document import (
    Envelope,
    Run,
    Step,
    Summary,
    end_time,
    parse_document,
    sort_time,
    str_or_none,
    time_ns,
)
from runspan.model.timestamps import MILLISECOND

NANO_DOLLARS: Final = 1_000_000_000
"""Costs are integers of this part of a dollar, so that sums do not depend on their order."""
_MAX_COUNT: Final = 1_000_000_000_000
"""Tokens of a step, and milliseconds, that are believed; a larger number is not counted, and no sum leaves 64 bits."""
_MAX_DOLLARS: Final = 1_000_000
_MAX_COST: Final = (1 << 62) - 1
"""In ``NANO_DOLLARS``, of a run: thousands of steps may each be believed to cost ``_MAX_DOLLARS``."""

_label_set = msgspec.json.Decoder(frozenset[str]).decode
_number = msgspec.json.Decoder(int | float).decode
_summary = msgspec.json.Decoder(Summary).decode


class StepFacts(Struct, frozen=True, array_like=True):
    """One execution of a step: each round of a loop is one."""

    id: str
    name: str
    """Its name, or its id without one."""
    type: str
    """Empty if the document has none, as ``status`` is."""
    status: str
    duration: int | None
    """Nanoseconds, see ``duration``."""


class ModelUse(Struct, frozen=True, array_like=True):
    """What the agent steps of a run used of one model."""

    model: str
    """Empty if the document does not name it."""
    steps: int
    input_tokens: int
    output_tokens: int
    cost: int
    """Estimated cost in ``NANO_DOLLARS``."""


class RunOutcome(Struct, frozen=True, array_like=True):
    """The facts of a run as a whole."""

    workflow_id: str | None
    status: str | None
    time: int
    """The sort time in nanoseconds since 1970, see ``contracts.RunQuery``."""
    ended: int | None
    """See ``model.document.end_time``."""
    duration: int | None
    """Nanoseconds, see ``duration``."""
    trigger: str | None
    error_code: str | None
    """``code`` of the run's error."""
    failed_step: str | None
    """The name of the first failed step."""


class RunFacts(RunOutcome, frozen=True, array_like=True):
    """What lists are filtered and sorted by, and statistics are made of."""

    steps: tuple[StepFacts, ...]
    models: tuple[ModelUse, ...]

    @property
    def model_names(self) -> set[str]:
        """The models that its steps used, "" for one that the document does not name."""
        return {use.model for use in self.models}

    @property
    def step_types(self) -> set[str]:
        """The types of its steps, "" for that of a step without one."""
        return {step.type for step in self.steps}

    @property
    def cost(self) -> int:
        """The estimated cost of all models in ``NANO_DOLLARS``."""
        return min(sum(use.cost for use in self.models), _MAX_COST)


def run_facts(run: Run, time: int | None = None) -> RunFacts:
    """Return the facts of a document.

    ``time``: where the run lies in time if its document does not say, see ``sort_time``.
    """
    envelope = run.envelope
    steps = tuple(_step_facts(step) for step in run.steps)
    when = sort_time(envelope) or time or 0
    failed = next((step.name for step in steps if step.status == "failed"), None)
    return RunFacts(
        workflow_id=run.workflow_id,
        status=run.status,
        time=when,
        ended=end_time(envelope, when),
        duration=duration(envelope),
        trigger=str_or_none(envelope.trigger_type),
        error_code=error_code(envelope.error),
        failed_step=failed,
        steps=steps,
        models=_models(run.steps),
    )


def duration(document: Envelope | Summary | Step) -> int | None:
    """Return how long a run or step took in nanoseconds: its ``durationMs``, else from its start to its completion.

    Return None if it has neither.
    """
    milliseconds = _positive(document.duration_ms)
    if milliseconds is not None:
        return round(milliseconds * MILLISECOND)
    start, end = time_ns(document.started_at), time_ns(document.completed_at)
    return None if start is None or end is None or end < start else end - start


def summary_members(summary: bytes) -> Summary | Envelope:
    """Return the members of a list item."""
    try:
        return _summary(summary)
    except PARSE_ERRORS:
        return parse_document(summary)[0]  # a member has another type than the platform writes


def encode_label_set(labels: Iterable[str]) -> str:
    """Return the text of a label set, "" if it is empty. See ``fields.LABEL_SETS``."""
    distinct = sorted({*labels})
    text = msgspec.json.encode(distinct) if distinct else b""
    return text.decode() if len(text) <= MAX_ATTRIBUTE_BYTES else MANY


def decode_label_set(text: str) -> frozenset[str] | None:
    """Return the label set of a text, None if the text does not say it. Raises AttributeDecodeError."""
    if text == MANY:
        return None
    try:
        return _label_set(text) if text else frozenset()
    except PARSE_ERRORS:
        raise AttributeDecodeError("a set of models or step types is not an array of strings") from None


def _step_facts(step: Step) -> StepFacts:
    step_id = bytes(step.id).decode() if isinstance(step.id, Raw) else step.id  # one with a lone surrogate stays JSON
    name = str_or_none(step.name) or step_id
    return StepFacts(step_id, name, str_or_none(step.type) or "", str_or_none(step.status) or "", duration(step))


def model_names(steps: Iterable[Step]) -> set[str]:
    """See ``RunFacts``."""
    return {usage.model for usage in _usages(steps)}


def step_types(steps: Iterable[Step]) -> set[str]:
    """See ``RunFacts``."""
    return {str_or_none(step.type) or "" for step in steps}


def _usages(steps: Iterable[Step]) -> Iterator[Usage]:
    for step in steps:
        usage = read_usage(step.output) if step.type == "agent" else None  # as the totals of the run span
        if usage is not None:
            yield usage


def _models(steps: Iterable[Step]) -> tuple[ModelUse, ...]:
    found: dict[str, tuple[int, int, int, int]] = {}
    for usage in _usages(steps):
        count, read, written, cost = found.get(usage.model, (0, 0, 0, 0))
        dollars = usage.estimated_cost_usd
        found[usage.model] = (
            count + 1,
            read + _believed(usage.prompt_tokens),
            written + _believed(usage.completion_tokens),
            cost + (round(dollars * NANO_DOLLARS) if 0 <= dollars <= _MAX_DOLLARS else 0),
        )
    return tuple(
        ModelUse(model, count, read, written, min(cost, _MAX_COST))
        for model, (count, read, written, cost) in sorted(found.items())
    )


def _believed(count: int) -> int:
    return count if 0 <= count <= _MAX_COUNT else 0


def _positive(number: object) -> int | float | None:
    """Return the value of a JSON number from 0 to a bound, or None."""
    try:
        value = _number(bytes(number)) if type(number) is Raw else None
    except PARSE_ERRORS:
        return None
    return value if value is not None and 0 <= value <= _MAX_COUNT else None
