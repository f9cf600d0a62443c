"""Proves the next revision of a run that grows from the one before; no I/O, no clock.

A run of hundreds of steps is sent with each of them. Its text begins with the members and the finished steps that it
had before, and its digest goes on from there, so what both revisions have in common is not looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from msgspec.structs import replace

from runspan.codec import fields
from runspan.codec.attributes import AttributeDecodeError, decode_extra, decode_members, decode_step, read_attributes
from runspan.codec.decode import VerifiedRun, read_manifest, read_open_steps
from runspan.errors import DocumentError
from runspan.model.document import Envelope, Run, Step, parse_document, run_text, step_text, with_extra_run
from runspan.model.span import Span, run_ids

_NO_ID = b""
_END = b"]}"


@dataclass(frozen=True, slots=True)
class Front:
    """The front of a plain document, which its next revision is likely to have too."""

    head: bytes
    """The text before the first step."""
    steps: int
    """How many steps follow, all of which are finished."""
    size: int
    """The bytes of head and steps."""
    digest: Any
    """The SHA-256 object of these bytes, to be copied."""

    @classmethod
    def of(cls, run: Run, manifest: Sequence[bytes], before: Front | None = None) -> Front:
        """Return the front of a plain document with a list of steps.

        manifest: the span ids of its steps, empty for an open step. before: a front that it has.
        """
        head = _head(run.envelope)
        steps = manifest.index(_NO_ID) if _NO_ID in manifest else len(manifest)
        rest = b",".join([step_text(step) for step in _steps(run)[steps:]])
        size = len(run.text) - len(_END) - len(rest) - bool(rest and steps)
        if before is None or before.size > size:
            return cls(head, steps, size, sha256(run.text[:size]))
        digest = before.digest.copy()
        digest.update(run.text[before.size : size])
        return cls(head, steps, size, digest)


class Growth(NamedTuple):
    """A revision that was proved from the one before."""

    verified: VerifiedRun
    front: Front
    shared: int
    """How many bytes at the front of the document the one before is known to have too."""
    digest: bytes
    """SHA-256 of the document."""


def verify_growth(
    span: Span, arrived: Sequence[Span], before: Run, before_ids: Sequence[bytes], front: Front
) -> Growth | None:
    """Return the revision of a revision span, whose steps an earlier revision has or have arrived.

    ``before``: the earlier revision, with its manifest ``before_ids`` and its ``front``.

    Returns None if the revision cannot be verified so, if it lacks a finished step of the earlier one, and for
    documents that are not plain; ``verify_run`` may verify these.
    """
    attributes = read_attributes(span)
    run_id, tenant, revision = before.id, attributes.get(fields.TENANT, ""), attributes.get(fields.REVISION)
    identity = attributes.get(fields.ROLE), attributes.get(fields.RUN_ID)
    if identity != (fields.ROLE_REVISION, run_id) or not before.plain:
        return None
    if type(tenant) is not str or type(revision) is not int or run_ids(run_id, tenant).trace_id != span.trace_id:
        return None
    try:
        new = {step.span_id: decode_step(step, read_attributes(step)) for step in arrived}
        manifest = read_manifest(attributes, before_ids[: front.steps])
        if manifest is None:
            return None
        values = decode_members(attributes, fields.RUN_TABLE, span, has_end=False)
        steps = [*new.values(), *read_open_steps(attributes, manifest.count(_NO_ID))]
        # A document without the known steps shows how the members and the new steps are parsed.
        part = with_extra_run(Envelope(id=run_id, steps=steps, **values), decode_extra(attributes, fields.RUN_EXTRA))
        part_text = run_text(part)
        envelope, text, plain = parse_document(part_text)
    except (AttributeDecodeError, DocumentError):
        return None
    parsed = envelope.steps
    if not plain or text != part_text or type(parsed) is not list or len(parsed) != len(steps):
        return None
    kept = front.steps if manifest[: front.steps] == before_ids[: front.steps] else 0
    stored = _steps(before)
    known = {span_id: step for span_id, step in zip(before_ids[kept:], stored[kept:], strict=True) if span_id}
    if len(new) < len(arrived) or not new.keys().isdisjoint(known):
        return None
    known.update(zip(new, parsed, strict=False))
    opened = iter(parsed[len(new) :])
    try:
        rest = [known.pop(span_id) if span_id else next(opened) for span_id in manifest[kept:]]
    except KeyError:
        return None
    if known:
        return None
    head = _head(envelope)
    # Copied once, since there is one step more each time.
    front_steps = memoryview(before.text)[len(front.head) : front.size if kept else len(front.head)]
    comma = b"," if kept and rest else b""
    text = b"".join((head, front_steps, comma, b",".join(map(step_text, rest)), _END))
    same = front if kept and head == front.head else None
    digest = sha256() if same is None else same.digest.copy()
    digest.update(text if same is None else text[same.size :])
    if digest.hexdigest() != attributes.get(fields.DIGEST):
        return None
    run = Run(replace(envelope, steps=[*stored[:kept], *rest]), text, plain)
    verified = VerifiedRun(run, tenant, revision, manifest, span.start)
    return Growth(verified, Front.of(run, manifest, same), 0 if same is None else same.size, digest.digest())


def _steps(run: Run) -> list[Step]:
    steps = run.envelope.steps
    return steps if type(steps) is list else []


def _head(envelope: Envelope) -> bytes:
    """Return the text of a plain document before its first step."""
    return run_text(replace(envelope, steps=[]))[: -len(_END)]
