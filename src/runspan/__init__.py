"""Workflow run logs as OpenTelemetry traces, and the exact run documents back from the traces."""

from runspan._version import __version__
from runspan.decode import decode
from runspan.document import Step
from runspan.encode import encode
from runspan.run import Run

__all__ = ["Run", "Step", "__version__", "decode", "encode"]
