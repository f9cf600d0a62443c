"""A document as a response: its own bytes between two constant pieces, never parsed or written again on its way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from runspan.contracts import Document
from runspan.web.errors import JSON

INCOMPLETE: Final = "X-Runspan-Incomplete"
PARTIAL: Final = "X-Runspan-Partial"
_HEADERS: Final = [("Content-Type", JSON)]


def document_body(document: Document) -> bytes:
    """The platform's envelope around a document."""
    return b'{"success":true,"data":' + document.text + b"}"


def document_headers(document: Document) -> list[tuple[str, str]]:
    """Content type, and what is missing of a newer revision."""
    return [*_HEADERS, *noted(INCOMPLETE, document.incomplete).items()] if document.incomplete else _HEADERS


def noted(header: str, lines: Sequence[str]) -> dict[str, str]:
    """A header that tells lines in ASCII, or none without lines."""
    if not lines:
        return {}
    note = "; ".join(lines)[:1000].encode("ascii", "backslashreplace").decode()
    return {header: "".join(character if character.isprintable() else " " for character in note)}
