"""The resolve use case: the end of a run whose engine died, a correction that says who wrote it; no I/O, no clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from runspan.codec.decode import verify_run
from runspan.codec.encode import encode
from runspan.codec.fields import observed_time
from runspan.errors import ConfigError
from runspan.model.document import (
    TERMINAL_RUN_STATUSES,
    Envelope,
    Run,
    run_text,
    str_or_none,
    time_ns,
    with_extra_run,
)
from runspan.model.span import Span
from runspan.model.timestamps import MILLISECOND, canonical_text

RESOLUTIONS: Final = ("cancelled", "timed_out")
"""The statuses that a person can give a run. Only its engine knows whether it completed or failed."""


def resolve(
    spans: Sequence[Span], *, status: str, by: str, why: str = "", now: int, force: bool = False
) -> tuple[Run, Span]:
    """Return the run with an end, and the span that writes it as a correction.

    The document gets the status, ``completedAt``, ``durationMs`` and an ``error`` that says who ended it and when the
    run was last observed. Everything else stays as it was last observed, so open steps stay open.

    - ``spans``: those of the run's trace. Its steps are not written again.
    - ``by``, ``why``: the person, and the reason in their words.
    - ``now``: nanoseconds since 1970.
    - ``force``: whether a run that has ended gets another end.

    Raises NotFound, TraceIncomplete, and ConfigError for a run that has ended.
    """
    verified = verify_run(spans)
    envelope = verified.run.envelope
    before = str_or_none(envelope.status) or "unknown"
    if before in TERMINAL_RUN_STATUSES and not force:
        raise ConfigError(
            where=f"run {envelope.id}",
            expected="a run that has not ended",
            got=f"one that is {before}",
            hint="--force writes another end, which ranks above the one that is there",
        )
    now -= now % MILLISECOND
    error = _error(envelope, status, by, why, observed_time(verified.revision))
    changes: dict[str, object] = {"status": status, "completed_at": canonical_text(now), "error": Raw(error)}
    started = time_ns(envelope.started_at)
    if started is not None:
        changes["duration_ms"] = Raw(str(max(0, now - started) // MILLISECOND).encode())
    run = Run.from_json(run_text(with_extra_run(replace(envelope, **changes), envelope.extra)))
    *_, revision = encode(run, tenant=verified.tenant, observed_at=now, after_root=True, step_ids=verified.step_ids)
    return run, revision


def _error(envelope: Envelope, status: str, by: str, why: str, observed_at: int) -> bytes:
    """Return the error object, in which an earlier error keeps its text."""
    reason = f": {why}" if why else ""
    members: dict[str, str | None] = {
        "code": status.upper(),
        "message": f"ended as {status} by {by} with runspan resolve{reason}",
        "resolvedBy": by,
    }
    if observed_at:
        members["lastObservedAt"] = canonical_text(observed_at - observed_at % MILLISECOND)
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    before = b"null" if envelope.error is UNSET else bytes(envelope.error)
    return text if before == b"null" else text[:-1] + b',"error":' + before + b"}"
