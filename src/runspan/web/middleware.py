"""The outermost layer: security headers on every answer, and a count of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from runspan.web.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("runspan.access")

SECURITY_HEADERS: dict[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Added unless the view set its own: a page says what it may load, a static file how long it keeps."""


class ResponseMiddleware:
    """Wraps a WSGI application. Done here, once, it also covers the answers that no view made.

    log: whether requests are logged: address, method, path as a quoted text, status and time. No headers and no query,
    so no key and no filter.
    """

    def __init__(self, application: WSGIApplication, metrics: Metrics, *, log: bool = False) -> None:
        self._application = application
        self._metrics = metrics
        self._log = log
        self._headers = list(SECURITY_HEADERS.items())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begin = perf_counter()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            present = {name for name, _ in headers}
            headers = headers + [pair for pair in self._headers if pair[0] not in present]
            route = environ.get("runspan.rule")
            if route is None:
                request = environ.get("werkzeug.request")
                rule = request.url_rule if request is not None else None
                route = rule.rule if rule is not None else "unmatched"
            seconds = perf_counter() - begin
            method = environ["REQUEST_METHOD"]
            self._metrics.answered(route, method, status[:3], seconds)
            if self._log:
                address, path = environ.get("REMOTE_ADDR", "-"), environ.get("PATH_INFO", "")
                logger.info("%s %s %r %s %.1f ms", address, method, path, status[:3], seconds * 1000)
            return start_response(status, headers, exc_info)

        return self._application(environ, start)
