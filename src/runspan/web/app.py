"""``create_app``: the application over a backend, put together from its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Flask, Response, jsonify, request
from flask_openapi3.models.info import Info
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from prometheus_client import CONTENT_TYPE_LATEST

from runspan._version import __version__
from runspan.contracts import TraceReader
from runspan.model.timestamps import SECOND
from runspan.web.api import RUN_RULE, RunId, add_listing, add_pushing, add_reading, add_refusing, add_traces
from runspan.web.api_keys import RUNS_READ, ApiKeyStore
from runspan.web.app_context import AppContext, Store
from runspan.web.auth import Authenticator
from runspan.web.config import WebConfig
from runspan.web.errors import ErrorBody, install
from runspan.web.fast_path import RunFastPath
from runspan.web.metrics import Metrics
from runspan.web.middleware import ResponseMiddleware
from runspan.web.otlp import add_receiver
from runspan.web.pages.login import add_login
from runspan.web.pages.panel_api import add_data
from runspan.web.pages.views import PageRenderer, add_pages
from runspan.web.public_url import PublicUrl
from runspan.web.schemas import HealthBody, ReadinessBody
from runspan.web.sessions import SessionCookie, SessionStore
from runspan.web.trace_links import TraceLinks

OPERATIONS = Tag(name="operations", description="For those who run the server.")


def create_app(
    reader: TraceReader,
    writer: Store | None = None,
    *,
    settings: WebConfig | None = None,
    keys: ApiKeyStore | None = None,
    sessions: SessionStore | None = None,
    clock: Callable[[], int] = time.time_ns,
) -> Flask:
    """The application.

    reader: answers the API. writer: takes documents and spans; without one, the routes that write answer 501.
    keys: who may use it; None, or a key ring that never held a key, leaves it open to everybody who reaches it under a
    name of loopback or of ``settings.allowed_hosts``.
    sessions: logins of browsers with one of the keys; None: those of this application, which end with it.
    ``app.extensions["runspan"]`` is its ``Parts``, for pages that are added to it.
    """
    settings = settings or WebConfig()
    metrics = Metrics(reader, clock, stuck_after=int(settings.stuck_after * SECOND))
    links = TraceLinks(settings.jaeger_url, settings.grafana_url, settings.grafana_datasource, settings.trace_url)
    places = PublicUrl(settings.public_url)
    cookies = None
    if keys is not None and settings.pages:
        cookies = SessionCookie(sessions or SessionStore(None, keys, clock=clock), places)
    parts = AppContext(reader, writer, Authenticator(keys, settings, cookies), settings, metrics, links, clock)
    app = OpenAPI(
        "runspan.web",
        info=Info(title="runspan", version=__version__, description="Workflow runs, exactly as they were sent in."),
        security_schemes={
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
        responses=dict.fromkeys((400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 503, 504), ErrorBody),
        validation_error_status=400,
        validation_error_model=ErrorBody,
        doc_ui=False,
        static_folder=None,
    )
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body
    app.url_map.merge_slashes = False  # a run id may contain "//", and a redirect would ask for another run
    app.url_map.converters["run_id"] = RunId
    app.extensions["runspan"] = parts
    install(app)
    add_reading(app, parts)
    add_listing(app, parts)
    add_pushing(app, parts)
    add_traces(app, parts)
    add_receiver(app, parts)
    if writer is None:
        add_refusing(app, parts)
    _add_operations(app, parts)
    if settings.pages:
        frame = PageRenderer(parts, places, cookies)
        add_pages(app, frame)
        add_data(app, parts)
        if keys is not None and cookies is not None:
            add_login(app, frame, cookies, keys)
    direct = RunFastPath(app.wsgi_app, parts, RUN_RULE)
    app.wsgi_app = ResponseMiddleware(direct, metrics, log=settings.access_log)  # type: ignore[method-assign]
    return app


def _add_operations(app: OpenAPI, parts: AppContext) -> None:
    @app.get("/api/v1/openapi.json", doc_ui=False)
    def openapi() -> Response:
        return jsonify(app.api_doc)

    @app.get("/healthz", tags=[OPERATIONS], responses={200: HealthBody}, operation_id="healthz")
    def healthz() -> Response:
        """The process answers."""
        return jsonify(HealthBody().model_dump())

    @app.get("/readyz", tags=[OPERATIONS], responses={200: ReadinessBody}, operation_id="readyz")
    def readyz() -> Response:
        """The backend answers too; if not, the error says why."""
        parts.reader.check()
        ready = ReadinessBody(backend=parts.settings.backend or None)
        return jsonify(ready.model_dump(exclude_none=True))

    @app.get(
        "/metrics",
        tags=[OPERATIONS],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        operation_id="metrics",
    )
    def metrics() -> Response:
        """Counts for Prometheus."""
        if not parts.settings.metrics_open:
            parts.access.authorize(request, RUNS_READ)
        return Response(parts.metrics.text(), content_type=CONTENT_TYPE_LATEST)
