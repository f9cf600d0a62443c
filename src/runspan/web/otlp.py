"""The OTLP/HTTP receiver: ``POST /v1/traces``, protobuf and JSON, plain and gzip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, request
from flask_openapi3.openapi import OpenAPI
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.contracts import Rejection
from runspan.errors import PayloadUnsupported
from runspan.otlp.json import read_json
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.web.api import SECURITY, TRACES
from runspan.web.api_keys import RUNS_WRITE
from runspan.web.app_context import AppContext
from runspan.web.auth import TRACES as TRACES_LIMIT
from runspan.web.errors import JSON, OTLP_PATH, PROTOBUF, StatusBody
from runspan.web.request_body import read_body

_SHOWN = 5


def add_receiver(app: OpenAPI, parts: AppContext) -> None:
    """``POST /v1/traces``, where there is something to write to."""
    writer, settings, metrics = parts.writer, parts.settings, parts.metrics
    if writer is None:
        return

    @app.post(
        OTLP_PATH,
        tags=[TRACES],
        security=SECURITY,
        responses=_RESPONSES,
        operation_id="exportTraces",
        openapi_extensions={"requestBody": _REQUEST_BODY},
    )
    def export_traces() -> Response:
        """OTLP/HTTP: takes spans, runspan's own and others in the same traces."""
        caller = parts.access.authorize(request, RUNS_WRITE, TRACES_LIMIT)
        kind = request.mimetype
        if kind not in (PROTOBUF, JSON):
            raise PayloadUnsupported(where="Content-Type", expected=f"{PROTOBUF} or {JSON}", got=repr(kind[:60]))
        body = read_body(request, settings.max_body)
        received = read_protobuf(body) if kind == PROTOBUF else read_json(body)
        rejected = writer.write(received, caller.tenant).rejected
        metrics.spans_received.inc(received.total)
        metrics.spans_rejected.inc(sum(rejection.spans for rejection in rejected))
        metrics.runs_stored.inc(len({span.trace_id for span in received.spans}))
        return _answer(rejected, kind)


def _answer(rejected: Sequence[Rejection], kind: str) -> Response:
    answer = ExportTraceServiceResponse()
    if rejected:
        answer.partial_success.rejected_spans = sum(rejection.spans for rejection in rejected)
        lines = [f"{rejection.what}: {rejection.reason}" for rejection in rejected[:_SHOWN]]
        if len(rejected) > _SHOWN:
            lines.append(f"and {sum(rejection.spans for rejection in rejected[_SHOWN:])} more")
        answer.partial_success.error_message = "; ".join(lines)
    body: Any = answer.SerializeToString() if kind == PROTOBUF else MessageToJson(answer, indent=None)
    return Response(body, content_type=kind)


_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "ExportTraceServiceRequest",
    "content": {PROTOBUF: {"schema": _BINARY}, JSON: {"schema": {"type": "object"}}},
}
_STATUS: dict[str, Any] = {
    "description": "google.rpc.Status in the request's encoding",
    "content": {PROTOBUF: {"schema": _BINARY}, JSON: {"schema": StatusBody.model_json_schema()}},
}
_RESPONSES: dict[Any, Any] = {
    200: {
        "description": "ExportTraceServiceResponse in the request's encoding",
        "content": {PROTOBUF: {"schema": _BINARY}, JSON: {"schema": {"type": "object"}}},
    },
    **{status: dict(_STATUS) for status in (400, 401, 403, 405, 413, 415, 429, 503)},
}
