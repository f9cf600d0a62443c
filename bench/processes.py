"""Child processes of the benchmark: helpers that print a JSON line when ready, and workers that end with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def environment() -> dict[str, str]:
    """Return the environment without OTEL_ variables, which would change what is measured."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RUNSPAN_"))}


@contextmanager
def helper(module: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Run a module of the benchmark that serves until its standard input ends. Yield its first line and its ``pid``."""
    command = [sys.executable, "-m", module, json.dumps(options)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{module} ended before it was ready")
            yield {**json.loads(line), "pid": process.pid}
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def worker(module: str, options: Mapping[str, Any], timeout: float = 3600) -> dict[str, Any]:
    """Run a module of the benchmark in its own process, and return the JSON of its last line."""
    command = [sys.executable, "-m", module, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {options} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
