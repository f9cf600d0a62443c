"""The table: which member of a run document is which span attribute, and how it is carried; no I/O.

``encode`` and ``decode`` both walk these rows, so a member cannot be added in one direction only, and a test holds the
rows to the members of ``model.document.Envelope`` and ``model.document.Step``.
"""

from __future__ import annotations

from enum import Enum, auto
from operator import attrgetter
from typing import Final, NamedTuple

ROLE: Final = "runspan.role"
ROLE_RUN: Final = "run"
ROLE_REVISION: Final = "snapshot"
ROLE_STEP: Final = "step"
ROLE_ATTEMPT: Final = "attempt"

RUN_ID: Final = "runspan.run.id"
WORKFLOW_ID: Final = "runspan.workflow.id"
TENANT: Final = "runspan.tenant"

REVISION: Final = "runspan.revision"
"""On run and snapshot spans, an integer. Of all spans in a trace that have it, the highest tells the document."""
ROOT_REVISION: Final = 1 << 62
"""The run span's own. Snapshots of an unfinished run have the time of observation in nanoseconds, which stays below;
revisions of a finished run have both added up, which stays below 2**63."""


def observed_time(revision: int) -> int:
    """When the document of a snapshot was seen, nanoseconds since 1970: what its revision tells. Of a root it is 0."""
    return revision - ROOT_REVISION if revision >= ROOT_REVISION else revision


DIGEST: Final = "runspan.digest"
"""On run and snapshot spans: hex SHA-256 of the document's canonical text."""
STEP_COUNT: Final = "runspan.run.step_count"
"""How many steps the document lists; absent when it has no ``steps`` or ``null``."""
MANIFEST: Final = "runspan.run.steps"
"""The steps in their order: 16 hex digits each, the id of the step's span, or ``OPEN``."""
OPEN_STEP_MARK: Final = "." * 16
"""In the manifest: a step that has not ended. Its text stands in ``OPEN_STEPS``."""
OPEN_STEPS: Final = "runspan.run.open_steps"
"""A JSON array of the steps that have not ended, in their order."""
RUN_EXTRA: Final = "runspan.run.extra"
STEP_EXTRA: Final = "runspan.step.extra"
"""A JSON object of the unknown members, in their order."""

NON_CANONICAL: Final = ".json"
"""Appended to an attribute's name: the member's JSON text, where the usual form cannot carry it."""
PARTS: Final = ".parts"
"""Appended to an attribute's name: how many pieces its text was cut into. Piece n > 0 is called ``name.n``."""
ABSENT: Final = "absent"
"""In the ``.json`` attribute of a time: the document has none. No JSON text reads so."""
MAX_ATTRIBUTE_BYTES: Final = 2000
"""The longest string attribute that we write. Tempo silently cuts at 2048 bytes."""


class FieldKind(Enum):
    """How a member is carried. In every case its JSON text goes to ``name.json`` when the usual form cannot hold it."""

    LABEL = auto()
    """A string with few values, as a string attribute; encoded once for all spans that share it."""
    TEXT = auto()
    """A string, as a string attribute."""
    INTEGER = auto()
    """An integer of 64 bits in its shortest text, as an integer attribute."""
    START = auto()
    """A canonical timestamp, as the span's start."""
    END = auto()
    """A canonical timestamp, as the span's end."""
    PAYLOAD = auto()
    """Any JSON, as its own text in a string attribute."""


class Field(NamedTuple):
    """One row: the member's name in the Python class, the attribute's name, the way it is carried."""

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
"""A run's members but ``id`` (``RUN_ID``, on every span) and ``steps`` (the manifest)."""

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
"""All of a step's members."""


class Table:
    """The rows of one table by kind, each with a getter that reads their members at once."""

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

KEYS: Final = frozenset(
    {ROLE, RUN_ID, TENANT, REVISION, DIGEST, STEP_COUNT, MANIFEST, OPEN_STEPS, RUN_EXTRA, STEP_EXTRA}
    | {field.key for field in RUN_FIELDS + STEP_FIELDS}
)
"""Every attribute that the decoder reads, without the endings ``.json``, ``.parts`` and ``.n``."""
