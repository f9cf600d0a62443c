"""The most asked question, a run by its id, answered before the framework wakes up; everything else is handed on.

A request through the framework costs several times what the store needs for the document. Only the plain answer is
given here: whatever goes wrong is raised again by the view, which tells it in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from runspan.web.access import ADMITTED
from runspan.web.documents import document_body, document_headers
from runspan.web.keys import RUNS_READ
from runspan.web.parts import Parts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PREFIX: Final = "/api/v1/runs/"
RULE: Final = "runspan.rule"
"""In the environment: the rule of the route that answered, for the metrics."""
FAILED: Final = "runspan.failed"
"""In the environment: the error that came of the question, for the view to raise."""


class DirectReads:
    """Wraps the application. rule: the rule of the view that would answer."""

    def __init__(self, application: WSGIApplication, parts: Parts, rule: str) -> None:
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
            caller = self._access.admit_environ(environ, RUNS_READ)
            environ[ADMITTED] = caller
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
