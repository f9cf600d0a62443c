"""A run that waits, as JSON, and the run again of it: in another process, hours later."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runspan.document import TERMINAL_STEP_STATUSES, Step
from runspan.recorder.record import Attempt, RunRecord, StepRecord
from runspan.recorder.values import Payload, object_text
from runspan.run import Run
from runspan.times import parse_ns


def checkpoint(record: RunRecord) -> bytes:
    """What ``restored`` makes the run of again; JSON. It holds the document, and which span each finished step is."""
    with record.lock:
        document = record.document()
        names = [step.span_id.hex() for step in record.steps]
        told = _Checkpoint(record.tenant, record.revision, names, Raw(document.text))
    return msgspec.json.encode(told)


class _Checkpoint(msgspec.Struct, rename="camel"):
    tenant: str
    revision: int
    span_ids: list[str]
    document: Raw


class _Attempt(msgspec.Struct, rename="camel"):
    attempt: int = 0
    status: str = ""
    started_at: str = ""
    completed_at: str = ""
    error: Raw = Raw()


def restored(checkpoint: bytes | str, epoch: int) -> RunRecord:
    """The run of a checkpoint. epoch: the time now: what is done again is another span than what may have been sent.

    ValueError when it is no checkpoint, or one of a run that has ended.
    """
    try:
        told = msgspec.json.decode(checkpoint, type=_Checkpoint)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a checkpoint of a run: {error}") from None
    run = Run.from_json(bytes(told.document), where="checkpoint")
    if run.finished or len(told.span_ids) != len(run.steps):
        raise ValueError(
            f"run {run.id} has ended" if run.finished else "not a checkpoint of a run: span ids are missing"
        )
    envelope = run.envelope
    made = RunRecord(run.id, _text(envelope.workflow_id), told.tenant, epoch)
    made.status = run.status or "running"
    made.trigger = _text(envelope.trigger_type)
    made.created = _ns(envelope.created_at) or epoch
    made.started = _ns(envelope.started_at)
    made.input, made.output, made.error = _bytes(envelope.input), _bytes(envelope.output), _bytes(envelope.error)
    made.extra = envelope.extra
    made.revision = told.revision
    made.latest = max(made.created, made.started or 0)
    for step, name in zip(run.steps, told.span_ids, strict=True):
        made.steps.append(_restored_step(made, step, bytes.fromhex(name)))
    return made


def _restored_step(run: RunRecord, step: Step, span_id: bytes) -> StepRecord:
    status = step.status if type(step.status) is str else "pending"
    if status in TERMINAL_STEP_STATUSES:
        return StepRecord(step.id, _text(step.name), _text(step.type), span_id, status=status, done=step)
    made = run.add_step(step.id, _text(step.name), _text(step.type), planned=True)
    run.steps.pop()
    made.status, made.started = status, _ns(step.started_at)
    made.attempt = int(bytes(step.attempt)) if isinstance(step.attempt, Raw) else 0
    made.input, made.error, made.retry_policy = _bytes(step.input), _bytes(step.error), _bytes(step.retry_policy)
    output = _bytes(step.output)
    made.output = None if output is None else Payload(output, _keys(output))
    made.extra, made.attempts = _without_attempts(step.extra)
    return made


def _without_attempts(extra: bytes) -> tuple[bytes, list[Attempt]]:
    if not extra:
        return b"", []
    members = msgspec.json.decode(b"{" + extra + b"}", type=dict[str, Raw])
    listed = members.pop("attempts", None)
    rest = object_text({key: bytes(value) for key, value in members.items()})[1:-1]
    attempts = []
    for position, told in enumerate(msgspec.json.decode(listed or b"[]", type=list[_Attempt]), 1):
        started = _ns(told.started_at) or 0
        ended = _ns(told.completed_at)
        # Whoever was at work on an attempt without an end is gone.
        status = told.status if ended is not None else "failed"
        attempts.append(Attempt(position, started, ended or started, status, bytes(told.error) or None))
    return rest, attempts


def _keys(text: bytes) -> frozenset[str] | None:
    return frozenset(msgspec.json.decode(text, type=dict[str, Raw])) if text.startswith(b"{") else None


def _text(value: object) -> str | UnsetType:
    return value if type(value) is str else UNSET


def _ns(value: object) -> int | None:
    return parse_ns(value) if type(value) is str else None


def _bytes(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, Raw) else None
