"""``Run``: a run document as the package hands it about; no I/O."""

from __future__ import annotations

import json
from typing import Any

from runspan.model.document import TERMINAL_RUN_STATUSES, Envelope, Step, summary_text, unquote
from runspan.model.parse import parse_document, text_of


class Run:
    """A run document. Made by ``Run.from_json``; immutable.

    text: the canonical text, UTF-8. envelope: the members; ``envelope.steps`` are ``Step``s. plain: surely without
    unknown members and members of another type than the platform writes.
    """

    __slots__ = ("envelope", "plain", "text")

    def __init__(self, envelope: Envelope, text: bytes, plain: bool = False) -> None:
        self.envelope = envelope
        self.text = text
        self.plain = plain

    @classmethod
    def from_json(cls, data: bytes | str, *, where: str = "") -> Run:
        """Parse one document. DocumentError names the place when it cannot be carried exactly."""
        return cls(*parse_document(data, where=where))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Run:
        """The document of a plain dict; NaN and what JSON has no word for are refused."""
        return cls(*parse_document(text_of(document)))

    def to_json(self) -> bytes:
        """The canonical text, UTF-8."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for reading: numbers beyond a float's precision are rounded here, never in ``text``."""
        document: dict[str, Any] = json.loads(self.text)
        return document

    @property
    def id(self) -> str:
        return self.envelope.id

    @property
    def workflow_id(self) -> str | None:
        return unquote(self.envelope.workflow_id)

    @property
    def status(self) -> str | None:
        return unquote(self.envelope.status)

    @property
    def finished(self) -> bool:
        """Whether the status is one that no run leaves by itself."""
        return self.status in TERMINAL_RUN_STATUSES

    @property
    def steps(self) -> tuple[Step, ...]:
        steps = self.envelope.steps
        return tuple(steps) if type(steps) is list else ()

    def summary(self) -> bytes:
        """The list item of this run, JSON without steps and payloads; members absent here are left out."""
        return summary_text(self.envelope)

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Run {self.id!r} {self.status} {len(self.steps)} steps {len(self.text)} bytes>"
