"""``create_app``: assembles the application over a backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, cast

from flask import Flask, Response, current_app, jsonify, request
from flask_openapi3.models.info import Info
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from prometheus_client import CONTENT_TYPE_LATEST

from runspan._version import __version__
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import TraceReader
from runspan.errors import AccessError, RunspanError, error_status
from runspan.forward import Forwarder
from runspan.web.api import OpenApiBlueprint, RunId, read_only, reads, writes
from runspan.web.api_keys import RUNS_READ, ApiKeyStore
from runspan.web.config import WebConfig
from runspan.web.content_coding import encode_response
from runspan.web.errors import JSON, ErrorBody, error_response, register_error_handlers, retry_after_header
from runspan.web.limits import enter
from runspan.web.middleware import Middleware
from runspan.web.otlp import receiver
from runspan.web.pages.panel_api import panel
from runspan.web.pages.views import login, pages
from runspan.web.request import AppContext, current_context
from runspan.web.schemas import HealthBody, ReadinessBody
from runspan.web.sessions import SessionStore
from runspan.web.usage import UsageStore
from runspan.web.windows import Windows

logger = logging.getLogger("runspan.web")

OPERATIONS: Final = Tag(name="operations", description="Health checks and metrics.")


def create_app(
    reader: TraceReader,
    writer: SqliteStore | Forwarder | None = None,
    *,
    config: WebConfig | None = None,
    keys: ApiKeyStore | None = None,
    sessions: SessionStore | None = None,
    windows: Windows | None = None,
    clock: Callable[[], int] = time.time_ns,
    usage: UsageStore | None = None,
) -> Flask:
    """Return the application over a backend.

    - ``reader`` answers the queries of the API.
    - ``writer`` is the store of documents and spans, or passes them on to a Collector before the backend. Without one,
      the routes that write answer 501.
    - ``keys`` are the API keys. Without them, or while none was ever created, anyone may use the application who
      reaches it by a name of loopback or of ``config.allowed_hosts``.
    - ``sessions`` are the logins of browsers. By default they last as long as the application.
    - ``windows`` count requests for rate limits. By default they do in memory, for this application alone.
    - ``clock`` returns the current time in nanoseconds since 1970.
    - ``usage`` counts what each tenant sends, and has the quotas of it. Without one, nothing is counted.

    ``app.extensions["runspan"]`` is the ``AppContext``, for further routes.
    """
    config = config or WebConfig()
    context = AppContext(reader, writer, config, keys, sessions, windows, clock, usage)
    app = OpenAPI(
        "runspan.web",
        info=Info(title="runspan", version=__version__, description="Workflow runs, exactly as they were sent in."),
        security_schemes={
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
        validation_error_status=400,
        validation_error_model=ErrorBody,
        doc_ui=False,
        static_folder=None,
    )
    app.config["MAX_CONTENT_LENGTH"] = config.max_body
    app.url_map.merge_slashes = False  # a run id may contain "//"; a redirect would lead to another run
    app.url_map.converters["run_id"] = RunId
    app.extensions["runspan"] = context
    register_error_handlers(app)
    app.after_request(_encode)
    app.register_api(reads)
    if writer is not None:
        app.register_api(writes)
        app.register_api(receiver)
    else:
        app.register_blueprint(read_only)
    app.register_api(operations)
    if config.pages:
        app.register_blueprint(pages)
        app.register_blueprint(panel)
        if context.session_cookie is not None:
            app.register_blueprint(login)
    app.wsgi_app = Middleware(app.wsgi_app, context)  # type: ignore[method-assign]
    return app


def _encode(response: Response) -> Response:
    """Apply the content coding that the client asks for to a success in JSON.

    Errors repeat parts of the request, pages have other rules, and runs and lists have their coding already.
    """
    if response.mimetype == JSON and response.status_code in (200, 201) and "Content-Encoding" not in response.headers:
        encode_response(response, request.environ.get("HTTP_ACCEPT_ENCODING"))
    return response


operations = OpenApiBlueprint("operations", __name__)


@operations.get("/api/v1/openapi.json", doc_ui=False)
def openapi() -> Response:
    """Return the OpenAPI document of this application."""
    return jsonify(cast("OpenAPI", current_app).api_doc)


@operations.get("/healthz", tags=[OPERATIONS], responses={200: HealthBody}, operation_id="healthz")
def healthz() -> Response:
    """Return 200 while the process answers requests."""
    return jsonify(HealthBody().model_dump())


@operations.get("/readyz", tags=[OPERATIONS], responses={200: ReadinessBody}, operation_id="readyz")
def readyz() -> Response:
    """Return 200 while the backend answers too, else an error. Only callers who may read runs learn more."""
    context = current_context()
    try:
        context.authenticator.authorize(request.environ, RUNS_READ)
        may_read = True
    except AccessError:
        may_read = False
        enter(request.environ, None)
    try:
        context.reader.check()
    except RunspanError as error:
        if may_read:
            raise
        logger.warning("not ready: %s", error)
        code, status, _ = error_status(error)
        message = "not ready; a key that may read runs and the server's log show the reason"
        return error_response(status, code, message, headers=retry_after_header(error))
    backend = context.config.backend if may_read else None
    return jsonify(ReadinessBody(backend=backend or None).model_dump(exclude_none=True))


@operations.get(
    "/metrics",
    tags=[OPERATIONS],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    operation_id="metrics",
)
def metrics() -> Response:
    """Return the server's metrics in the Prometheus text format."""
    context = current_context()
    if context.config.metrics_open:
        enter(request.environ, None)
    else:
        context.authenticator.authorize(request.environ, RUNS_READ)
    return Response(context.metrics.text(), content_type=CONTENT_TYPE_LATEST)
