"""The responses to requests for a run document and for a list of runs, made without the framework.

A document has its exact bytes, a validator and a content coding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import BaseModel
from werkzeug.http import parse_etags

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Cursor, DocumentVersion
from runspan.errors import QueryError
from runspan.model.timestamps import rfc3339
from runspan.web.content_coding import Negotiated, negotiate
from runspan.web.errors import JSON
from runspan.web.request import AppContext
from runspan.web.schemas import Meta, RunsQuery

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

INCOMPLETE: Final = "X-Runspan-Incomplete"
"""Header of a run: what is missing of a newer revision than this one."""
CONFLICT: Final = "X-Runspan-Conflict"
"""Header of a run: the digests of other documents that were sent as the same revision."""
OBSERVED_AT: Final = "X-Runspan-Observed-At"
"""Header of a run that has not ended: when it was last observed, as RFC 3339 text."""
PARTIAL: Final = "X-Runspan-Partial"
"""Header of a list: the lines of ``meta.partial``."""
REVALIDATE: Final = "private, no-cache"
"""``Cache-Control`` of a run: the client's own cache may keep it, and asks each time whether it may be used."""
_MAX_CONFLICTS: Final = 10
_Query = TypeVar("_Query", bound=BaseModel)


class PlainResponse(NamedTuple):
    """A response before the headers that all have."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


def run_response(context: AppContext, environ: WSGIEnvironment, run_id: str, tenant: str) -> PlainResponse:
    """Return the response to a GET of a run. Raises as ``TraceReader.document``.

    A client that sends the entity tag of the stored document gets 304 before the document is read.
    """
    negotiated = negotiate(environ.get("HTTP_ACCEPT_ENCODING"))
    known = environ.get("HTTP_IF_NONE_MATCH")
    reader = context.reader
    if known and isinstance(reader, SqliteStore):
        version = reader.version(run_id, tenant)
        if version is not None and _is_known(version, known):
            return PlainResponse("304 NOT MODIFIED", _headers(version, negotiated), b"")
    document = reader.document(run_id, tenant)
    version = document.version()
    headers = _headers(version, negotiated)
    if known and _is_known(version, known):
        return PlainResponse("304 NOT MODIFIED", headers, b"")
    # The platform's envelope around the document's own bytes, which are never parsed or rewritten.
    body = b'{"success":true,"data":' + document.text + b"}"
    return _success(context, negotiated, headers, body, tenant)


def list_response(context: AppContext, environ: WSGIEnvironment, tenant: str) -> PlainResponse:
    """Return the response to a GET of a list. Raises as ``TraceReader.search`` and ``query_parameters``."""
    text = environ.get("QUERY_STRING", "").encode("latin-1").decode(errors="replace")  # WSGI passes bytes as Latin-1
    pairs = parse_qsl(text, keep_blank_values=True, errors="werkzeug.url_quote") if text else ()
    query = query_parameters(RunsQuery, pairs)
    cursor = None if query.cursor is None else Cursor.parse(query.cursor)
    page = context.reader.search(query.run_query(tenant, context.clock(), limit=query.limit, cursor=cursor))
    token = page.cursor.token() if page.cursor else None
    meta = Meta(cursor=token, hasMore=token is not None, **query.extensions())
    if page.partial:
        meta.partial = list(page.partial)
    meta_text = meta.model_dump_json(exclude_unset=True, by_alias=True).encode()
    if query.q is not None:
        meta_text = b'%b,"matches":%b}' % (meta_text[:-1], msgspec.json.encode(page.matches))
    body = b'{"success":true,"data":[%b],"meta":%b}' % (b",".join(page.items), meta_text)
    headers = [("Vary", "Accept-Encoding"), *note_header(PARTIAL, page.partial).items()]
    return _success(context, negotiate(environ.get("HTTP_ACCEPT_ENCODING")), headers, body, tenant)


def query_parameters(schema: type[_Query], pairs: Iterable[tuple[str, str]]) -> _Query:
    """Return the parameters of a query string. Raises QueryError or pydantic's ValidationError."""
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values and name in schema.model_fields:
            raise QueryError(where=name, expected="one value", got="several of them")
        values.setdefault(name, value)
    return schema.model_validate(values)


def _success(
    context: AppContext, negotiated: Negotiated, headers: list[tuple[str, str]], body: bytes, tenant: str
) -> PlainResponse:
    coding = negotiated.coding_of(len(body))
    if coding is not None:
        with context.turn(tenant, len(body)):
            body = coding.encode(body)
        headers.append(("Content-Encoding", coding.name))
    headers += (("Content-Type", JSON), ("Content-Length", str(len(body))))
    return PlainResponse("200 OK", headers, body)


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
        *(() if version.observed_at is None else ((OBSERVED_AT, rfc3339(version.observed_at)),)),
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
