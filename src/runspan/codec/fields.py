"""The table of document members and their span attributes; no I/O.

``encode`` and ``decode`` use the same rows, so a member cannot be added in one direction only. A test compares the rows
with the members of ``model.document.Envelope`` and ``model.document.Step``.
"""

from __future__ import annotations

from enum import Enum, auto
from operator import attrgetter
from typing import Final, NamedTuple

ROLE: Final = "runspan.role"
ROLE_RUN: Final = "run"
ROLE_REVISION: Final = "revision"
ROLE_LIVE: Final = "live"
ROLE_STEP: Final = "step"
ROLE_OPEN_STEP: Final = "open_step"
ROLE_ATTEMPT: Final = "attempt"

SCOPE_RUN: Final = "runspan.run"
SCOPE_REVISION: Final = "runspan.revision"
SCOPE_LIVE: Final = "runspan.live"
SCOPE_STEP: Final = "runspan.step"
SCOPE_COPY: Final = "runspan.copy"
"""The instrumentation scopes: backends find run and revision spans by these, which costs less than an attribute."""

RUN_ID: Final = "runspan.run.id"
WORKFLOW_ID: Final = "runspan.workflow.id"
TENANT: Final = "runspan.tenant"

REVISION: Final = "runspan.revision"
"""The revision number on revision spans, an integer. The span with the highest one carries the current document."""
ROOT_REVISION: Final = 1 << 62
"""The revision of the run span.

Snapshots of an unfinished run have the time of observation in nanoseconds, which is less. Later revisions of a finished
run have the sum of both, which is less than 2**63.
"""


def observed_time(revision: int) -> int:
    """Return when the document of a snapshot was observed, in nanoseconds since 1970; 0 for the run span."""
    return revision - ROOT_REVISION if revision >= ROOT_REVISION else revision


DIGEST: Final = "runspan.digest"
"""On revision spans: the hex SHA-256 of the document's canonical text."""
SUMMARY_DIGEST: Final = "runspan.summary.digest"
"""On revision spans: a digest of what a list shows and is filtered by, so that it is verified without the steps."""
OBSERVED_AT: Final = "runspan.observed_at"
"""On revision spans that are not the root: when the document was observed, as RFC 3339 text for people."""
STEP_COUNT: Final = "runspan.run.step_count"
"""The number of steps of the document; absent if ``steps`` is absent or ``null``."""
MANIFEST: Final = "runspan.run.steps"
"""The manifest: for each step in order 16 hex digits, the id of its span, or ``OPEN_STEP_MARK``."""
OPEN_STEP_MARK: Final = "." * 16
"""In the manifest: an open step. Its text is in ``OPEN_STEPS``."""
OPEN_STEPS: Final = "runspan.run.open_steps"
"""A JSON array of the open steps in order."""
MODELS: Final = "runspan.run.models"
STEP_TYPES: Final = "runspan.run.step_types"
LABEL_SETS: Final = (MODELS, STEP_TYPES)
"""On revision spans: the models that the run used, and the types of its steps; lists are filtered by them without the
steps. Each is a JSON array of different strings, sorted by code points, and absent if it is empty."""
MANY: Final = "many"
"""A label set that is too long for one attribute. Every array begins with a bracket."""
RUN_EXTRA: Final = "runspan.run.extra"
STEP_EXTRA: Final = "runspan.step.extra"
"""A JSON object of the unknown members in order."""

NON_CANONICAL: Final = ".json"
"""Suffix of a key: the attribute is the JSON text of a member that is not in its canonical form."""
SIZE: Final = ".bytes"
"""Suffix of a key: the length of a text that is too long for one attribute. Its pieces are in span events."""
PREVIEW: Final = ".preview"
"""Suffix of a key: the beginning of such a text, for people; it ends in an ellipsis."""
TEXT_KEY: Final = "runspan.text.key"
TEXT_NUMBER: Final = "runspan.text.number"
TEXT_PIECE: Final = "runspan.text.piece."
"""The attributes of the events of a long text: its key, the number of the event from 0, and up to
``MAX_EVENT_PIECES`` numbered pieces."""
MAX_EVENT_PIECES: Final = 64
ABSENT: Final = "absent"
"""In the ``.json`` attribute of a time: the document has no such member. This is not valid JSON, so not ambiguous."""
MAX_ATTRIBUTE_BYTES: Final = 2000
"""The longest string attribute that runspan writes. Tempo silently truncates at 2048 bytes."""


