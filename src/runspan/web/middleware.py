"""``Middleware``: response headers, metrics and the access log, and runs and their lists without the framework."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from runspan.errors import NotFound
from runspan.web.api_keys import RUNS_READ
from runspan.web.request import AppContext
from runspan.web.run_responses import PlainResponse, list_response, run_response

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

LIST_PATH: Final = "/api/v1/runs"
RUN_PATH: Final = "/api/v1/runs/"
RUN_RULE: Final = RUN_PATH + "<run_id:run_id>"

ERROR_KEY: Final = "runspan.error"
"""In the WSGI environment: the error of a request for runs, for the view to raise."""

_MAX_LOGGED: Final = 300
"""Characters of a method or a path in the access log."""


class Middleware:
    """The outermost layer: response headers, metrics and the access log, and ``GET /api/v1/runs``, also with an id.

    It also covers the responses that no view made. The access log contains the client address, the method, the quoted
    path, the status and the time: no headers and no query, so no keys and no filters.

    Runs and lists are answered here, since the framework costs as much as the store or more. The view raises any error
    again, so that error handling exists once.
    """

    def __init__(self, application: WSGIApplication, context: AppContext) -> None:
        self._application = application
        self._context = context
        self._headers = list(SECURITY_HEADERS.items())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begin = perf_counter()
        found = self._find(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            present = {name for name, _ in headers}
            headers = headers + [pair for pair in self._headers if pair[0] not in present]
            seconds = perf_counter() - begin
            method = environ["REQUEST_METHOD"]
            route = (
                _route_of(environ) if found is None else LIST_PATH if environ["PATH_INFO"] == LIST_PATH else RUN_RULE
            )
            self._context.metrics.observe_request(route, method, status[:3], seconds)
            if self._context.config.access_log:
                address, path = environ.get("REMOTE_ADDR", "-"), environ.get("PATH_INFO", "")[:_MAX_LOGGED]
                method = method[:_MAX_LOGGED]
                logger.info("%s %s %r %s %.1f ms", address, method, path, status[:3], seconds * 1000)
            return start_response(status, headers, exc_info)

        if found is None:
            return self._application(environ, start)
        start(found.status, found.headers)
        return [found.body] if found.body and environ["REQUEST_METHOD"] == "GET" else []

    def _find(self, environ: WSGIEnvironment) -> PlainResponse | None:
        path = environ["PATH_INFO"]
        is_run = path.startswith(RUN_PATH) and not path.endswith(("/trace", RUN_PATH))
        if not (is_run or path == LIST_PATH) or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return None
        try:
            tenant = self._context.authenticator.authorize(environ, RUNS_READ).tenant
            if is_run:
                return run_response(self._context, environ, utf8_path(environ)[len(RUN_PATH) :], tenant)
            return list_response(self._context, environ, tenant)
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
