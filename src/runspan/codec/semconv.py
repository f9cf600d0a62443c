"""Attributes by OpenTelemetry's semantic conventions, for people, dashboards and alerts; no I/O.

The conventions are ``cicd.*`` for pipelines (a run) and their tasks (a step), ``gen_ai.*`` for agents, ``error.type``
and the ``exception`` event. They define no attributes for cost and for a run's totals, so these are ``runspan.*``.
Tokens and cost are on the agent's step only. The run has totals under other keys, so that sums over spans count nothing
twice. ``decode`` reads none of these attributes.
"""

from __future__ import annotations

import re
from math import fsum, inf
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from runspan.errors import PARSE_ERRORS
from runspan.model.span import Event, Link, Pairs, Value, run_ids
from runspan.model.timestamps import parse_ns

T = TypeVar("T")

RUN_RESULTS: Final = {
    "completed": "success",
    "failed": "failure",
    "timed_out": "timeout",
    "cancelled": "cancellation",
}
RUN_STATES: Final = {"pending": "pending", "running": "executing", "suspended": "executing"}
STEP_RESULTS: Final = {"completed": "success", "failed": "failure", "skipped": "skip"}
RUN_ERRORS: Final = {"failed": "_OTHER", "timed_out": "timeout"}
"""The statuses that are errors, with the ``error.type`` of an error without a code."""
STEP_ERRORS: Final = {"failed": "_OTHER"}

COST: Final = "runspan.cost.usd"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
ERROR_TYPE: Final = "error.type"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
ATTEMPT_NUMBER: Final = "runspan.attempt.number"
PIPELINE_NAME: Final = "cicd.pipeline.name"
PIPELINE_RUN_ID: Final = "cicd.pipeline.run.id"
TASK_RUN_ID: Final = "cicd.pipeline.task.run.id"
"""The span id of the step: the conventions require an identity of each execution."""
CHILD_RUN_ID: Final = "runspan.child.run.id"
PARENT_RUN_ID: Final = "runspan.parent.run.id"
RUN_TOTALS: Final = ("runspan.run.input_tokens", "runspan.run.output_tokens", "runspan.run.cost_usd")
RUN_INPUT, RUN_OUTPUT, RUN_COST = RUN_TOTALS

