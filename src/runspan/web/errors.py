"""Errors as HTTP answers: one JSON body on every route, and ``google.rpc.Status`` for OTLP."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any, Literal

from flask import Flask, Response, request
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from runspan.errors import (
    BackendBusy,
    DocumentError,
    PayloadError,
    PayloadTooLarge,
    QueryError,
    RunspanError,
    StoreError,
    error_status,
)

logger = logging.getLogger("runspan.web")

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
OTLP_PATH = "/v1/traces"

_HTTP_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE"}
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 413: 8, 415: 3, 429: 8, 501: 12, 502: 14, 503: 14, 504: 14}
_INTERNAL = 13

_BUSY_SECONDS = 5
"""When to ask again, where a backend that is busy does not say it."""


class ErrorDetail(BaseModel):
    """One thing that is wrong: the parameter or the place in the document, and what is wrong with it."""

    field: str
    message: str


class ErrorInfo(BaseModel):
    """What went wrong. code: for programs; message: for people."""

    code: str = Field(examples=["VALIDATION_ERROR"])
    message: str
    details: list[ErrorDetail] | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    success: Literal[False] = False
    error: ErrorInfo


def error_response(
    status: int,
    code: str,
    message: str,
    details: list[ErrorDetail] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The answer in the form that the route's clients read."""
    message = message.encode("utf-8", "replace").decode()
    if request.path == OTLP_PATH:
        return _status_response(status, message, headers)
    body = ErrorBody(error=ErrorInfo(code=code, message=message, details=details))
    return Response(body.model_dump_json(exclude_none=True), status, headers, content_type=JSON)


def invalid_query(error: ValidationError) -> Response:
    """The answer to query parameters that the model refuses."""
    details = [
        ErrorDetail(field=".".join(str(part) for part in item["loc"]) or "query", message=item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    message = "; ".join(f"{detail.field}: {detail.message}" for detail in details)
    return error_response(400, "VALIDATION_ERROR", message, details)


def install(app: Flask) -> None:
    """Makes every error of the application one of these answers."""
    app.register_error_handler(RunspanError, _on_runspan_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_unexpected)


def _on_runspan_error(error: RunspanError) -> Response:
    code, status, _ = error_status(error)
    if request.path == OTLP_PATH and isinstance(error, StoreError):
        status = 503  # a sender retries this one, and drops its spans on a 500
    if status == 500:
        return _internal(error, code)
    headers: dict[str, str] = {}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is None and isinstance(error, BackendBusy):
        retry_after = _BUSY_SECONDS
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return error_response(status, code, str(error), _details(error), headers)


def _details(error: RunspanError) -> list[ErrorDetail] | None:
    if not isinstance(error, (DocumentError, QueryError, PayloadError)) or not error.where:
        return None
    parts = [error.message, error.expected and f"expected {error.expected}", error.got and f"got {error.got}"]
    message = ", ".join(part for part in parts if part)
    return [ErrorDetail(field=_clean(error.where), message=_clean(message))]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _on_http_error(error: HTTPException) -> Response:
    if error.response is not None:
        return error.response  # type: ignore[return-value]  # abort() was called with a ready answer
    if isinstance(error, RequestEntityTooLarge):
        return _on_runspan_error(PayloadTooLarge("request body over the bound", hint="send it in parts"))
    status = error.code or 500
    headers = dict(error.get_headers())  # Allow of a 405, Location of a redirect
    headers.pop("Content-Type", None)
    code = _HTTP_CODES.get(status, "VALIDATION_ERROR" if status < 500 else "INTERNAL_ERROR")
    return error_response(status, code, error.description or error.name, None, headers)


def _on_unexpected(error: Exception) -> Response:
    return _internal(error, "INTERNAL_ERROR")


def _internal(error: Exception, code: str) -> Response:
    """The caller gets a number to quote; what happened goes to the log only."""
    number = secrets.token_hex(6)
    logger.error("error %s on %s %r", number, request.method, request.path, exc_info=error)
    return error_response(500, code, f"internal error {number}; the server's log has it under this number")


def _status_response(status: int, message: str, headers: dict[str, str] | None) -> Response:
    grpc_code = _GRPC_CODES.get(status, _INTERNAL)
    if request.mimetype == PROTOBUF:
        body: Any = Status(code=grpc_code, message=message).SerializeToString()
        return Response(body, status, headers, content_type=PROTOBUF)
    return Response(StatusBody(code=grpc_code, message=message).model_dump_json(), status, headers, content_type=JSON)


class StatusBody(BaseModel):
    """``google.rpc.Status``, the body of an answer on ``/v1/traces`` that is no success."""

    code: int
    message: str
