"""The most asked question, a run by its id, answered before the framework wakes up; everything else is handed on.

A request through the framework costs several times what the store needs for the document. Only the plain answer is
given here: whatever goes wrong is raised again by the view, which tells it in full.

A document as a response: its own bytes between two constant pieces, never parsed or written again on its way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from runspan.contracts import Document
from runspan.web.api_keys import RUNS_READ
from runspan.web.app_context import AppContext
from runspan.web.auth import PRINCIPAL_KEY
from runspan.web.errors import JSON

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


INCOMPLETE: Final = "X-Runspan-Incomplete"
PARTIAL: Final = "X-Runspan-Partial"
_HEADERS: Final = [("Content-Type", JSON)]


def document_body(document: Document) -> bytes:
    """The platform's envelope around a document."""
    return b'{"success":true,"data":' + document.text + b"}"


def document_headers(document: Document) -> list[tuple[str, str]]:
    """Content type, and what is missing of a newer revision."""
    return [*_HEADERS, *note_header(INCOMPLETE, document.incomplete).items()] if document.incomplete else _HEADERS


def note_header(header: str, lines: Sequence[str]) -> dict[str, str]:
    """A header that tells lines in ASCII, or none without lines."""
    if not lines:
        return {}
    note = "; ".join(lines)[:1000].encode("ascii", "backslashreplace").decode()
    return {header: "".join(character if character.isprintable() else " " for character in note)}


PREFIX: Final = "/api/v1/runs/"
RULE: Final = "runspan.rule"
"""In the environment: the rule of the route that answered, for the metrics."""
FAILED: Final = "runspan.failed"
"""In the environment: the error that came of the question, for the view to raise."""


class RunFastPath:
    """Wraps the application. rule: the rule of the view that would answer."""

    def __init__(self, application: WSGIApplication, parts: AppContext, rule: str) -> None:
        self._application = application
        self._reader = parts.reader
        self._access = parts.access
        self._rule = rule

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or not path.startswith(PREFIX) or path.endswith(("/trace", PREFIX)):
            return self._application(environ, start_response)
        try:
            run_id = path[len(PREFIX) :].encode("latin-1").decode()  # as WSGI hands bytes over
            caller = self._access.authorize_environ(environ, RUNS_READ)
            environ[PRINCIPAL_KEY] = caller
            document = self._reader.document(run_id, caller.tenant)
        except UnicodeError:
            return self._application(environ, start_response)
        except Exception as error:
            environ[FAILED] = error
            return self._application(environ, start_response)
        body = document_body(document)
        environ[RULE] = self._rule
        start_response("200 OK", [*document_headers(document), ("Content-Length", str(len(body)))])
        return [body]
