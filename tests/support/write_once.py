"""Helpers of the tests that each step is sent once: growing runs, a receiver that stores spans, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import ROLE, ROLE_ATTEMPT, ROLE_STEP, RUN_ID
from runspan.otlp.protobuf_reader import read_protobuf
from support.receivers import OK, Answer, Post, Receiver, http_receiver


def growing_run(run_id: str, done: int, status: str = "running", **members: Any) -> dict[str, Any]:
    """Return a run of which ``done`` steps have ended; if it is running, another step is too. Every third is an agent,
    with its attempts."""
    begin = "2026-01-15T12:00:00.000Z"
    steps: list[dict[str, Any]] = [finished_step(number) for number in range(done)]
    if status == "running":
        steps.append({"id": f"step_{done}", "type": "action", "status": "running", "startedAt": begin})
    end = {} if status in ("pending", "running", "suspended") else {"completedAt": "2026-01-15T13:00:00.000Z"}
    members_of_run = {"id": run_id, "workflowId": "wf_grows", "status": status, "startedAt": begin, "createdAt": begin}
    return {**members_of_run, **end, "steps": steps, **members}


def finished_step(number: int, **members: Any) -> dict[str, Any]:
    minute = f"{number // 60:02}:{number % 60:02}"
    times = {"startedAt": f"2026-01-15T12:{minute}.000Z", "completedAt": f"2026-01-15T12:{minute}.500Z"}
    step = {"id": f"step_{number}", "type": "action", "status": "completed", **times, "output": {"n": number}}
    if number % 3 == 2:
        attempt = {"attempt": 1, "status": "failed", **times, "error": {"code": "TIMEOUT", "message": "no response"}}
        step |= {"type": "agent", "attempt": 2, "attempts": [attempt]}
        step["output"] = {"model": "claude-sonnet-4", "usage": {"inputTokens": 100, "outputTokens": 10}}
    return step | members


@dataclass
class StoringReceiver:
    """A receiver that writes to a store."""

    receiver: Receiver
    store: SqliteStore

    @property
    def url(self) -> str:
        return self.receiver.url.removesuffix("/v1/traces")

    def text(self, run_id: str) -> bytes:
        """Return the document. Its newest revision must be complete."""
        document = self.store.document(run_id)
        assert document.incomplete == ()
        return document.text

    def copies(self, run_id: str = "", role: str = ROLE_STEP) -> Counter[bytes]:
        """Return how often each span was accepted."""
        found = [(span, attributes(span)) for span in self.receiver.taken]
        ids = [span.span_id for span, each in found if each.get(ROLE) == role and run_id in ("", each.get(RUN_ID))]
        return Counter(ids)


def attributes(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


@contextmanager
def storing_receiver(
    folder: Path, answer: Callable[[Post], Answer | None] = lambda post: None
) -> Iterator[StoringReceiver]:
    """Run a receiver that stores requests. answer: Returns the response to a request that is not stored, or None."""
    with SqliteStore(folder) as store:

        def respond(post: Post) -> Answer:
            instead = answer(post)
            if instead is not None:
                return instead
            store_request(store, post)
            return OK

        with http_receiver(respond) as receiver:
            yield StoringReceiver(receiver, store)


def store_request(store: SqliteStore, post: Post) -> None:
    """Write a request to a store, as ``serve`` does."""
    written = store.write(read_protobuf(post.message.SerializeToString()))
    assert not written.rejected


def assert_sent_once(kept: StoringReceiver, steps: int, attempts: int = -1, run_id: str = "") -> None:
    """Check that this many step spans were accepted, each once, and each of their attempts once."""
    copies = kept.copies(run_id)
    assert (len(copies), set(copies.values())) == (steps, {1})
    copies = kept.copies(run_id, ROLE_ATTEMPT)
    assert len(copies) == (steps // 3 if attempts < 0 else attempts)
    assert set(copies.values()) <= {1}


def copy_counts(copies: Counter[bytes]) -> list[int]:
    """Return how often each span was accepted, in ascending order."""
    return sorted(copies.values())


def step_counts(posts: Iterable[Post]) -> list[int]:
    """Return the number of step spans in each request."""
    return [sum(attributes(span).get(ROLE) == ROLE_STEP for span in post.spans) for post in posts]
