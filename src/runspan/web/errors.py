"""Errors as HTTP responses: one JSON body on every route, and ``google.rpc.Status`` for OTLP."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any, Final, Literal

from flask import Flask, Response, request
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from runspan import errors
from runspan.web.request import body_too_large

logger = logging.getLogger("runspan.web")

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
OTLP_PATH: Final = "/v1/traces"

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE"}
_GRPC_CODES = {
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    405: 12,
    408: 4,
    413: 8,
    415: 3,
    429: 8,
    501: 12,
    502: 14,
    503: 14,
    504: 14,
}
_GRPC_INTERNAL = 13

_BUSY_RETRY_AFTER = 5
"""Seconds after which to retry if a busy backend does not say when."""


class ErrorDetail(BaseModel):
    """One invalid parameter, or one invalid place of a document."""

    field: str
    message: str


class ErrorInfo(BaseModel):
    """An error: ``code`` for programs, ``message`` for people."""

    code: str = Field(examples=["VALIDATION_ERROR"])
    message: str
    details: list[ErrorDetail] | None = None


class ErrorBody(BaseModel):
    """The body of every response that is not a success."""

    success: Literal[False] = False
    error: ErrorInfo


class StatusBody(BaseModel):
    """``google.rpc.Status``, the body of every response on ``/v1/traces`` that is not a success."""

    code: int
    message: str


ERROR_RESPONSES: Final[dict[Any, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504, 507), ErrorBody
)
"""What the OpenAPI document lists for each operation."""


def error_body(code: str, message: str, details: list[ErrorDetail] | None = None) -> str:
    """Return the JSON of an ``ErrorBody``."""
    return ErrorBody(error=ErrorInfo(code=code, message=message, details=details)).model_dump_json(exclude_none=True)


def error_response(
    status: int,
    code: str,
    message: str,
    details: list[ErrorDetail] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return an error in the form that clients of the requested route read."""
    message = _to_utf8_text(message)
    if request.path == OTLP_PATH:
        return _status_response(status, message, headers)
    return Response(error_body(code, message, details), status, headers, content_type=JSON)


def retry_after_header(error: errors.RunspanError) -> dict[str, str]:
    """Return ``Retry-After`` in full seconds if the error says when to retry, else no header."""
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, errors.BackendBusy):
        retry_after = _BUSY_RETRY_AFTER
    return {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}


def register_error_handlers(app: Flask) -> None:
    """Answer every error of the application with an ``error_response``."""
    app.register_error_handler(errors.RunspanError, _on_runspan_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(ValidationError, _invalid_query)
    app.register_error_handler(Exception, _internal_error)


def _on_runspan_error(error: errors.RunspanError) -> Response:
    code, status, _ = errors.error_status(error)
    if status == 500:
        return _internal_error(error, code)
    headers = retry_after_header(error)
    if isinstance(error, errors.StoreError):
        logger.error("%s %r: %s", request.method, request.path, error)
        if request.path == OTLP_PATH:
            status = 503  # a sender retries this status, and drops its spans on a 507
        error = without_place(error)
    if isinstance(error, errors.PayloadTimeout) and request.path == OTLP_PATH:
        status = 503  # the same spans may arrive in time when they are sent again
    if isinstance(error, errors.BackendRefused) and request.path == OTLP_PATH:
        status = 500  # a sender would retry a 502, and be refused again
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return error_response(status, code, str(error), _details(error), headers)


def without_place(error: errors.RunspanError) -> errors.RunspanError:
    """Return an error of the store as clients see it: paths, and addresses of databases, are of no use to them."""
    got = "" if isinstance(error, errors.StateUnreachable) else error.got
    return errors.RunspanError(error.message, expected=error.expected, got=got, hint=error.hint)


def _invalid_query(error: ValidationError) -> Response:
    """Return the response to invalid query parameters, with a detail for each of them."""
    details = [
        ErrorDetail(field=".".join(str(part) for part in item["loc"]) or "query", message=item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    message = "; ".join(f"{detail.field}: {detail.message}" for detail in details)
    return error_response(400, "VALIDATION_ERROR", message, details)


def _details(error: errors.RunspanError) -> list[ErrorDetail] | None:
    if not isinstance(error, (errors.DocumentError, errors.QueryError, errors.PayloadError)) or not error.where:
        return None
    message = str(errors.RunspanError(error.message, expected=error.expected, got=error.got))
    return [ErrorDetail(field=_to_utf8_text(error.where), message=_to_utf8_text(message))]


def _to_utf8_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _on_http_error(error: HTTPException) -> Response:
    if isinstance(error, RequestEntityTooLarge):
        return _on_runspan_error(body_too_large(request.max_content_length, f"{request.content_length} bytes"))
    status = error.code or 500
    headers = dict(error.get_headers())  # Allow of a 405, Location of a redirect
    headers.pop("Content-Type", None)
    code = _HTTP_CODES.get(status, "VALIDATION_ERROR" if status < 500 else "INTERNAL_ERROR")
    return error_response(status, code, error.description or error.name, None, headers)


def _internal_error(error: Exception, code: str = "INTERNAL_ERROR") -> Response:
    """Log an error under a random number, and return only the number to the client."""
    number = secrets.token_hex(6)
    logger.error("error %s on %s %r", number, request.method, request.path, exc_info=error)
    return error_response(500, code, f"internal error {number}; the server's log describes it under this number")


def _status_response(status: int, message: str, headers: dict[str, str] | None) -> Response:
    code = _GRPC_CODES.get(status, _GRPC_INTERNAL)
    if request.mimetype == PROTOBUF:
        body: Any = Status(code=code, message=message).SerializeToString()
        return Response(body, status, headers, content_type=PROTOBUF)
    return Response(StatusBody(code=code, message=message).model_dump_json(), status, headers, content_type=JSON)
