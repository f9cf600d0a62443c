"""A run that waits, as JSON, and the run restored from it: in another process, even hours later.

The JSON is split by ``model.json_scanner``, which keeps the text of payloads: it may have escapes that no decoded text
can represent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from runspan.errors import PARSE_ERRORS, DocumentError
from runspan.model.document import TERMINAL_STEP_STATUSES, Run, Step, time_ns
from runspan.model.json_scanner import Member, elements, end_of_value, members, skip_space, string_value
from runspan.recorder.state import Attempt, RunRecord, StepRecord

_MAX_RESUME_COUNT: Final = 2**32 - 2
"""The resume count is 4 bytes of the seed of span ids."""


class _Header(msgspec.Struct, rename="camel"):
    """The members of a checkpoint before the document."""

    tenant: str
    revision: int
    """The revision of the released run; those of the resumed run are higher."""
    span_ids: list[str]
    """The span ids of all steps in hexadecimal, in the document's order."""
    resume_count: Annotated[int, Meta(ge=0, le=_MAX_RESUME_COUNT)]
    """How often the run had been resumed."""


class _Checkpoint(_Header):
    document: Raw


_HEADER_MEMBERS: Final = [field.encode_name for field in msgspec.structs.fields(_Header)]


def checkpoint(record: RunRecord) -> bytes:
    """Return JSON from which ``restore`` makes the run: its document, and the span ids of its steps."""
    with record.lock:
        document = record.document()
        span_ids = [step.span_id.hex() for step in record.steps]
        made = _Checkpoint(record.tenant, record.revision, span_ids, record.resume_count, Raw(document.text))
    return msgspec.json.encode(made)


def restore(checkpoint: bytes | str, make: Callable[[str, str | UnsetType, str, int], RunRecord]) -> RunRecord:
    """Return the run of a checkpoint, resumed now.

    make: begins a run, given its id, workflow id, tenant and resume count.

    Steps that had ended keep their span ids. Open steps get new ones: the process before may have sent them.

    ValueError when it is not a checkpoint, or when the run has ended.
    """
    try:
        header, run = _parse(checkpoint)
        span_ids = [bytes.fromhex(text) for text in header.span_ids]
    except (DocumentError, *PARSE_ERRORS) as error:
        raise ValueError(f"not a checkpoint of a run: {error}") from None
    if run.finished:
        raise ValueError(f"run {run.id} has ended")
    if len(span_ids) != len(run.steps):
        raise ValueError("not a checkpoint of a run: span ids are missing")
    if any(type(step.id) is not str for step in run.steps):
        raise ValueError("not a checkpoint of a run: a step's id has a lone surrogate")
    envelope = run.envelope
    record = make(run.id, _text(envelope.workflow_id), header.tenant, header.resume_count + 1)
    record.status = run.status or "running"
    record.trigger = _text(envelope.trigger_type)
    record.created_at = time_ns(envelope.created_at) or record.created_at
    record.started_at = time_ns(envelope.started_at)
    record.latest_time = max(record.created_at, record.started_at or 0)
    record.not_before = max(record.not_before, record.latest_time)
    record.input, record.output, record.error = _json(envelope.input), _json(envelope.output), _json(envelope.error)
    record.extra = envelope.extra
    record.revision = header.revision
    for step, span_id in zip(run.steps, span_ids, strict=True):
        _restore_step(record, step, span_id)
    return record


def _parse(checkpoint: bytes | str) -> tuple[_Header, Run]:
    text = checkpoint if isinstance(checkpoint, str) else checkpoint.decode()
    start = skip_space(text, 0)
    if text[start : start + 1] != "{" or skip_space(text, end_of_value(text, start)) != len(text):
        raise ValueError("expected one JSON object")
    by_key = {member.key: member for member in members(text, start)}
    document = by_key.pop("document", None)
    if document is None:
        raise ValueError("it has no document")
    header = [_member_text(by_key[key]) for key in _HEADER_MEMBERS if key in by_key]
    return (
        msgspec.json.decode("{" + ",".join(header) + "}", type=_Header),
        Run.from_json(document.value_text, where="checkpoint"),
    )


def _member_text(member: Member) -> str:
    return f"{member.key_text}:{member.value_text}"


def _restore_step(run: RunRecord, step: Step, span_id: bytes) -> None:
    status = step.status if type(step.status) is str else "pending"
    if status in TERMINAL_STEP_STATUSES:
        run.add_ended_step(StepRecord(step.id, _text(step.name), _text(step.type), span_id, status=status, final=step))
        return
    record = run.add_step(step.id, _text(step.name), _text(step.type), planned=True)
    record.status, record.started_at = status, time_ns(step.started_at)
    record.attempt = int(bytes(step.attempt)) if isinstance(step.attempt, Raw) else 0
    record.input, record.output, record.error = _json(step.input), _json(step.output), _json(step.error)
    record.retry_policy = _json(step.retry_policy)
    record.extra, record.attempts = _split_attempts(step.extra)


def _split_attempts(extra: bytes) -> tuple[bytes, list[Attempt]]:
    """Return the extra members of an open step without its attempts, which are among them, and the attempts."""
    if not extra:
        return b"", []
    others: list[str] = []
    attempts: list[Attempt] = []
    for member in members("{" + extra.decode() + "}", 0):
        if member.key != "attempts":
            others.append(_member_text(member))
        elif member.value_text.startswith("["):
            texts = [element.value_text for element in elements(member.value_text, 0)]
            attempts = [_restore_attempt(text, number) for number, text in enumerate(texts, 1)]
    return ",".join(others).encode(), attempts


def _restore_attempt(text: str, number: int) -> Attempt:
    by_key = {member.key: member.value_text for member in members(text, 0)} if text.startswith("{") else {}
    started_at = time_ns(_string(by_key.get("startedAt"))) or 0
    ended_at = time_ns(_string(by_key.get("completedAt")))
    error = by_key.get("error")
    return Attempt(
        number,
        started_at,
        started_at if ended_at is None else ended_at,
        # The process that worked on an attempt without an end is gone.
        "failed" if ended_at is None else _string(by_key.get("status")),
        None if error is None else error.encode(),
    )


def _string(text: str | None) -> str:
    return string_value(text) if text is not None and text.startswith('"') else ""


def _text(value: object) -> str | UnsetType:
    return value if type(value) is str else UNSET


def _json(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, Raw) else None
