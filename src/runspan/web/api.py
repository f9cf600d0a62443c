"""The REST API: run documents, lists of runs, and traces as OTLP/JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain, islice
from typing import Any, Final, NoReturn, cast
from urllib.parse import unquote_to_bytes

import msgspec
from flask import Blueprint, Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from flask_openapi3.utils import parse_query
from werkzeug.datastructures import Headers
from werkzeug.routing import BaseConverter

from runspan.backends.sqlite import SqliteStore
from runspan.codec.decode import verify_run
from runspan.codec.fields import RUN_ID
from runspan.contracts import TraceReader
from runspan.errors import DocumentError, NotFound, PayloadUnsupported, QueryError, TraceIncomplete
from runspan.forward import Forwarder
from runspan.model.document import Run
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import rfc3339
from runspan.otlp.json import json_pieces
from runspan.web import schemas
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE
from runspan.web.auth import Principal
from runspan.web.errors import ERROR_RESPONSES, JSON, OTLP_PATH, error_response
from runspan.web.links import trace_links
from runspan.web.middleware import ERROR_KEY, LIST_PATH, RUN_RULE, utf8_path
from runspan.web.request import current_context, read_body
from runspan.web.run_responses import PARTIAL, note_header, query_parameters, run_response

RUNS: Final = Tag(name="runs", description="Run documents, exactly as they were sent in.")
TRACES: Final = Tag(name="traces", description="Runs as OpenTelemetry traces.")
SECURITY: Final[list[dict[str, list[str]]]] = [{"apiKey": []}, {"bearer": []}]


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


reads = OpenApiBlueprint("reads", __name__, SECURITY)
"""Routes that only read."""

writes = OpenApiBlueprint("writes", __name__, SECURITY)
"""Routes that store run documents."""

read_only = Blueprint("read_only", __name__)
"""In place of the routes that write, over a backend that is only read."""


@reads.get(
    RUN_RULE,
    tags=[RUNS],
    responses={
        200: schemas.RunResponse,
        304: {"description": "The document has the entity tag that was sent in If-None-Match"},
    },
    operation_id="getRun",
    openapi_extensions={
        "parameters": [
            *path_parameter("run_id", "The run's id, percent-encoded.")["parameters"],
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "Entity tags of documents that the client has.",
                "schema": {"type": "string"},
            },
        ]
    },
)
def get_run(run_id: str) -> Response:
    """Return a run document, exactly as it was sent in."""
    if ERROR_KEY in request.environ:
        _raise_again()
    principal = current_context().authenticator.authorize(request.environ, RUNS_READ)
    utf8_path(request.environ)
    return _run_response(run_id, principal.tenant)


@reads.get(
    f"{RUN_RULE}/trace",
    tags=[RUNS],
    responses={
        200: schemas.TraceLinkResponse,
        302: {"description": "To a browser: redirect to the first of the links"},
    },
    operation_id="getRunTrace",
    openapi_extensions={
        "parameters": path_parameter("run_id", "The run's id, percent-encoded.")["parameters"]
        + parse_query(schemas.TraceQuery)[0]
    },
)
def get_run_trace(run_id: str) -> Response:
    """Return the run's trace id and links to the trace, or to a step in it; redirect browsers to the first link.

    To request the document of a run whose id ends in ``/trace``, percent-encode that slash.
    """
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    utf8_path(request.environ)
    if _is_encoded_suffix(request.environ.get("REQUEST_URI", ""), run_id):
        return _run_response(run_id + "/trace", principal.tenant)
    query = query_parameters(schemas.TraceQuery, request.args.items(multi=True))
    trace_id = run_ids(run_id, principal.tenant).trace_id
    span_id = b""
    with suppress(TraceIncomplete):  # an incomplete trace can still be looked at
        if query.step is None:
            context.reader.document(run_id, principal.tenant)
        else:
            span_id = _step_span_id(context.reader.spans(trace_id, _span_tenant(principal)), query.step)
    links = trace_links(context.config, trace_id, span_id)
    url = next(iter(links.values()), None)
    if url is not None and request.accept_mimetypes.best_match((JSON, "text/html")) == "text/html":
        return Response(status=302, headers={"Location": url, "Vary": "Accept"}, content_type="text/plain")
    link = schemas.TraceLink(traceId=trace_id.hex(), spanId=span_id.hex() or None, url=url, links=links)
    body = schemas.TraceLinkResponse(data=link)
    return Response(body.model_dump_json(), headers={"Vary": "Accept"}, content_type=JSON)


@reads.get(
    LIST_PATH,
    tags=[RUNS],
    responses={200: schemas.RunListResponse},
    operation_id="listRuns",
    openapi_extensions={"parameters": parse_query(schemas.RunsQuery)[0]},
)
def list_runs() -> Response:
    """Return summaries of runs, newest first."""
    return _raise_again()


@reads.get(
    "/api/v1/stats",
    tags=[RUNS],
    responses={200: schemas.StatsResponse},
    operation_id="getStats",
    openapi_extensions={"parameters": parse_query(schemas.StatsParameters)[0]},
)
def get_stats() -> Response:
    """Return statistics of runs: how many, how long they took, what they cost, and how they failed.

    An extension of the platform's API. Backends that cannot count runs exactly answer 400, `QUERY_UNSUPPORTED`.
    """
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    parameters = query_parameters(schemas.StatsParameters, request.args.items(multi=True))
    page = context.reader.run_stats(parameters.stats_query(principal.tenant, context.clock()))
    meta: dict[str, object] = {
        "from": None if page.since is None else rfc3339(page.since),
        "to": None if page.until is None else rfc3339(page.until),
        "hasMore": page.has_more,
    }
    if page.partial:
        meta["partial"] = page.partial
    body = msgspec.json.encode({"success": True, "data": page.groups, "meta": meta})
    return Response(body, headers=note_header(PARTIAL, page.partial), content_type=JSON)


@reads.get(
    "/api/v1/traces/<string:trace_id>",
    tags=[TRACES],
    responses={200: {"description": "TracesData in OTLP/JSON", "content": {JSON: {"schema": {"type": "object"}}}}},
    operation_id="getTrace",
    openapi_extensions=path_parameter("trace_id", "32 hex digits.", "^[0-9a-fA-F]{32}$"),
)
def get_trace(trace_id: str) -> Response:
    """Return all spans of a trace as OTLP/JSON, including those of other instrumentation.

    That of a long run is many times larger than its document, so it is sent while it is made. An error meanwhile ends
    the response early, and what has arrived is no JSON.
    """
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    if not re.fullmatch("[0-9a-fA-F]{32}", trace_id):
        raise QueryError(where="traceId", expected="32 hex digits", got=repr(trace_id[:60]))
    with context.turn(principal.tenant):
        pieces = json_pieces(_readable_spans(context.reader, principal, bytes.fromhex(trace_id)))
        start = [*islice(pieces, 2)]
    if len(start) == 1:
        return Response(start[0], content_type=JSON)
    return Response(chain(start, _in_turns(pieces, context.turn(principal.tenant))), content_type=JSON)


@writes.post(
    "/api/v1/runs",
    tags=[RUNS],
    responses={200: schemas.StoredRunResponse, 201: schemas.StoredRunResponse, 202: schemas.StoredRunResponse},
    operation_id="pushRun",
    openapi_extensions={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": schemas.RunDocument.model_json_schema()}},
        }
    },
)
def push_run() -> Response:
    """Store a run document. Idempotent: the same document again changes nothing.

    An unfinished document that is older than the stored end of its run changes nothing either. A server before a remote
    backend answers 202 once the Collector that it forwards to has acknowledged the document.
    """
    context = current_context()
    writer = cast("SqliteStore | Forwarder", context.writer)  # this route is registered only with one
    principal = context.authenticator.authorize(request.environ, RUNS_WRITE)
    if request.mimetype != JSON:
        raise PayloadUnsupported(where="Content-Type", expected=JSON, got=repr(request.mimetype[:60]))
    body = read_body(request, context.config.max_body)
    with context.turn(principal.tenant, len(body)):
        run = Run.from_json(body)
        trace_id = run_ids(run.id, principal.tenant).trace_id
        with context.charged(principal.tenant, [trace_id], len(body)):
            result = writer.put(run, tenant=principal.tenant, observed_at=context.clock())
            if result.rejected:
                raise DocumentError(result.rejected[0].reason, where=f"run {run.id}")
    if result.changed:
        context.metrics.runs_stored.inc()
    forwarded = result.changed and isinstance(writer, Forwarder)
    stored = schemas.StoredRun(
        id=run.id,
        traceId=trace_id.hex(),
        new=None if forwarded else result.changed,
    )
    return Response(
        schemas.StoredRunResponse(data=stored).model_dump_json(exclude_none=True),
        202 if forwarded else 201 if result.changed else 200,
        content_type=JSON,
    )


# A blueprint that is registered later replaces what is documented on its paths.
writes.paths["/api/v1/runs"].get = reads.paths["/api/v1/runs"].get


@read_only.post("/api/v1/runs")
@read_only.post(OTLP_PATH)
def refuse_write() -> Response:
    """Explain why nothing can be stored, with a status that senders do not retry."""
    backend = current_context().config.backend or "its backend"
    hint = "send runs to the OTLP receiver of the backend, or of a Collector before it: runspan export"
    return error_response(501, "READ_ONLY", f"this server only reads from {backend}; {hint}")


def _raise_again() -> NoReturn:
    """Raise the error of a request that ``Middleware`` would have answered."""
    raise request.environ[ERROR_KEY]


def _run_response(run_id: str, tenant: str) -> Response:
    found = run_response(current_context(), request.environ, run_id, tenant)
    response = Response(found.body, found.status)
    response.headers = Headers(found.headers)  # without Flask's own content type
    return response


def _is_encoded_suffix(uri: str, run_id: str) -> bool:
    """Whether the slash before the final ``trace`` was percent-encoded, so that both are part of the run id."""
    encoded, slash, last = uri.partition("?")[0].rpartition("/")
    return not (slash and last == "trace" and unquote_to_bytes(encoded).endswith(run_id.encode()))


def _span_tenant(principal: Principal) -> str | None:
    """Return whose spans a principal may read, see ``TraceReader.spans``."""
    return principal.tenant if principal.authenticated else None


def _step_span_id(spans: list[Span], step: int) -> bytes:
    """Return the span id of the step at a position of the document; empty if the step has not ended.

    Raises TraceIncomplete, and QueryError if the document has no such step.
    """
    manifest = verify_run(spans).manifest
    if step >= len(manifest):
        raise QueryError(where="step", expected=f"the position of one of {len(manifest)} steps, from 0", got=str(step))
    return manifest[step]


def _readable_spans(reader: TraceReader, principal: Principal, trace_id: bytes) -> Iterable[Span]:
    """Return the spans of a trace that a principal may read. Raises NotFound if there are none.

    The embedded store knows which tenant sent a span. Other backends do not, so there the trace must be that of a run
    of the tenant: its id is derived from the tenant and the run id.
    """
    tenant = _span_tenant(principal)
    if isinstance(reader, SqliteStore):
        return reader.iter_spans(trace_id, tenant)
    spans = reader.spans(trace_id, tenant)
    if tenant is not None and not any(_is_of_run_of(tenant, span) for span in spans):
        raise NotFound("no such trace", where=f"trace {trace_id.hex()}")
    return spans


def _is_of_run_of(tenant: str, span: Span) -> bool:
    run_id = span.attributes().get(RUN_ID)
    return isinstance(run_id, str) and run_ids(run_id, tenant).trace_id == span.trace_id


def _in_turns(pieces: Iterator[bytes], turn: AbstractContextManager[object]) -> Iterator[bytes]:
    """Yield the pieces, each of which is made in a turn of its own."""
    while True:
        with turn:
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece
