"""OTLP over gRPC: one unary call a request, the body passed through as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from runspan._version import __version__
from runspan.delivery.batch import Request
from runspan.delivery.config import ExporterConfig
from runspan.delivery.result import ExportResult, Rejected, RejectionScope, Retryable, result_of_status
from runspan.errors import SettingError
from runspan.http.urls import sanitize_message

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

RETRIED: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The codes that OTLP allows to send again after; RESOURCE_EXHAUSTED joins them when it comes with RetryInfo."""

_SCOPES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: RejectionScope.RUNS,
    grpc.StatusCode.UNAUTHENTICATED: RejectionScope.ENDPOINT,
    grpc.StatusCode.PERMISSION_DENIED: RejectionScope.ENDPOINT,
    grpc.StatusCode.UNIMPLEMENTED: RejectionScope.ENDPOINT,
}

_OPTIONS: Final = (
    ("grpc.primary_user_agent", f"runspan/{__version__}"),
    ("grpc.max_send_message_length", -1),
    # A proxy of the environment would be a setting that nobody passed in.
    ("grpc.enable_http_proxy", 0),
    # Our own retries decide; the channel must be ready to connect again whenever they come.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


class GrpcTransport:
    """Calls ``TraceService/Export`` at ``settings.endpoint``."""

    def __init__(self, settings: ExporterConfig) -> None:
        self._settings = settings
        compression = grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression
        options = {"options": _OPTIONS, "compression": compression}
        if settings.insecure:
            self._channel = grpc.insecure_channel(settings.endpoint, **options)
        else:
            self._channel = grpc.secure_channel(settings.endpoint, _credentials(settings), **options)
        self._call = self._channel.unary_unary(METHOD, None, ExportTraceServiceResponse.FromString)

    @property
    def endpoint(self) -> str:
        return self._settings.display_url

    def send(self, request: Request) -> ExportResult:
        """Calls once and reads the answer."""
        try:
            response = self._call(request.body, timeout=self._settings.timeout, metadata=self._settings.headers)
        except grpc.RpcError as error:
            return self._failure(error)
        except ValueError as error:
            # Raised for a channel that was closed meanwhile, which only an interrupted export does.
            return Retryable(sanitize_message(str(error), self._settings.secrets))
        return result_of_status(response)

    def close(self) -> None:
        self._channel.close()

    def _failure(self, error: Any) -> ExportResult:
        code = error.code()
        words = sanitize_message(error.details() or "", self._settings.secrets)
        reason = f"gRPC {code.name}: {words}" if words else f"gRPC {code.name}"
        delay = _retry_info(error.trailing_metadata() or ())
        if code in RETRIED or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None):
            return Retryable(reason, delay)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in words:
            return Rejected(reason, RejectionScope.SIZE)
        return Rejected(reason, _SCOPES.get(code, RejectionScope.REQUEST))


def _retry_info(metadata: Any) -> float | None:
    """The delay of a RetryInfo in the status details, in seconds; None without one."""
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


def _credentials(settings: ExporterConfig) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=_file(settings.certificate),
        private_key=_file(settings.client_key),
        certificate_chain=_file(settings.client_certificate),
    )


def _file(name: str | None) -> bytes | None:
    try:
        return Path(name).read_bytes() if name else None
    except OSError as error:
        got = f"{error.strerror}: {name}"
        raise SettingError(where="OTLP TLS files", expected="readable PEM files", got=got) from None
