"""Real backends for tests: one that an environment variable names, else a program on PATH, else a container."""

from __future__ import annotations

from support.servers.finding import Place, require
from support.servers.process import Failed, Program
from support.servers.tempo import Tempo, start_tempo

__all__ = ["Failed", "Place", "Program", "Tempo", "require", "start_tempo"]