class FieldKind(Enum):
    """The canonical form of a member. A value without that form is carried as JSON text in ``key.json``."""

    LABEL = auto()
    """A string with few distinct values, as a string attribute that is encoded once for all spans that share it."""
    TEXT = auto()
    """A string, as a string attribute."""
    INTEGER = auto()
    """The shortest text of a 64-bit integer, as an integer attribute."""
    START = auto()
    """A canonical timestamp, as the span's start."""
    END = auto()
    """A canonical timestamp, as the span's end."""
    PAYLOAD = auto()
    """Any JSON, as its verbatim text in a string attribute."""


class Field(NamedTuple):
    """One row: the member's name in the document class, the attribute's key and the canonical form."""

    member: str
    key: str
    kind: FieldKind


RUN_FIELDS: Final = (
    Field("workflow_id", WORKFLOW_ID, FieldKind.LABEL),
    Field("status", "runspan.run.status", FieldKind.LABEL),
    Field("trigger_type", "runspan.run.trigger_type", FieldKind.LABEL),
    Field("started_at", "runspan.run.started_at", FieldKind.START),
    Field("completed_at", "runspan.run.completed_at", FieldKind.END),
    Field("duration_ms", "runspan.run.duration_ms", FieldKind.INTEGER),
    Field("input", "runspan.run.input", FieldKind.PAYLOAD),
    Field("output", "runspan.run.output", FieldKind.PAYLOAD),
    Field("error", "runspan.run.error", FieldKind.PAYLOAD),
    Field("created_at", "runspan.run.created_at", FieldKind.TEXT),
)
"""The members of a run except ``id`` (``RUN_ID``, on every span) and ``steps`` (the manifest)."""

STEP_FIELDS: Final = (
    Field("id", "runspan.step.id", FieldKind.LABEL),
    Field("name", "runspan.step.name", FieldKind.LABEL),
    Field("type", "runspan.step.type", FieldKind.LABEL),
    Field("status", "runspan.step.status", FieldKind.LABEL),
    Field("started_at", "runspan.step.started_at", FieldKind.START),
    Field("completed_at", "runspan.step.completed_at", FieldKind.END),
    Field("duration_ms", "runspan.step.duration_ms", FieldKind.INTEGER),
    Field("attempt", "runspan.step.attempt", FieldKind.INTEGER),
    Field("input", "runspan.step.input", FieldKind.PAYLOAD),
    Field("output", "runspan.step.output", FieldKind.PAYLOAD),
    Field("error", "runspan.step.error", FieldKind.PAYLOAD),
    Field("retry_policy", "runspan.step.retry_policy", FieldKind.PAYLOAD),
)
"""All members of a step."""


class Table:
    """The rows of one table by kind, with getters that read their members at once."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.labels = [field for field in fields if field.kind is FieldKind.LABEL]
        kinds = (FieldKind.INTEGER, FieldKind.PAYLOAD, FieldKind.TEXT)
        self.start = next(field for field in fields if field.kind is FieldKind.START)
        self.end = next(field for field in fields if field.kind is FieldKind.END)
        self.get_labels = attrgetter(*[field.member for field in self.labels])
        self.values = [field for kind in kinds for field in fields if field.kind is kind]
        self.get_values = attrgetter(*[field.member for field in self.values])


RUN_TABLE: Final = Table(RUN_FIELDS)
STEP_TABLE: Final = Table(STEP_FIELDS)
SUMMARY_TABLE: Final = Table(tuple(field for field in RUN_FIELDS if field.member not in ("input", "output")))
"""The members of a list item: a list needs no payloads, which may be long or lost."""

KEYS: Final = frozenset(
    {ROLE, RUN_ID, TENANT, REVISION, DIGEST, SUMMARY_DIGEST, *LABEL_SETS}
    | {STEP_COUNT, MANIFEST, OPEN_STEPS, RUN_EXTRA, STEP_EXTRA}
    | {field.key for field in RUN_FIELDS + STEP_FIELDS}
)
"""The keys of all attributes that the decoder reads, without the suffixes ``.json``, ``.bytes`` and ``.preview``."""
