"""Export workflow run documents as OpenTelemetry traces, and rebuild the exact documents from the traces."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runspan._version import __version__
from runspan.codec.decode import decode
from runspan.codec.encode import encode
from runspan.errors import (
    AccessError,
    BackendError,
    ConfigError,
    DocumentError,
    NotFound,
    PayloadError,
    QueryError,
    RunspanError,
    StoreError,
    TraceIncomplete,
)
from runspan.extras import missing_extra
from runspan.model.document import Run, Step
from runspan.model.span import Span

if TYPE_CHECKING:
    from runspan.backends import connect
    from runspan.recorder import Recorder, propagate
    from runspan.web.app import create_app

__all__ = [
    "AccessError",
    "BackendError",
    "ConfigError",
    "DocumentError",
    "NotFound",
    "PayloadError",
    "QueryError",
    "Recorder",
    "Run",
    "RunspanError",
    "Span",
    "Step",
    "StoreError",
    "TraceIncomplete",
    "__version__",
    "connect",
    "create_app",
    "decode",
    "encode",
    "propagate",
]

_LAZY = {
    "Recorder": "runspan.recorder",
    "connect": "runspan.backends",
    "create_app": "runspan.web.app",
    "propagate": "runspan.recorder",
}
"""Imported on first use: an engine that only encodes should not load a web framework or the SDK."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            return getattr(import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            raise missing_extra(error, f"runspan.{name}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
