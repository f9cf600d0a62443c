"""The plugin for engines written in Python: runs told as they happen, as traces and as their exact documents."""

from __future__ import annotations

from runspan.recorder.config import ExportConfig
from runspan.recorder.recorder import Recorder
from runspan.recorder.run import RunRecording
from runspan.recorder.stats import RecorderReport
from runspan.recorder.step import StepRecording

__all__ = ["ExportConfig", "Recorder", "RecorderReport", "RunRecording", "StepRecording"]
