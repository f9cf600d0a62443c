"""The standard attributes beside the exact ones: for people, dashboards and alerts; never read back; no I/O.

Names come from OpenTelemetry's semantic conventions: ``cicd.*`` for pipelines (a run) and their tasks (a step),
``gen_ai.*`` for agents, ``error.type`` and the ``exception`` event. Conventions have no place for cost and for a
run's totals, so these are ``runspan.*``. Tokens and cost stand on the agent's step only; the run has totals under other
names, or sums over spans would count everything twice.
"""

from __future__ import annotations

import re
from math import inf
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from runspan.codec.attributes import Pairs
from runspan.model.ids import run_ids
from runspan.model.span import Event, Link, Value
from runspan.model.timestamps import parse_ns

RUN_RESULTS: Final = {
    "completed": "success",
    "failed": "failure",
    "timed_out": "timeout",
    "cancelled": "cancellation",
}
STEP_RESULTS: Final = {"completed": "success", "failed": "failure", "skipped": "skip"}
RUN_ERRORS: Final = {"failed": "_OTHER", "timed_out": "timeout"}
"""Statuses that are errors, with the ``error.type`` of an error that names none."""
STEP_ERRORS: Final = {"failed": "_OTHER"}

COST: Final = "runspan.cost.usd"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
ERROR_TYPE: Final = "error.type"
PIPELINE_RUN_ID: Final = "cicd.pipeline.run.id"
CHILD_RUN_ID: Final = "runspan.child.run.id"
PARENT_RUN_ID: Final = "runspan.parent.run.id"
SEMCONV_STRING_KEYS: Final = frozenset({PROVIDER, MODEL, ERROR_TYPE, PIPELINE_RUN_ID, CHILD_RUN_ID, PARENT_RUN_ID})
"""The strings among a span's own projected attributes."""
_RUN_INPUT, _RUN_OUTPUT, _RUN_COST = "runspan.run.input_tokens", "runspan.run.output_tokens", "runspan.run.cost_usd"
SEMCONV_NUMBER_KEYS: Final = frozenset({INPUT_TOKENS, OUTPUT_TOKENS, COST, _RUN_INPUT, _RUN_OUTPUT, _RUN_COST})
"""The numbers among them."""

