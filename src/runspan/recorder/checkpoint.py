"""A run that waits, as JSON, and the run again of it: in another process, hours later.

Payloads are taken apart by ``scan``, which keeps their own text: they may have escapes that no text can carry.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from runspan.errors import DocumentError
from runspan.model.document import TERMINAL_STEP_STATUSES, Step
from runspan.model.json_scanner import Member, elements, end_of_value, members, skip_space, string_value
from runspan.model.run import Run
from runspan.model.timestamps import parse_ns
from runspan.recorder.serialize import Payload
from runspan.recorder.state import Attempt, RunRecord, StepRecord, TimestampFormat

_MOST_TURNS: Final = 2**32 - 2


def checkpoint(record: RunRecord) -> bytes:
    """What ``restored`` makes the run of again; JSON. It holds the document, and which span each finished step is."""
    with record.lock:
        document = record.document()
        names = [step.span_id.hex() for step in record.steps]
        told = _Checkpoint(record.tenant, record.revision, names, record.turn, Raw(document.text))
    return msgspec.json.encode(told)


class _Marks(msgspec.Struct, rename="camel"):
    """What stands beside the document. turn: see ``RunRecord``; absent where an earlier version wrote it."""

    tenant: str
    revision: int
    span_ids: list[str]
    turn: Annotated[int, Meta(ge=0, le=_MOST_TURNS)] = 0


class _Checkpoint(msgspec.Struct, rename="camel"):
    tenant: str
    revision: int
    span_ids: list[str]
    turn: int
    document: Raw


def restored(checkpoint: bytes | str, clock: TimestampFormat) -> RunRecord:
    """The run of a checkpoint, taken up now: what is done again is another span than what may have been sent.

    ValueError when it is no checkpoint, or one of a run that has ended.
    """
    try:
        marks, run = _read(checkpoint)
        places = [bytes.fromhex(name) for name in marks.span_ids]
    except (ValueError, DocumentError, msgspec.MsgspecError) as error:
        raise ValueError(f"not a checkpoint of a run: {error}") from None
    if run.finished or len(places) != len(run.steps):
        raise ValueError(
            f"run {run.id} has ended" if run.finished else "not a checkpoint of a run: span ids are missing"
        )
    envelope = run.envelope
    now = clock.now()
    since = clock.cut(now)
    created, started = _ns(envelope.created_at) or since, _ns(envelope.started_at)
    latest = max(created, started or 0)
    made = RunRecord(
        run.id, _text(envelope.workflow_id), marks.tenant, max(since, latest), epoch=now, turn=marks.turn + 1
    )
    made.status = run.status or "running"
    made.trigger = _text(envelope.trigger_type)
    made.created, made.started, made.latest = created, started, latest
    made.input, made.output, made.error = _bytes(envelope.input), _bytes(envelope.output), _bytes(envelope.error)
    made.extra = envelope.extra
    made.revision = marks.revision
    for step, span_id in zip(run.steps, places, strict=True):
        _restore_step(made, step, span_id)
    return made


def _read(checkpoint: bytes | str) -> tuple[_Marks, Run]:
    text = checkpoint if isinstance(checkpoint, str) else checkpoint.decode()
    start = skip_space(text, 0)
    if text[start : start + 1] != "{" or skip_space(text, end_of_value(text, start)) != len(text):
        raise ValueError("expected one JSON object")
    told = {member.key: member for member in members(text, start)}
    document = told.pop("document", None)
    if document is None:
        raise ValueError("it has no document")
    marks = [_member_text(told[key]) for key in _MARKS if key in told]
    return (
        msgspec.json.decode("{" + ",".join(marks) + "}", type=_Marks),
        Run.from_json(document.value_text, where="checkpoint"),
    )


_MARKS: Final = [field.encode_name for field in msgspec.structs.fields(_Marks)]


def _member_text(member: Member) -> str:
    return f"{member.key_text}:{member.value_text}"


def _restore_step(run: RunRecord, step: Step, span_id: bytes) -> None:
    status = step.status if type(step.status) is str else "pending"
    if status in TERMINAL_STEP_STATUSES:
        run.add_finished(StepRecord(step.id, _text(step.name), _text(step.type), span_id, status=status, done=step))
        return
    made = run.add_step(step.id, _text(step.name), _text(step.type), planned=True)
    made.status, made.started = status, _ns(step.started_at)
    made.attempt = int(bytes(step.attempt)) if isinstance(step.attempt, Raw) else 0
    made.input, made.error, made.retry_policy = _bytes(step.input), _bytes(step.error), _bytes(step.retry_policy)
    output = _bytes(step.output)
    made.output = None if output is None else Payload(output)
    made.extra, made.attempts = _without_attempts(step.extra)


def _without_attempts(extra: bytes) -> tuple[bytes, list[Attempt]]:
    """The unknown members of a step that goes on, as they were, and its attempts, which were among them."""
    if not extra:
        return b"", []
    rest: list[str] = []
    attempts: list[Attempt] = []
    for member in members("{" + extra.decode() + "}", 0):
        if member.key != "attempts":
            rest.append(_member_text(member))
        elif member.value_text.startswith("["):
            listed = elements(member.value_text, 0)
            attempts = [_attempt(told.value_text, position) for position, told in enumerate(listed, 1)]
    return ",".join(rest).encode(), attempts


def _attempt(text: str, position: int) -> Attempt:
    told = {member.key: member.value_text for member in members(text, 0)} if text.startswith("{") else {}
    started = _ns(_string(told.get("startedAt"))) or 0
    ended = _ns(_string(told.get("completedAt")))
    error = told.get("error")
    return Attempt(
        position,
        started,
        started if ended is None else ended,
        # Whoever was at work on an attempt without an end is gone.
        "failed" if ended is None else _string(told.get("status")),
        None if error is None else error.encode(),
    )


def _string(text: str | None) -> str:
    return string_value(text) if text is not None and text.startswith('"') else ""


def _text(value: object) -> str | UnsetType:
    return value if type(value) is str else UNSET


def _ns(value: object) -> int | None:
    return parse_ns(value) if type(value) is str else None


def _bytes(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, Raw) else None
