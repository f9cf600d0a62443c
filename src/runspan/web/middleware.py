"""``Middleware``: response headers, metrics and the access log, and ``GET /api/v1/runs/{id}`` without the framework."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from runspan.contracts import Document
from runspan.errors import NotFound
from runspan.web.api_keys import RUNS_READ
from runspan.web.errors import JSON
from runspan.web.request import AppContext

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("runspan.access")

SECURITY_HEADERS: Final[dict[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Defaults for every response; a view may set its own values, as pages and static files do."""

RUN_PATH: Final = "/api/v1/runs/"
RUN_RULE: Final = RUN_PATH + "<run_id:run_id>"

ERROR_KEY: Final = "runspan.error"
"""In the WSGI environment: the error of a request for a run, for the view to raise."""

INCOMPLETE: Final = "X-Runspan-Incomplete"
"""Header of a run: what is missing of a newer revision than this one."""
CONFLICT: Final = "X-Runspan-Conflict"
"""Header of a run: the digests of other documents that were sent as the same revision."""
PARTIAL: Final = "X-Runspan-Partial"
"""Header of a list: the lines of ``meta.partial``."""
_MAX_CONFLICTS: Final = 10
_MAX_LOGGED: Final = 300
"""Characters of a method or a path in the access log."""


class Middleware:
    """The outermost layer: response headers, metrics and the access log, and ``GET /api/v1/runs/{id}``.

    It also covers the responses that no view made. The access log contains the client address, the method, the quoted
    path, the status and the time: no headers and no query, so no keys and no filters.

    A run is answered here, since the framework costs several times what the store needs. The view raises any error
    again, so that error handling exists once.
    """

    def __init__(self, application: WSGIApplication, context: AppContext) -> None:
        self._application = application
        self._context = context
        self._headers = list(SECURITY_HEADERS.items())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begin = perf_counter()
        document = self._find_document(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            present = {name for name, _ in headers}
            headers = headers + [pair for pair in self._headers if pair[0] not in present]
            seconds = perf_counter() - begin
            method = environ["REQUEST_METHOD"]
            route = _route_of(environ) if document is None else RUN_RULE
            self._context.metrics.observe_request(route, method, status[:3], seconds)
            if self._context.config.access_log:
                address, path = environ.get("REMOTE_ADDR", "-"), environ.get("PATH_INFO", "")[:_MAX_LOGGED]
                method = method[:_MAX_LOGGED]
                logger.info("%s %s %r %s %.1f ms", address, method, path, status[:3], seconds * 1000)
            return start_response(status, headers, exc_info)

        if document is None:
            return self._application(environ, start)
        body = document_body(document)
        start("200 OK", [*document_headers(document), ("Content-Length", str(len(body)))])
        return [body]

    def _find_document(self, environ: WSGIEnvironment) -> Document | None:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or not path.startswith(RUN_PATH) or path.endswith(("/trace", RUN_PATH)):
            return None
        try:
            principal = self._context.authenticator.authorize(environ, RUNS_READ)
            return self._context.reader.document(utf8_path(environ)[len(RUN_PATH) :], principal.tenant)
        except Exception as error:
            environ[ERROR_KEY] = error
            return None


def _route_of(environ: WSGIEnvironment) -> str:
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return "unmatched" if rule is None else str(rule.rule)


def utf8_path(environ: WSGIEnvironment) -> str:
    """Return the path. Raises NotFound if it is not UTF-8: the framework's replacement characters name another run."""
    try:
        path: str = environ["PATH_INFO"]
        return path.encode("latin-1").decode()  # WSGI passes bytes as Latin-1
    except UnicodeError:
        raise NotFound("no such run", expected="a path in UTF-8") from None


def document_body(document: Document) -> bytes:
    """Return the platform's envelope around the document's own bytes, which are never parsed or rewritten."""
    return b'{"success":true,"data":' + document.text + b"}"


def document_headers(document: Document) -> list[tuple[str, str]]:
    """Return the content type, what is missing of a newer revision, and the digests of conflicting documents."""
    notes = note_header(INCOMPLETE, document.incomplete) | note_header(CONFLICT, document.conflict[:_MAX_CONFLICTS])
    return [("Content-Type", JSON), *notes.items()]


def note_header(header: str, lines: Sequence[str]) -> dict[str, str]:
    """Return a header that contains the lines in ASCII, or no header if there are none."""
    if not lines:
        return {}
    note = "; ".join(lines)[:1000].encode("ascii", "backslashreplace").decode()
    return {header: "".join(character if character.isprintable() else " " for character in note)}
