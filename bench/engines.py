"""One contestant's live runs as a process of its own: a bare engine that does nothing but record steps.

Run as ``python -m bench.engines OPTIONS``; its last line is ``{"engine": s, "cpu": s, "wall": s, "steps": n}``, where
``engine`` is processor time of the engine's own thread and ``cpu`` of all threads until everything was delivered.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.trace import SpanKind

from bench import stock
from bench.machine import pin
from bench.senders import ALL
from runspan import Recorder

INPUT: Final = {"invoice": "in_1QbkYd", "customer": "cus_SJuN1p3r", "amount": 4900, "currency": "eur"}
OUTPUT: Final = {
    "charge": "ch_3Q9xV8Lk8sYw",
    "status": "paid",
    "lines": [{"sku": "A-1", "qty": 2}, {"sku": "B-7", "qty": 1}],
}
_FLUSH_SECONDS: Final = 300


class Sdk:
    """Plain spans of the SDK with the attributes that a user would set, and an unbounded queue."""

    def __init__(self, url: str) -> None:
        self.provider = stock.provider(url, queue=ALL)
        self.tracer = self.provider.get_tracer("bench")

    def run(self, number: int, steps: int, gap: float = 0.0) -> None:
        """Record one run: a root span, and a child for each step. gap: Seconds between steps."""
        attributes = {
            "runspan.run.id": f"run_{number}",
            "runspan.workflow.id": "wf_bench",
            "runspan.run.input": _text(INPUT),
        }
        with self.tracer.start_as_current_span("run wf_bench", kind=SpanKind.SERVER, attributes=attributes) as root:
            for index in range(steps):
                with self.tracer.start_as_current_span(f"step {index}") as span:
                    span.set_attributes(
                        {
                            "runspan.run.id": f"run_{number}",
                            "runspan.step.id": f"step-{index}",
                            "runspan.step.name": f"step {index}",
                            "runspan.step.type": "action",
                            "runspan.step.input": _text(INPUT),
                            "runspan.step.output": _text(OUTPUT),
                            "runspan.step.status": "completed",
                        }
                    )
                _wait(gap)
            root.set_attributes({"runspan.run.status": "completed", "runspan.run.output": _text(OUTPUT)})

    def flush(self) -> None:
        """Export everything."""
        self.provider.force_flush(_FLUSH_SECONDS * 1000)


class Recorded:
    """The Recorder: the same data, with snapshots while the run lasts and the exact document at the end."""

    def __init__(self, url: str) -> None:
        self.recorder = Recorder(endpoint=url, environ={"OTEL_EXPORTER_OTLP_COMPRESSION": "none"})

    def run(self, number: int, steps: int, gap: float = 0.0) -> None:
        """Record one run. gap: Seconds between steps."""
        with self.recorder.run("wf_bench", run_id=f"run_{number}", input=INPUT) as run:
            for index in range(steps):
                with run.step(f"step-{index}", name=f"step {index}", type="action") as step:
                    step.set_input(INPUT)
                    step.set_output(OUTPUT)
                _wait(gap)
            run.set_output(OUTPUT)

    def flush(self) -> None:
        """Export everything. Raise RuntimeError if something was lost."""
        result = self.recorder.flush(_FLUSH_SECONDS)
        if not result:
            raise RuntimeError(str(result))


class Through(Recorded):
    """The Recorder through the span processors of a TracerProvider, and so the SDK's own encoder."""

    def __init__(self, url: str) -> None:
        self.recorder = Recorder(provider=stock.provider(url))


CONTESTANTS: Final[dict[str, Callable[[str], Any]]] = {"sdk": Sdk, "recorder": Recorded, "through": Through}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _wait(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def main() -> None:
    options = json.loads(sys.argv[1])
    pin(options.get("cpu"))
    logging.disable(logging.CRITICAL)
    contestant = CONTESTANTS[options["contestant"]](options["url"])
    runs, steps = options["runs"], options["steps"]
    for number in range(max(1, runs // 20)):
        contestant.run(-1 - number, steps)
    contestant.flush()
    gc.collect()
    wall, cpu, engine = time.perf_counter(), time.process_time(), time.thread_time()
    for number in range(runs):
        contestant.run(number, steps, options["gap"])
    engine = time.thread_time() - engine
    contestant.flush()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"engine": engine, "cpu": cpu, "wall": wall, "steps": runs * steps}))


if __name__ == "__main__":
    main()
