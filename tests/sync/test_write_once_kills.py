"""Killed at any moment, and with lost responses, neither sync nor watch omits a step that the receiver lacks."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import ROLE, ROLE_STEP, RUN_ID
from support.cli import process, running
from support.receivers import CLOSE, OK, Answer, Post, http_receiver
from support.sync import eventually, local_server
from support.write_once import attributes, finished_step, growing_run, store_request

SEED = 20261125
RUNS = 12
KILLS = 4
LOST = 0.15


@dataclass
class Engine:
    """An engine whose runs continue: steps end, and some change, or change back. write: Takes each document."""

    write: Callable[[dict[str, Any]], None]
    random: Random
    notes: dict[str, list[str]] = field(default_factory=dict)
    changed: set[tuple[str, str]] = field(default_factory=set)

    def document(self, run_id: str, status: str = "running") -> dict[str, Any]:
        notes = self.notes[run_id]
        made = growing_run(run_id, len(notes), status)
        made["steps"][: len(notes)] = [finished_step(number, note=note) for number, note in enumerate(notes)]
        return made

    def begin(self) -> None:
        for number in range(RUNS):
            self.notes[f"run_{number}"] = []
            self.write(self.document(f"run_{number}"))

    def change_one(self) -> None:
        """Change one run."""
        run_id = self.random.choice(list(self.notes))
        notes = self.notes[run_id]
        if notes and self.random.random() < 0.3:
            index = self.random.randrange(len(notes))
            notes[index] = "second" if notes[index] == "first" else "first"
            self.changed.add((run_id, f"step_{index}"))
        else:
            notes.append("first")
        self.write(self.document(run_id))

    def end(self) -> None:
        for run_id in self.notes:
            self.write(self.document(run_id, "completed"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Change runs until the block ends."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(self.random.uniform(0.0, 0.04)):
                self.change_one()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@dataclass
class UnreliableReceiver:
    """Stores every request, and does not respond to some. requests: The (run id, step id) pairs of each."""

    store: SqliteStore
    random: Random
    requests: list[list[tuple[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, post: Post) -> Answer:
        store_request(self.store, post)
        found = [attributes(span) for span in post.spans]
        steps = [(each[RUN_ID], each["runspan.step.id"]) for each in found if each.get(ROLE) == ROLE_STEP]
        with self.lock:
            self.requests.append(steps)
            return CLOSE if self.random.random() < LOST else OK


@contextmanager
def syncing(tmp_path: Path, url: str) -> Iterator[tuple[Callable[[dict[str, Any]], None], tuple[object, ...]]]:
    with local_server(tmp_path / "source") as source:
        args = ("sync", source.url, "--endpoint", url, "--state-file", tmp_path / "checkpoint")
        yield source.put, (*args, "--requests-per-minute", 0, "--heartbeat", "0s")


@contextmanager
def watching(tmp_path: Path, url: str) -> Iterator[tuple[Callable[[dict[str, Any]], None], tuple[object, ...]]]:
    folder = tmp_path / "in"
    folder.mkdir()

    def write(document: dict[str, Any]) -> None:
        part = folder / f"{document['id']}.part"
        part.write_text(json.dumps(document))
        part.rename(part.with_suffix(".json"))

    yield write, ("export", "--watch", folder, "--endpoint", url)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", [syncing, watching])
def test_kills_leave_out_no_step_and_repeat_few(tmp_path: Path, kind: Any) -> None:
    """While runs change, the sender is killed again and again. In the end the receiver, which keeps only the steps of
    the newest revision, has every document completely. Only a lost response or a kill repeats steps."""
    random = Random(SEED)
    with SqliteStore(tmp_path / "kept") as store:
        kept = UnreliableReceiver(store, Random(SEED + 1))
        with http_receiver(kept.answer) as receiver, kind(tmp_path, receiver.url) as (write, args):
            engine = Engine(write, random)
            engine.begin()
            interval = ("--follow", "--poll", "0.1s") if kind is syncing else ("--poll", "0.1s")
            with engine.working():
                for _ in range(KILLS):
                    before = len(kept.requests)
                    with running(*args, *interval) as child:
                        eventually(lambda before=before: len(kept.requests) > before + 6)  # type: ignore[misc]
                        time.sleep(random.uniform(0, 0.2))
                        assert child.end(signal.SIGKILL) == -signal.SIGKILL
            engine.end()
            expected = {run_id: engine.document(run_id, "completed") for run_id in engine.notes}
            finish(kind, args, interval, lambda: all(same(store, document) for document in expected.values()))
            for document in expected.values():
                assert same(store, document), document["id"]
    copies = Counter(step for request in kept.requests for step in request)
    assert copies.keys() == {(run_id, f"step_{n}") for run_id, notes in engine.notes.items() for n in range(len(notes))}
    assert engine.changed
    repeated = sum(count - 1 for step, count in copies.items() if step not in engine.changed)
    assert repeated < len(copies)  # sent with every snapshot, each would have come about ten times


def finish(kind: Any, args: tuple[object, ...], interval: tuple[object, ...], done: Callable[[], bool]) -> None:
    """Run the sender once more, until the receiver has everything."""
    if kind is syncing:
        process(*args)
        return
    with running(*args, *interval) as child:
        eventually(done)
        assert child.end() == 0


def same(store: SqliteStore, document: dict[str, Any]) -> bool:
    """Return whether the newest revision is complete and equals the document except for white space in payloads."""
    found = store.document(document["id"])
    return found.incomplete == () and json.loads(found.text) == json.loads(Run.from_dict(document).text)
