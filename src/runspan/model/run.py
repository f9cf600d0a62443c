"""The parsed, immutable run document; no I/O."""

from __future__ import annotations

import json
from typing import Any

from runspan.model.document import TERMINAL_RUN_STATUSES, Envelope, Step, str_or_none, summary_text
from runspan.model.parse import document_text, parse_document


class Run:
    """A run document. Create one with ``Run.from_json`` or ``Run.from_dict``."""

    __slots__ = ("envelope", "plain", "text")

    def __init__(self, envelope: Envelope, text: bytes, plain: bool = False) -> None:
        self.envelope = envelope
        """The members; ``envelope.steps`` are ``Step`` objects."""
        self.text = text
        """The canonical text in UTF-8."""
        self.plain = plain
        """True if the document has no unknown members and no members of another type than the platform writes."""

    @classmethod
    def from_json(cls, data: bytes | str, *, where: str = "") -> Run:
        """Parse one document. Raises DocumentError, with the place, if it cannot be carried exactly."""
        return cls(*parse_document(data, where=where))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Run:
        """Return the run of a dict. Raises DocumentError for NaN and other values that JSON cannot represent."""
        return cls(*parse_document(document_text(document)))

    def to_json(self) -> bytes:
        """Return the canonical text in UTF-8."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the document as Python values. Numbers beyond a float's precision are rounded; ``text`` keeps them."""
        document: dict[str, Any] = json.loads(self.text)
        return document

    @property
    def id(self) -> str:
        return self.envelope.id

    @property
    def workflow_id(self) -> str | None:
        return str_or_none(self.envelope.workflow_id)

    @property
    def status(self) -> str | None:
        return str_or_none(self.envelope.status)

    @property
    def finished(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL_RUN_STATUSES

    @property
    def steps(self) -> tuple[Step, ...]:
        steps = self.envelope.steps
        return tuple(steps) if type(steps) is list else ()

    def summary(self) -> bytes:
        """Return the list item of this run: JSON without steps, payloads and absent members."""
        return summary_text(self.envelope)

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Run {self.id!r} {self.status} {len(self.steps)} steps {len(self.text)} bytes>"
