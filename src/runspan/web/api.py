"""The REST API: run documents, lists of runs, and traces as OTLP/JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote_to_bytes

from flask import Blueprint, Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from flask_openapi3.utils import parse_query
from pydantic import ValidationError
from werkzeug.routing import BaseConverter

from runspan.codec.fields import RUN_ID
from runspan.contracts import Cursor, Document, Page, TraceReader
from runspan.errors import DocumentError, NotFound, PayloadUnsupported, QueryError, TraceIncomplete
from runspan.model.document import Run
from runspan.model.span import Span, run_ids
from runspan.otlp.json import write_json
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE
from runspan.web.auth import Principal
from runspan.web.errors import ERROR_RESPONSES, JSON, OTLP_PATH, error_response, invalid_query
from runspan.web.middleware import ERROR_KEY, PARTIAL, RUN_RULE, document_body, document_headers, note_header
from runspan.web.request import Store, current_context, read_body
from runspan.web.schemas import (
    Meta,
    RunDocument,
    RunListResponse,
    RunResponse,
    RunsQuery,
    StoredRun,
    StoredRunResponse,
    TraceLink,
    TraceLinkResponse,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

RUNS: Final = Tag(name="runs", description="Run documents, exactly as they were sent in.")
TRACES: Final = Tag(name="traces", description="Runs as OpenTelemetry traces.")
SECURITY: Final[list[dict[str, list[str]]]] = [{"apiKey": []}, {"bearer": []}]

_READ_ONLY_HINT: Final = "send runs to the OTLP receiver of the backend, or of a Collector before it: runspan export"


class RunId(BaseConverter):
    """A run id in a path: any text, including slashes."""

    regex = r"(?s:.+)"
    part_isolating = False


class OpenApiBlueprint(APIBlueprint):
    """Routes that the OpenAPI document describes. Each of them may return an ``ErrorBody``."""

    def __init__(self, name: str, import_name: str, security: list[dict[str, list[str]]] | None = None) -> None:
        super().__init__(name, import_name, abp_security=security, abp_responses=ERROR_RESPONSES)

    @staticmethod
    def create_view_func(func: Callable[..., Response], *_args: Any, **_options: Any) -> Callable[..., Response]:
        """Return the view unwrapped: views read parameters only once the caller is authorized."""
        return func


def path_parameter(name: str, description: str, pattern: str | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of a path parameter."""
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    if pattern:
        schema["pattern"] = pattern
    parameter = {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
    return {"parameters": [parameter]}


def require_utf8_path(environ: WSGIEnvironment) -> None:
    """Raise NotFound if the path is not UTF-8: with the framework's replacement characters it means another run."""
    try:
        environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeError:
        raise NotFound("no such run", expected="a path in UTF-8") from None


reads = OpenApiBlueprint("reads", __name__, SECURITY)
"""Routes that only read."""

writes = OpenApiBlueprint("writes", __name__, SECURITY)
"""Routes that store run documents."""

read_only = Blueprint("read_only", __name__)
"""In place of the routes that write, over a backend that is only read."""


@reads.get(
    RUN_RULE,
    tags=[RUNS],
    responses={200: RunResponse},
    operation_id="getRun",
    openapi_extensions=path_parameter("run_id", "The run's id, percent-encoded."),
)
def get_run(run_id: str) -> Response:
    """Return a run document, exactly as it was sent in."""
    context = current_context()
    error = request.environ.get(ERROR_KEY)
    if error is not None:
        raise error
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    require_utf8_path(request.environ)
    return _document_response(context.reader.document(run_id, principal.tenant))


@reads.get(
    f"{RUN_RULE}/trace",
    tags=[RUNS],
    responses={200: TraceLinkResponse, 302: {"description": "To a browser: redirect to the first of the links"}},
    operation_id="getRunTrace",
    openapi_extensions=path_parameter("run_id", "The run's id, percent-encoded."),
)
def get_run_trace(run_id: str) -> Response:
    """Return the run's trace id and links to the trace; redirect browsers to the first link.

    To request the document of a run whose id ends in ``/trace``, percent-encode that slash.
    """
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    require_utf8_path(request.environ)
    if _is_encoded_suffix(request.environ.get("REQUEST_URI", ""), run_id):
        return _document_response(context.reader.document(run_id + "/trace", principal.tenant))
    with suppress(TraceIncomplete):  # an incomplete trace can still be looked at
        context.reader.document(run_id, principal.tenant)
    trace_id = run_ids(run_id, principal.tenant).trace_id
    links = context.trace_links.for_trace(trace_id)
    url = next(iter(links.values()), None)
    if url is not None and request.accept_mimetypes.best_match((JSON, "text/html")) == "text/html":
        return Response(status=302, headers={"Location": url, "Vary": "Accept"}, content_type="text/plain")
    body = TraceLinkResponse(data=TraceLink(traceId=trace_id.hex(), url=url, links=links))
    return Response(body.model_dump_json(), headers={"Vary": "Accept"}, content_type=JSON)


@reads.get(
    "/api/v1/runs",
    tags=[RUNS],
    responses={200: RunListResponse},
    operation_id="listRuns",
    openapi_extensions={"parameters": parse_query(RunsQuery)[0]},
)
def list_runs() -> Response:
    """Return summaries of runs, newest first."""
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    for name, values in request.args.lists():
        if len(values) > 1 and name in RunsQuery.model_fields:
            raise QueryError(where=name, expected="one value", got=f"{len(values)} of them")
    try:
        query = RunsQuery.model_validate(request.args.to_dict())
    except ValidationError as error:
        return invalid_query(error)
    cursor = None if query.cursor is None else Cursor.parse(query.cursor)
    page = context.reader.search(query.run_query(principal.tenant, context.clock(), limit=query.limit, cursor=cursor))
    return _list_response(page, query)


@reads.get(
    "/api/v1/traces/<string:trace_id>",
    tags=[TRACES],
    responses={200: {"description": "TracesData in OTLP/JSON", "content": {JSON: {"schema": {"type": "object"}}}}},
    operation_id="getTrace",
    openapi_extensions=path_parameter("trace_id", "32 hex digits.", "^[0-9a-fA-F]{32}$"),
)
def get_trace(trace_id: str) -> Response:
    """Return all spans of a trace as OTLP/JSON, including those of other instrumentation."""
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    if not re.fullmatch("[0-9a-fA-F]{32}", trace_id):
        raise QueryError(where="traceId", expected="32 hex digits", got=repr(trace_id[:60]))
    spans = context.reader.spans(bytes.fromhex(trace_id), principal.tenant if principal.authenticated else None)
    if not _may_read(principal, spans):
        raise NotFound("no such trace", where=f"trace {trace_id}")
    return Response(write_json(spans), content_type=JSON)


@writes.post(
    "/api/v1/runs",
    tags=[RUNS],
    responses={200: StoredRunResponse, 201: StoredRunResponse},
    operation_id="pushRun",
    openapi_extensions={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": RunDocument.model_json_schema()}},
        }
    },
)
def push_run() -> Response:
    """Store a run document. Idempotent: the same document again changes nothing."""
    context = current_context()
    writer = cast("Store", context.writer)  # this route is registered only with one
    principal = context.authenticator.authorize(request.environ, RUNS_WRITE)
    if request.mimetype != JSON:
        raise PayloadUnsupported(where="Content-Type", expected=JSON, got=repr(request.mimetype[:60]))
    run = Run.from_json(read_body(request, context.config.max_body))
    is_new = not _is_stored(context.reader, run, principal.tenant)
    result = writer.put(run, tenant=principal.tenant, observed_at=context.clock())
    if result.rejected:
        raise DocumentError(result.rejected[0].reason, where=f"run {run.id}")
    if is_new:
        context.metrics.runs_stored.inc()
    stored = StoredRun(id=run.id, traceId=run_ids(run.id, principal.tenant).trace_id.hex(), new=is_new)
    return Response(StoredRunResponse(data=stored).model_dump_json(), 201 if is_new else 200, content_type=JSON)


