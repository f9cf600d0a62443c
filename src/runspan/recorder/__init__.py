"""The plugin for engines written in Python, which exports runs while they happen, as traces and exact documents."""

from __future__ import annotations

from runspan.recorder.config import ExportConfig
from runspan.recorder.context import propagate
from runspan.recorder.outbox import FlushResult
from runspan.recorder.recorder import Recorder, RecorderReport
from runspan.recorder.recording import RunRecording, StepRecording

__all__ = [
    "ExportConfig",
    "FlushResult",
    "Recorder",
    "RecorderReport",
    "RunRecording",
    "StepRecording",
    "propagate",
]