MESSAGE_LENGTH = 500
"""Characters, so at most 2000 bytes. A backend that truncates inside a character returns an invalid response."""
_INT64 = 1 << 63
PROVIDERS = (
    ("claude", "anthropic"),
    ("gpt", "openai"),
    ("chatgpt", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
)


class ErrorInfo(Struct, frozen=True):
    """Type and message of a run's or step's error, for ``error.type``, the span status and the exception event."""

    type: str
    message: str = ""

    def event(self, time: int) -> Event:
        """Return the ``exception`` event at a time in nanoseconds since 1970."""
        pairs: list[tuple[str, Value]] = [(EXCEPTION_TYPE, self.type)]
        if self.message:
            pairs.append((EXCEPTION_MESSAGE, self.message))
        return Event(EXCEPTION_EVENT, time, tuple(pairs))


class Usage(Struct, frozen=True, rename="camel"):
    """The ``output.usage`` of an agent step. ``totalTokens`` has no convention and is the sum of the two counts."""

    prompt_tokens: int = -1
    completion_tokens: int = -1
    model: str = ""
    estimated_cost_usd: float = -1.0


class _Output(Struct, frozen=True):
    usage: Usage | None = None


class _Error(Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Child(Struct, frozen=True, rename="camel"):
    run_id: str = ""


class _Attempt(Struct, frozen=True, rename="camel"):
    attempt: int = 0
    status: str = ""
    started_at: str = ""
    completed_at: str = ""
    error: Any = None


class _Extra(Struct, frozen=True, rename="camel"):
    attempts: list[_Attempt] = []
    parent_run_id: str = ""
    traceparent: str = ""


_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 0x01
_STRING: Final = msgspec.json.Decoder(str)
_OUTPUT: Final = msgspec.json.Decoder(_Output)
_ERROR: Final = msgspec.json.Decoder(_Error)
_CHILD: Final = msgspec.json.Decoder(_Child)
_EXTRA: Final = msgspec.json.Decoder(_Extra)


def _read(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """Return the known members; the defaults for text of another form, which the exact attributes carry."""
    try:
        return decoder.decode(text)
    except PARSE_ERRORS:
        return decoder.type()


def read_error(error: object, default_type: str) -> ErrorInfo:
    """Return type and message of a member ``error``; the type is ``default_type`` if it has no code."""
    text = bytes(error) if type(error) is Raw else b""
    if text.startswith(b'"'):
        return ErrorInfo(default_type, _read(_STRING, text)[:MESSAGE_LENGTH])
    known = _read(_ERROR, text)
    return ErrorInfo(known.code[:MESSAGE_LENGTH] or default_type, known.message[:MESSAGE_LENGTH])


def error_code(error: object) -> str | None:
    """Return the ``code`` of a member ``error``, or None."""
    return read_error(error, "").type or None if type(error) is Raw else None


def read_usage(output: object) -> Usage | None:
    """Return the token usage in an agent's output, or None."""
    text = bytes(output) if type(output) is Raw else b""
    return _read(_OUTPUT, text).usage if b'"usage"' in text else None


def add_model(pairs: Pairs, model: str) -> None:
    """Append the model and its provider, if they are known."""
    if model:
        for prefix, provider in PROVIDERS:
            if model.startswith(prefix):
                pairs.append((PROVIDER, provider))
                break
        pairs.append((MODEL, model[:MESSAGE_LENGTH]))


def add_counts(pairs: Pairs, usage: Usage) -> None:
    """Append tokens and cost, as far as they are known."""
    if 0 <= usage.prompt_tokens < _INT64:
        pairs.append((INPUT_TOKENS, usage.prompt_tokens))
    if 0 <= usage.completion_tokens < _INT64:
        pairs.append((OUTPUT_TOKENS, usage.completion_tokens))
    if usage.estimated_cost_usd >= 0:
        pairs.append((COST, usage.estimated_cost_usd))


def add_totals(pairs: Pairs, usages: list[Usage]) -> None:
    """Append a run's totals over its agent steps, under keys that no step has."""
    if not usages:
        return
    pairs.append((RUN_INPUT, sum([max(usage.prompt_tokens, 0) for usage in usages]) % _INT64))
    pairs.append((RUN_OUTPUT, sum([max(usage.completion_tokens, 0) for usage in usages]) % _INT64))
    cost = _rounded_sum([max(usage.estimated_cost_usd, 0.0) for usage in usages])
    if cost < inf:  # JSON has no infinity: a backend that writes JSON would fail on every response with this trace
        pairs.append((RUN_COST, cost))


def _rounded_sum(numbers: list[float]) -> float:
    """Return the sum, which does not depend on the order; infinity if it is beyond a float."""
    try:
        return fsum(numbers)
    except OverflowError:
        return inf


def read_child_run_id(output: object) -> str:
    """Return the run id in a sub-workflow's output, or an empty string."""
    return _read(_CHILD, bytes(output)).run_id if type(output) is Raw else ""


def child_link(run_id: str, tenant: str) -> Link:
    """Return the link to the run span of a sub-workflow's run."""
    child = run_ids(run_id, tenant)
    return Link(child.trace_id, child.root_id, (("runspan.link", "sub-workflow"),))


def read_parent_run_id(extra: bytes) -> str:
    """Return the unknown member ``parentRunId`` of a child run, or an empty string."""
    return _read(_EXTRA, b"{" + extra + b"}").parent_run_id if b"parentRunId" in extra else ""


def caller_links(extra: bytes, trace_id: bytes) -> tuple[Link, ...]:
    """Return the link to the span that started a run, from the run's unknown member ``traceparent``.

    Its format is https://www.w3.org/TR/trace-context/#traceparent-header. A traceparent in the run's own trace
    (``trace_id``) is ignored, because stores treat a root's link into its own trace as its parent.
    """
    match = _traceparent(extra)
    if match is None:
        return ()
    caller, span = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    if caller == trace_id or not any(caller) or not any(span):
        return ()
    return (Link(caller, span, (("runspan.link", "caller"),)),)


def is_caller_sampled(extra: bytes) -> bool:
    """Return whether the span of ``caller_links`` is recorded, according to the flags of its traceparent."""
    match = _traceparent(extra)
    return match is not None and bool(int(match[3], 16) & _SAMPLED)


def _traceparent(extra: bytes) -> re.Match[str] | None:
    if b'"traceparent"' not in extra:
        return None
    return _TRACEPARENT.fullmatch(_read(_EXTRA, b"{" + extra + b"}").traceparent)


class Attempt(Struct, frozen=True):
    """One attempt of a step."""

    position: int
    """In the step's list, from 1."""
    number: int
    status: str
    start: int
    """Nanoseconds since 1970."""
    end: int
    """Nanoseconds since 1970, after the start."""
    error: ErrorInfo | None

    def values(self) -> tuple[object, ...]:
        """Return everything that the attempt's span carries, for its id."""
        error = None if self.error is None else (self.error.type, self.error.message)
        return self.number, self.status, self.start, self.end, error


def read_attempts(extra: bytes) -> list[Attempt]:
    """Return the attempts in a step's unknown member ``attempts``, without those that have no times."""
    if b'"attempts"' not in extra:
        return []
    found = []
    for position, attempt in enumerate(_read(_EXTRA, b"{" + extra + b"}").attempts, 1):
        start, end = parse_ns(attempt.started_at), parse_ns(attempt.completed_at)
        if start is None or end is None:
            continue
        failed = attempt.error is not None or attempt.status == "failed"
        error = read_error(Raw(msgspec.json.encode(attempt.error)), "_OTHER") if failed else None
        number = attempt.attempt if 0 < attempt.attempt < _INT64 else position
        found.append(Attempt(position, number, attempt.status, start, max(end, start + 1), error))
    return found


def current_attempt(number: object, status: str, error: object, start: int) -> Attempt | None:
    """Return the current attempt of a step that has a number only, as in the platform's log; None without a number.

    Its times are unknown, so it is placed at the step's start and has no duration.
    """
    text = bytes(number) if type(number) is Raw else b""
    if not text.isdigit() or len(text) > 18:
        return None
    info = read_error(error, "_OTHER") if type(error) is Raw and bytes(error) != b"null" else None
    return Attempt(1, int(text), status, start, start + 1, info)