@read_only.post("/api/v1/runs")
@read_only.post(OTLP_PATH)
def refuse_write() -> Response:
    """Explain why nothing can be stored, with a status that senders do not retry."""
    backend = current_context().config.backend or "its backend"
    return error_response(501, "READ_ONLY", f"this server only reads from {backend}; {_READ_ONLY_HINT}")


def _document_response(document: Document) -> Response:
    return Response(document_body(document), headers=document_headers(document))


def _list_response(page: Page, query: RunsQuery) -> Response:
    cursor = page.cursor.token() if page.cursor else None
    meta = Meta(cursor=cursor, hasMore=cursor is not None)
    if page.partial:
        meta.partial = list(page.partial)
    if query.stuckAfter is not None:
        meta.stuckAfter = query.stuckAfter
    body = b'{"success":true,"data":[%b],"meta":%b}' % (
        b",".join(page.items),
        meta.model_dump_json(exclude_unset=True).encode(),
    )
    return Response(body, headers=note_header(PARTIAL, page.partial), content_type=JSON)


def _is_stored(reader: TraceReader, run: Run, tenant: str) -> bool:
    """Whether this exact document is the run's newest revision already."""
    try:
        return reader.document(run.id, tenant).text == run.text
    except (NotFound, TraceIncomplete):
        return False


def _is_encoded_suffix(uri: str, run_id: str) -> bool:
    """Whether the slash before the final ``trace`` was percent-encoded, so that both are part of the run id."""
    encoded, slash, last = uri.partition("?")[0].rpartition("/")
    return not (slash and last == "trace" and unquote_to_bytes(encoded).endswith(run_id.encode()))


def _may_read(principal: Principal, spans: list[Span]) -> bool:
    """Whether the trace belongs to the principal's tenant: trace ids are derived from the tenant and the run id."""
    if not principal.authenticated:
        return True
    for span in spans:
        run_id = span.attributes().get(RUN_ID)
        if isinstance(run_id, str) and run_ids(run_id, principal.tenant).trace_id == span.trace_id:
            return True
    return False
