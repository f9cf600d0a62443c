"""OTLP over gRPC: one unary call per request, with the body passed through unchanged."""

from __future__ import annotations

import threading
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan.delivery.config import ExporterConfig
from runspan.delivery.transport import ExportResult, Rejected, RejectionScope, Retryable, not_otlp, result_of
from runspan.http.client import USER_AGENT
from runspan.http.urls import sanitize_message

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

RETRYABLE_CODES: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The codes after which OTLP allows a retry; RESOURCE_EXHAUSTED is one of them when it comes with RetryInfo."""

_SCOPES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: RejectionScope.RUNS,
    grpc.StatusCode.UNAUTHENTICATED: RejectionScope.ENDPOINT,
    grpc.StatusCode.PERMISSION_DENIED: RejectionScope.ENDPOINT,
    grpc.StatusCode.UNIMPLEMENTED: RejectionScope.ENDPOINT,
}

_NOT_HTTP2: Final = "Failed parsing HTTP/2"
"""What gRPC says about a server that answers in HTTP/1.1."""
_WRONG_PROTOCOL: Final = (
    "this is no gRPC server; for OTLP/HTTP set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: "
    "opentelemetry-instrument sets it to grpc where it is not set"
)

_OPTIONS: Final = (
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_send_message_length", -1),
    # A proxy of the environment would be configuration that no caller passed in.
    ("grpc.enable_http_proxy", 0),
    # RetryPolicy decides about retries; the channel must be ready to reconnect whenever it does.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


class GrpcTransport:
    """A ``Transport`` that calls ``TraceService/Export`` at ``config.endpoint``."""

    def __init__(self, config: ExporterConfig) -> None:
        self.endpoint = config.display_url
        self._config = config
        self._lock = threading.Lock()
        self._credentials = None
        if not config.insecure:
            authorities, certificate, key = config.tls.contents()
            self._credentials = grpc.ssl_channel_credentials(
                root_certificates=authorities, private_key=key, certificate_chain=certificate
            )
        self._connect()

    def _connect(self) -> None:
        config = self._config
        compression = grpc.Compression.Gzip if config.compression == "gzip" else grpc.Compression.NoCompression
        options = {"options": _OPTIONS, "compression": compression}
        if self._credentials is None:
            self._channel = grpc.insecure_channel(config.endpoint, **options)
        else:
            self._channel = grpc.secure_channel(config.endpoint, self._credentials, **options)
        self._call = self._channel.unary_unary(METHOD, None, ExportTraceServiceResponse.FromString)

    def _reconnect(self, call: Any) -> None:
        """Use another connection than that of a call without a response. Calls that wait on it go on."""
        with self._lock:
            if self._call is call:
                self._connect()

    def send(self, body: bytes) -> ExportResult:
        """Call once and read the response."""
        call = self._call
        try:
            response = call(body, timeout=self._config.timeout, metadata=self._config.headers)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._reconnect(call)
            return self._failure(error)
        except ValueError as error:
            # The channel was closed meanwhile, which only an interrupted export does.
            return Retryable(sanitize_message(str(error), self._config.secrets))
        if response is None:  # a success without a message, or with a part of one
            return not_otlp("no ExportTraceServiceResponse")
        partial = response.partial_success
        return result_of(partial.rejected_spans, partial.error_message)

    def close(self) -> None:
        self._channel.close()

    def _failure(self, error: Any) -> ExportResult:
        code = error.code()
        message = sanitize_message(error.details() or "", self._config.secrets)
        reason = f"gRPC {code.name}: {message}" if message else f"gRPC {code.name}"
        if _NOT_HTTP2 in message:
            reason += f" ({_WRONG_PROTOCOL})"
        delay = _retry_info(error.trailing_metadata() or ())
        if code in RETRYABLE_CODES or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None):
            return Retryable(reason, delay)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
            return Rejected(reason, RejectionScope.SIZE)
        return Rejected(reason, _SCOPES.get(code, RejectionScope.REQUEST))


def _retry_info(metadata: Any) -> float | None:
    """Return the delay of a RetryInfo in the status details, in seconds; None without one."""
    for key, value in metadata:
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    delay: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                    return max(0.0, delay)
        except DecodeError:
            return None
    return None
