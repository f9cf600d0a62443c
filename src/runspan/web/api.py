"""The REST API: runs by id, lists of runs, documents pushed in, traces as OTLP/JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from flask import Response, request
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from flask_openapi3.utils import parse_query
from pydantic import ValidationError
from werkzeug.routing import BaseConverter

from runspan.codec.fields import RUN_ID
from runspan.contracts import Cursor, Document, RunQuery, TraceReader
from runspan.errors import DocumentError, NotFound, PayloadUnsupported, QueryError, TraceIncomplete
from runspan.model.ids import run_ids
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.otlp.json import write_json
from runspan.web.api_keys import RUNS_READ, RUNS_WRITE
from runspan.web.app_context import AppContext
from runspan.web.auth import Principal
from runspan.web.errors import JSON, OTLP_PATH, error_response, invalid_query
from runspan.web.fast_path import FAILED, PARTIAL, document_body, document_headers, note_header
from runspan.web.request_body import read_body
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
SECURITY: Final[list[dict[str, list[Any]]]] = [{"apiKey": []}, {"bearer": []}]


RUN_RULE: Final = "/api/v1/runs/<run_id:run_id>"


class RunId(BaseConverter):
    """A run id in a path: anything at all, slashes included."""

    regex = r"(?s:.+)"
    part_isolating = False


def path_parameter(name: str, description: str, pattern: str | None = None) -> dict[str, Any]:
    """OpenAPI extensions that document a path parameter; a model would be validated on every request."""
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    if pattern:
        schema["pattern"] = pattern
    parameter = {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
    return {"parameters": [parameter]}


def add_reading(app: OpenAPI, parts: AppContext) -> None:
    """``GET /api/v1/runs/{id}`` and ``GET /api/v1/runs/{id}/trace``."""
    reader, access = parts.reader, parts.access

    @app.get(
        RUN_RULE,
        tags=[RUNS],
        security=SECURITY,
        responses={200: RunResponse},
        operation_id="getRun",
        openapi_extensions=path_parameter("run_id", "The run's id; percent-encode what is no plain letter."),
    )
    def get_run(run_id: str) -> Response:
        """A run document, verbatim."""
        failed = request.environ.get(FAILED)
        if failed is not None:
            raise failed
        caller = access.authorize(request, RUNS_READ)
        _refuse_other_encodings(request.environ)
        return _document_response(reader.document(run_id, caller.tenant))

    @app.get(
        "/api/v1/runs/<run_id:run_id>/trace",
        tags=[RUNS],
        security=SECURITY,
        responses={200: TraceLinkResponse, 302: {"description": "For a browser: the first of the links"}},
        operation_id="getRunTrace",
        openapi_extensions=path_parameter("run_id", "The run's id."),
    )
    def get_run_trace(run_id: str) -> Response:
        """The run's trace id, and where people look at it. A browser is sent there.

        An id that itself ends in ``/trace`` is told apart by its slash, which then is percent-encoded.
        """
        caller = access.authorize(request, RUNS_READ)
        _refuse_other_encodings(request.environ)
        if _is_one_id(request.environ.get("REQUEST_URI", ""), run_id):
            return _document_response(reader.document(run_id + "/trace", caller.tenant))
        with suppress(TraceIncomplete):  # there is a trace to look at, and reason to
            reader.document(run_id, caller.tenant)
        trace_id = run_ids(run_id, caller.tenant).trace_id
        links = parts.links.of(trace_id)
        url = next(iter(links.values()), None)
        if url is not None and request.accept_mimetypes.best_match((JSON, "text/html")) == "text/html":
            return Response(status=302, headers={"Location": url, "Vary": "Accept"}, content_type="text/plain")
        answer = TraceLinkResponse(data=TraceLink(traceId=trace_id.hex(), url=url, links=links))
        return Response(answer.model_dump_json(), headers={"Vary": "Accept"}, content_type=JSON)

    _unwrap(app, get_run, get_run_trace)


def add_listing(app: OpenAPI, parts: AppContext) -> None:
    """``GET /api/v1/runs``. The parameters are read only once the caller is admitted."""

    @app.get(
        "/api/v1/runs",
        tags=[RUNS],
        security=SECURITY,
        responses={200: RunListResponse},
        operation_id="listRuns",
        openapi_extensions={"parameters": parse_query(RunsQuery)[0]},
    )
    def list_runs() -> Response:
        """Summaries of runs, newest first."""
        caller = parts.access.authorize(request, RUNS_READ)
        for name, values in request.args.lists():
            if len(values) > 1 and name in RunsQuery.model_fields:
                raise QueryError(where=name, expected="one value", got=f"{len(values)} of them")
        try:
            query = RunsQuery.model_validate(request.args.to_dict())
        except ValidationError as error:
            return invalid_query(error)
        now = parts.clock()
        page = parts.reader.search(
            RunQuery(
                tenant=caller.tenant,
                workflow_id=query.workflowId,
                status=query.status,
                since=query.since_ns(now),
                limit=query.limit,
                cursor=None if query.cursor is None else Cursor.parse(query.cursor),
                stuck_before=query.stuck_ns(now),
            )
        )
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


def add_pushing(app: OpenAPI, parts: AppContext) -> None:
    """``POST /api/v1/runs``, where there is something to write to."""
    writer, settings = parts.writer, parts.settings
    if writer is None:
        return

    @app.post(
        "/api/v1/runs",
        tags=[RUNS],
        security=SECURITY,
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
        """Stores one run document; the same document again changes nothing."""
        caller = parts.access.authorize(request, RUNS_WRITE)
        if request.mimetype != JSON:
            raise PayloadUnsupported(where="Content-Type", expected=JSON, got=repr(request.mimetype[:60]))
        run = Run.from_json(read_body(request, settings.max_body))
        new = not _is_known(parts.reader, run, caller.tenant)
        written = writer.put(run, tenant=caller.tenant, observed_at=parts.clock())
        if written.rejected:
            raise DocumentError(written.rejected[0].reason, where=f"run {run.id}")
        if new:
            parts.metrics.runs_stored.inc()
        answer = StoredRun(id=run.id, traceId=run_ids(run.id, caller.tenant).trace_id.hex(), new=new)
        return Response(StoredRunResponse(data=answer).model_dump_json(), 201 if new else 200, content_type=JSON)


def add_refusing(app: OpenAPI, parts: AppContext) -> None:
    """The routes that write, over a backend that is only read: a sender hears why, and sends nothing again."""
    backend = parts.settings.backend or "its backend"

    @app.post("/api/v1/runs", doc_ui=False)
    def push_refused() -> Response:
        return error_response(501, "READ_ONLY", f"this server only reads from {backend}; {_ELSEWHERE}")

    @app.post(OTLP_PATH, doc_ui=False)
    def traces_refused() -> Response:
        return error_response(501, "READ_ONLY", f"this server only reads from {backend}; {_ELSEWHERE}")


_ELSEWHERE: Final = "send runs to the OTLP receiver of the backend, or of a Collector before it: runspan export"


def add_traces(app: OpenAPI, parts: AppContext) -> None:
    """``GET /api/v1/traces/{traceId}``."""

    @app.get(
        "/api/v1/traces/<string:trace_id>",
        tags=[TRACES],
        security=SECURITY,
        responses={200: {"description": "TracesData in OTLP/JSON", "content": {JSON: {"schema": {"type": "object"}}}}},
        operation_id="getTrace",
        openapi_extensions=path_parameter("trace_id", "32 hex digits.", "^[0-9a-fA-F]{32}$"),
    )
    def get_trace(trace_id: str) -> Response:
        """All spans of a trace, those of other instrumentation included, as OTLP/JSON."""
        caller = parts.access.authorize(request, RUNS_READ)
        if not re.fullmatch("[0-9a-fA-F]{32}", trace_id):
            raise QueryError(where="traceId", expected="32 hex digits", got=repr(trace_id[:60]))
        spans = parts.reader.spans(bytes.fromhex(trace_id), caller.tenant if caller.keyed else None)
        if not _may_see(caller, spans):
            raise NotFound("no such trace", where=f"trace {trace_id}")
        return Response(write_json(spans), content_type=JSON)

    _unwrap(app, get_trace)


def _unwrap(app: OpenAPI, *views: Callable[..., Response]) -> None:
    """Lets Flask call these views with what stands in the path.

    The OpenAPI layer's wrapper hands over validated models only; one string needs none, and on the hot path the wrapper
    is a tenth of the time.
    """
    for view in views:
        app.view_functions[view.__name__] = view


def _refuse_other_encodings(environ: WSGIEnvironment) -> None:
    """The framework reads a path that is not UTF-8 with replacement characters, which is another run's id."""
    try:
        environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeError:
        raise NotFound("no such run", expected="a path in UTF-8") from None


def _document_response(document: Document) -> Response:
    return Response(document_body(document), headers=document_headers(document))


def _is_known(reader: TraceReader, run: Run, tenant: str) -> bool:
    """Whether this very document is the run's newest revision already."""
    try:
        return reader.document(run.id, tenant).text == run.text
    except (NotFound, TraceIncomplete):
        return False


def _is_one_id(uri: str, run_id: str) -> bool:
    """Whether the last slash of the path was percent-encoded, and so is part of the id."""
    encoded, slash, last = uri.partition("?")[0].rpartition("/")
    return not (slash and last == "trace" and unquote_to_bytes(encoded).endswith(run_id.encode()))


def _may_see(caller: Principal, spans: list[Span]) -> bool:
    """A trace id follows from tenant and run id, so one span that names the run proves whose trace it is."""
    if not caller.keyed:
        return True
    for span in spans:
        run_id = span.attributes().get(RUN_ID)
        if isinstance(run_id, str) and run_ids(run_id, caller.tenant).trace_id == span.trace_id:
            return True
    return False
