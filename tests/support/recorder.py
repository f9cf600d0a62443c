"""A recorder with a test clock that sends to a real receiver on loopback, and the spans that the receiver accepted."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runspan import Recorder, Run, Span, decode
from runspan.codec.fields import ROLE
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig
from support.receivers import OK, Answer, Post, Receiver, http_receiver

START = 1_790_000_000_000_000_000
"""2026-09-21T14:13:20Z in nanoseconds."""
QUICK = ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.05)
WAIT = 20.0
"""Seconds to wait for something that is sure to come."""


class TickingClock:
    """A clock that advances by a step each time it is read."""

    def __init__(self, step: int = 1_000_000) -> None:
        self._times = itertools.count(START, step)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            return next(self._times)


class Harness:
    """A recorder, and the receiver that it sends to."""

    def __init__(self, receiver: Receiver, recorder: Recorder) -> None:
        self.receiver = receiver
        self.recorder = recorder

    @property
    def spans(self) -> list[Span]:
        """The accepted spans of runspan, in the order of their arrival."""
        request = ExportTraceServiceRequest()
        with self.receiver.lock:
            for post in self.receiver.accepted:
                request.MergeFrom(post.message)
        return list(read_protobuf(request.SerializeToString()).spans)

    @property
    def foreign_spans(self) -> list[Any]:
        """The accepted spans of other instrumentation, as protobuf messages."""
        return [span for span in self.receiver.taken if not any(pair.key == ROLE for pair in span.attributes)]

    def spans_of(self, run_id: str) -> list[Span]:
        """Return the spans of one run."""
        trace_id = run_ids(run_id, self.recorder.tenant).trace_id
        return [span for span in self.spans if span.trace_id == trace_id]

    def document(self, run_id: str) -> Run:
        """Return the document decoded from the spans of a run."""
        return decode(self.spans_of(run_id))

    def with_role(self, role: str) -> list[Span]:
        """Return the spans of a role."""
        return [span for span in self.spans if span.attributes().get(ROLE) == role]

    def step_span(self, step_id: str) -> Span:
        """Return the only span of a step."""
        (found,) = [span for span in self.with_role("step") if span.attributes()["runspan.step.id"] == step_id]
        return found


@contextmanager
def recording(answer: Callable[[Post], Answer] = lambda post: OK, **options: Any) -> Iterator[Harness]:
    """A recorder whose clock advances by a millisecond at each reading, and the receiver that it sends to."""
    options = {"export": QUICK, "clock": TickingClock(), "random": Random(7), **options}
    with http_receiver(answer) as receiver:
        recorder = Recorder(endpoint=receiver.url, **options)
        try:
            yield Harness(receiver, recorder)
        finally:
            recorder.shutdown(1.0)


def wait_until(condition: Callable[[], Any], seconds: float = WAIT) -> Any:
    """Return the first true value of the condition. AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.002)
    return value


def no_worker_is_left() -> None:
    """Wait until the threads of all recorders have ended."""
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "runspan-recorder"])


def delivered_document(harness: Harness, run: Any) -> dict[str, Any]:
    """Flush, check that the spans of an ended run decode to its document byte for byte, and return that."""
    assert not harness.recorder.flush(WAIT).is_waiting
    assert run.flush(0)
    document = run.document()
    assert harness.document(run.id).text == document.text
    assert Run.from_json(document.text).text == document.text
    found: dict[str, Any] = document.to_dict()
    return found
