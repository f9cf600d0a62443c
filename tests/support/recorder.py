"""A recorder with a clock of its own, over a real receiver on loopback, and what the receiver has of it."""

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
from runspan.model.ids import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.recorder import ExportConfig
from support.receivers import OK, Answer, Post, Receiver, http_receiver

BEGIN = 1_790_000_000_000_000_000
"""2026-09-21T14:13:20Z."""
QUICK = ExportConfig(snapshot_delay=0.005, retry_initial_delay=0.02, retry_max_delay=0.05)
WAIT = 20.0


class Ticking:
    """A clock that goes on by a step each time it is read."""

    def __init__(self, step: int = 1_000_000) -> None:
        self._times = itertools.count(BEGIN, step)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            return next(self._times)


class Taken:
    """What a receiver has, and a recorder that sends to it."""

    def __init__(self, receiver: Receiver, recorder: Recorder) -> None:
        self.receiver = receiver
        self.recorder = recorder

    @property
    def own(self) -> list[Span]:
        """runspan's spans, in the order in which they were taken."""
        whole = ExportTraceServiceRequest()
        with self.receiver.lock:
            whole.resource_spans.add().scope_spans.add().spans.extend(self.receiver.taken)
        return list(read_protobuf(whole.SerializeToString()).spans)

    @property
    def foreign(self) -> list[Any]:
        """Spans of other instrumentation, as protobuf."""
        return [span for span in self.receiver.taken if not any(pair.key == ROLE for pair in span.attributes)]

    def of(self, run_id: str) -> list[Span]:
        """The spans of one run."""
        trace_id = run_ids(run_id, self.recorder.tenant).trace_id
        return [span for span in self.own if span.trace_id == trace_id]

    def document(self, run_id: str) -> Run:
        """The document that the spans prove."""
        return decode(self.of(run_id))

    def role(self, role: str) -> list[Span]:
        """The spans of a role."""
        return [span for span in self.own if span.attributes().get(ROLE) == role]

    def step(self, step_id: str) -> Span:
        """The only span of a step."""
        (found,) = [span for span in self.role("step") if span.attributes()["runspan.step.id"] == step_id]
        return found


@contextmanager
def recording(answer: Callable[[Post], Answer] = lambda post: OK, **settings: Any) -> Iterator[Taken]:
    """A recorder that ticks a millisecond at a time, and the receiver it sends to."""
    settings = {"export": QUICK, "clock": Ticking(), "random": Random(7), **settings}
    with http_receiver(answer) as receiver:
        recorder = Recorder(endpoint=receiver.url, **settings)
        try:
            yield Taken(receiver, recorder)
        finally:
            recorder.shutdown(1.0)


def until(condition: Callable[[], Any], seconds: float = WAIT) -> Any:
    """What the condition answers once it answers something true; AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


def proved(taken: Taken, run: Any) -> dict[str, Any]:
    """The document of a run that has ended, once it was shown that the spans prove the same bytes."""
    assert taken.recorder.flush(WAIT)
    direct = run.document()
    assert taken.document(run.id).text == direct.text
    assert Run.from_json(direct.text).text == direct.text
    found: dict[str, Any] = direct.to_dict()
    return found
