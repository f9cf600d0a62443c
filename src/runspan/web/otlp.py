"""The OTLP/HTTP receiver: ``POST /v1/traces`` in protobuf and JSON, plain and gzip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from flask import Response, request
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Rejection, WriteResult
from runspan.delivery.config import REPLAY_HEADER
from runspan.errors import PayloadUnsupported
from runspan.forward import Forwarder
from runspan.otlp import json, protobuf_reader
from runspan.otlp.bulk_reader import read_request
from runspan.otlp.json import read_json
from runspan.web.api import SECURITY, TRACES, OpenApiBlueprint
from runspan.web.api_keys import RUNS_WRITE
from runspan.web.auth import TRACES_LIMIT
from runspan.web.errors import JSON, OTLP_PATH, PROTOBUF, StatusBody
from runspan.web.request import current_context, read_body

MAX_REASONS: Final = 5
"""Rejections that the error message of a response describes; the others are counted."""

_BINARY: Final[dict[str, Any]] = {"type": "string", "format": "binary"}
_MESSAGE: Final[dict[str, Any]] = {PROTOBUF: {"schema": _BINARY}, JSON: {"schema": {"type": "object"}}}
_STATUS: Final[dict[str, Any]] = {
    "description": "google.rpc.Status in the request's encoding",
    "content": {PROTOBUF: {"schema": _BINARY}, JSON: {"schema": StatusBody.model_json_schema()}},
}
_RESPONSES: Final[dict[Any, Any]] = {
    200: {"description": "ExportTraceServiceResponse in the request's encoding", "content": _MESSAGE},
    **{status: dict(_STATUS) for status in (400, 401, 403, 405, 413, 415, 429, 503)},
}

receiver = OpenApiBlueprint("receiver", __name__, SECURITY)


@receiver.post(
    OTLP_PATH,
    tags=[TRACES],
    responses=_RESPONSES,
    operation_id="exportTraces",
    openapi_extensions={
        "requestBody": {"required": True, "description": "ExportTraceServiceRequest", "content": _MESSAGE}
    },
)
def export_traces() -> Response:
    """Store the spans of an OTLP/HTTP request, including those of other instrumentation in the same traces."""
    context = current_context()
    writer = cast("SqliteStore | Forwarder", context.writer)  # this route is registered only with one
    principal = context.authenticator.authorize(request.environ, RUNS_WRITE, TRACES_LIMIT)
    encoding = request.mimetype
    if encoding not in (PROTOBUF, JSON):
        raise PayloadUnsupported(where="Content-Type", expected=f"{PROTOBUF} or {JSON}", got=repr(encoding[:60]))
    body = read_body(request, context.config.max_body)
    if isinstance(writer, Forwarder):
        result = _forward(writer, body, encoding, principal.tenant)
    else:
        with context.turn(principal.tenant, len(body)):
            received = read_request(body) if encoding == PROTOBUF else read_json(body)
            trace_ids = {run.trace_id for run in received.runs} | {span.trace_id for span in received.spans}
            with context.charged(principal.tenant, trace_ids, len(body)):
                result = writer.write(received, principal.tenant)
        context.metrics.runs_stored.inc(len(trace_ids))
    rejected_spans = sum(rejection.spans for rejection in result.rejected)
    context.metrics.spans_received.inc(result.accepted + rejected_spans)
    context.metrics.spans_rejected.inc(rejected_spans)
    return _export_response(result.rejected, encoding)


def _forward(forwarder: Forwarder, body: bytes, encoding: str, tenant: str) -> WriteResult:
    context = current_context()
    with context.turn(tenant, len(body)):
        message = protobuf_reader.read_message(body) if encoding == PROTOBUF else json.read_message(body)
    headers = ((REPLAY_HEADER, "true"),) if REPLAY_HEADER in request.headers else ()

    @contextmanager
    def charged(trace_ids: Collection[bytes]) -> Iterator[None]:
        with context.charged(tenant, trace_ids, len(body)):
            yield
        context.metrics.runs_stored.inc(len(trace_ids))

    return forwarder.write(message, tenant, headers, charged)


def _export_response(rejected: Sequence[Rejection], encoding: str) -> Response:
    message = ExportTraceServiceResponse()
    if rejected:
        message.partial_success.rejected_spans = sum(rejection.spans for rejection in rejected)
        lines = [f"{rejection.what}: {rejection.reason}" for rejection in rejected[:MAX_REASONS]]
        if len(rejected) > MAX_REASONS:
            lines.append(f"and {sum(rejection.spans for rejection in rejected[MAX_REASONS:])} more")
        message.partial_success.error_message = "; ".join(lines)
    body: Any = message.SerializeToString() if encoding == PROTOBUF else MessageToJson(message, indent=None)
    return Response(body, content_type=encoding)
