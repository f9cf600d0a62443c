"""The response to a request for a run document: its exact bytes, its validator, and its content coding."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from werkzeug.http import parse_etags

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import DocumentVersion
from runspan.web.content_coding import Negotiated, negotiate
from runspan.web.errors import JSON
from runspan.web.request import AppContext

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

INCOMPLETE: Final = "X-Runspan-Incomplete"
"""Header of a run: what is missing of a newer revision than this one."""
CONFLICT: Final = "X-Runspan-Conflict"
"""Header of a run: the digests of other documents that were sent as the same revision."""
REVALIDATE: Final = "private, no-cache"
"""``Cache-Control`` of a run: the client's own cache may keep it, and asks each time whether it may be used."""
_MAX_CONFLICTS: Final = 10


class RunResponse(NamedTuple):
    """A response with a run document, or with the news that the client has it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


def run_response(context: AppContext, environ: WSGIEnvironment, run_id: str, tenant: str) -> RunResponse:
    """Return the response to a GET of a run. Raises as ``TraceReader.document``.

    A client that sends the entity tag of the stored document gets 304 before the document is read.
    """
    negotiated = negotiate(environ.get("HTTP_ACCEPT_ENCODING"))
    known = environ.get("HTTP_IF_NONE_MATCH")
    reader = context.reader
    if known and isinstance(reader, SqliteStore):
        version = reader.version(run_id, tenant)
        if version is not None and _is_known(version, known):
            return RunResponse("304 NOT MODIFIED", _headers(version, negotiated), b"")
    document = reader.document(run_id, tenant)
    version = document.version()
    headers = _headers(version, negotiated)
    if known and _is_known(version, known):
        return RunResponse("304 NOT MODIFIED", headers, b"")
    # The platform's envelope around the document's own bytes, which are never parsed or rewritten.
    body = b'{"success":true,"data":' + document.text + b"}"
    coding = negotiated.coding_of(len(body))
    if coding is not None:
        with context.turn(tenant, len(body)):
            body = coding.encode(body)
        headers.append(("Content-Encoding", coding.name))
    headers += (("Content-Type", JSON), ("Content-Length", str(len(body))))
    return RunResponse("200 OK", headers, body)


def _headers(version: DocumentVersion, negotiated: Negotiated) -> list[tuple[str, str]]:
    """Return the headers that a 304 repeats.

    The entity tag is strong for a client that gets the bytes as they are. In a content coding the same document may
    have other bytes tomorrow, so it is weak (RFC 9110, section 8.8.3).
    """
    tag = f'"{_opaque_tag(version)}"'
    return [
        ("ETag", tag if negotiated.coding is None else f"W/{tag}"),
        ("Cache-Control", REVALIDATE),
        ("Vary", "Accept-Encoding"),
        *note_header(INCOMPLETE, version.incomplete).items(),
        *note_header(CONFLICT, version.conflict[:_MAX_CONFLICTS]).items(),
    ]


def _opaque_tag(version: DocumentVersion) -> str:
    """Return the document's digest; with notes in the headers also theirs, since a cache keeps headers too."""
    if not version.incomplete and not version.conflict:
        return version.digest
    notes = repr((version.incomplete, version.conflict)).encode("utf-8", "backslashreplace")
    return f"{version.digest}-{sha256(notes).hexdigest()[:16]}"


def _is_known(version: DocumentVersion, if_none_match: str) -> bool:
    return parse_etags(if_none_match).contains_weak(_opaque_tag(version))


def note_header(header: str, lines: Sequence[str]) -> dict[str, str]:
    """Return a header that contains the lines in ASCII, or no header if there are none."""
    if not lines:
        return {}
    note = "; ".join(lines)[:1000].encode("ascii", "backslashreplace").decode()
    return {header: "".join(character if character.isprintable() else " " for character in note)}