_MESSAGE_LENGTH = 500
"""Characters, so at most 2000 bytes: a backend that cuts a string inside a character spoils its whole answer."""
_INT64 = 1 << 63
_PROVIDERS = (
    ("claude", "anthropic"),
    ("gpt", "openai"),
    ("chatgpt", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
)


class ErrorInfo(Struct, frozen=True):
    """What a failed run or step says of its error: for ``error.type``, the span's status and the exception event."""

    type: str
    message: str = ""

    def event(self, time: int) -> Event:
        """The exception event of the conventions."""
        pairs: list[tuple[str, Value]] = [("exception.type", self.type)]
        if self.message:
            pairs.append(("exception.message", self.message))
        return Event("exception", time, tuple(pairs))


class Usage(Struct, frozen=True, rename="camel"):
    """An agent step's ``output.usage``; ``totalTokens`` has no convention and is the sum of the two."""

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


_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_decode_output = msgspec.json.Decoder(_Output).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_child = msgspec.json.Decoder(_Child).decode
_decode_extra = msgspec.json.Decoder(_Extra).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def read_error(error: object, default_type: str) -> ErrorInfo:
    """The fault that a member ``error`` tells; default_type when it has no code."""
    if type(error) is not Raw:
        return ErrorInfo(default_type)
    text = bytes(error)
    try:
        if text.startswith(b'"'):
            return ErrorInfo(default_type, msgspec.json.decode(text, type=str)[:_MESSAGE_LENGTH])
        if text.startswith(b"{"):
            known = _decode_error(text)
            return ErrorInfo(known.code[:_MESSAGE_LENGTH] or default_type, known.message[:_MESSAGE_LENGTH])
    except _UNREADABLE:
        pass  # the error's own text is carried all the same
    return ErrorInfo(default_type)


def read_usage(output: object) -> Usage | None:
    """The token usage that an agent's output tells, or None."""
    if type(output) is not Raw:
        return None
    text = bytes(output)
    if b'"usage"' not in text:
        return None
    try:
        return _decode_output(text).usage
    except _UNREADABLE:
        return None


def add_usage(pairs: Pairs, usage: Usage) -> None:
    """Appends an agent step's model, provider, tokens and cost, as far as they are known."""
    add_model(pairs, usage.model)
    add_counts(pairs, usage)


def add_model(pairs: Pairs, model: str) -> None:
    """Appends a model that is known, and its provider."""
    if model:
        for prefix, provider in _PROVIDERS:
            if model.startswith(prefix):
                pairs.append((PROVIDER, provider))
                break
        pairs.append((MODEL, model[:_MESSAGE_LENGTH]))


def add_counts(pairs: Pairs, usage: Usage) -> None:
    """Appends tokens and cost, as far as they are known."""
    if 0 <= usage.prompt_tokens < _INT64:
        pairs.append((INPUT_TOKENS, usage.prompt_tokens))
    if 0 <= usage.completion_tokens < _INT64:
        pairs.append((OUTPUT_TOKENS, usage.completion_tokens))
    if usage.estimated_cost_usd >= 0:
        pairs.append((COST, usage.estimated_cost_usd))


def add_totals(pairs: Pairs, usages: list[Usage]) -> None:
    """Appends a run's sums over its agent steps, under names that no step has."""
    if not usages:
        return
    pairs.append((_RUN_INPUT, sum([max(usage.prompt_tokens, 0) for usage in usages]) % _INT64))
    pairs.append((_RUN_OUTPUT, sum([max(usage.completion_tokens, 0) for usage in usages]) % _INT64))
    cost = sum([max(usage.estimated_cost_usd, 0.0) for usage in usages])
    if cost < inf:  # JSON has no word for it, and a backend that writes JSON fails on every answer with this trace
        pairs.append((_RUN_COST, cost))


def read_child_run_id(output: object) -> str:
    """The run id that a sub-workflow's output tells, or nothing."""
    if type(output) is not Raw:
        return ""
    try:
        return _decode_child(bytes(output)).run_id
    except _UNREADABLE:
        return ""


def child_link(run_id: str, tenant: str) -> Link:
    """The link to a sub-workflow's run span: its ids follow from the run's id."""
    child = run_ids(run_id, tenant)
    return Link(child.trace_id, child.root_id, (("runspan.link", "sub-workflow"),))


def read_parent_run_id(extra: bytes) -> str:
    """The run id that a child run's unknown member ``parentRunId`` tells, or nothing."""
    if b"parentRunId" not in extra:
        return ""
    try:
        return _decode_extra(b"{" + extra + b"}").parent_run_id
    except _UNREADABLE:
        return ""


def caller_links(extra: bytes, trace_id: bytes) -> tuple[Link, ...]:
    """The link to the span that started a run, which the run's unknown member ``traceparent`` tells in W3C's form.

    https://www.w3.org/TR/trace-context/#traceparent-header. trace_id: the run's own: into it the run span never links,
    since stores take a link of a root into its own trace for the parent.
    """
    if b'"traceparent"' not in extra:
        return ()
    try:
        match = _TRACEPARENT.fullmatch(_decode_extra(b"{" + extra + b"}").traceparent)
    except _UNREADABLE:
        return ()
    if match is None:
        return ()
    caller, span = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    if caller == trace_id or not any(caller) or not any(span):
        return ()
    return (Link(caller, span, (("runspan.link", "caller"),)),)


class Attempt(Struct, frozen=True):
    """One attempt of a step. position: in the step's list, from 1. start, end: nanoseconds since 1970, the end after
    the start."""

    position: int
    number: int
    status: str
    start: int
    end: int
    error: ErrorInfo | None


def read_attempts(extra: bytes) -> list[Attempt]:
    """The attempts that a step's unknown member ``attempts`` tells; those without times are left out."""
    if b'"attempts"' not in extra:
        return []
    try:
        attempts = _decode_extra(b"{" + extra + b"}").attempts
    except _UNREADABLE:
        return []
    told = []
    for position, attempt in enumerate(attempts, 1):
        start, end = parse_ns(attempt.started_at), parse_ns(attempt.completed_at)
        if start is None or end is None:
            continue
        failed = attempt.error is not None or attempt.status == "failed"
        fault = read_error(Raw(msgspec.json.encode(attempt.error)), "_OTHER") if failed else None
        number = attempt.attempt if 0 < attempt.attempt < _INT64 else position
        told.append(Attempt(position, number, attempt.status, start, max(end, start + 1), fault))
    return told


def current_attempt(number: object, status: str, error: object, start: int) -> Attempt | None:
    """The attempt that a step is at which tells its number alone, as the platform's log does; None without a number.

    When it began and how long it took is told nowhere, so it stands at the step's start.
    """
    text = bytes(number) if type(number) is Raw else b""
    if not text.isdigit() or len(text) > 18:
        return None
    fault = read_error(error, "_OTHER") if type(error) is Raw and bytes(error) != b"null" else None
    return Attempt(1, int(text), status, start, start + 1, fault)
