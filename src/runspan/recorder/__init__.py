"""The plugin for engines written in Python: runs told as they happen, as traces and as their exact documents."""

from __future__ import annotations

from runspan.recorder.pace import Pace
from runspan.recorder.recorder import Recorder
from runspan.recorder.report import RecorderReport
from runspan.recorder.runs import RunRecording
from runspan.recorder.steps import StepRecording

__all__ = ["Pace", "Recorder", "RecorderReport", "RunRecording", "StepRecording"]
