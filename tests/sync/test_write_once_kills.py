"""Killed at any moment, with answers lost as well, neither sync nor watch leaves out a step that the receiver lacks."""

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
KILLS = 5
LOST = 0.15


@dataclass
class Engine:
    """Runs that go on: steps end, and now and then one is told in another way than before, or again as it was: those
    are the changed ones. write: where a document goes whenever it changes."""

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

    def go_on(self) -> None:
        """One change of one run."""
        run_id = self.random.choice(list(self.notes))
        notes = self.notes[run_id]
        if notes and self.random.random() < 0.3:
            place = self.random.randrange(len(notes))
            notes[place] = "second" if notes[place] == "first" else "first"
            self.changed.add((run_id, f"step_{place}"))
        else:
            notes.append("first")
        self.write(self.document(run_id))

    def end(self) -> None:
        for run_id in self.notes:
            self.write(self.document(run_id, "completed"))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Goes on until the block ends."""
        done = threading.Event()

        def work() -> None:
            while not done.wait(self.random.uniform(0.0, 0.04)):
                self.go_on()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@dataclass
class Forgetful:
    """Stores every request, and does not tell of some. requests: the steps in each, by run and step id, in the order in
    which they were stored."""

    store: SqliteStore
    random: Random
    requests: list[list[tuple[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, post: Post) -> Answer:
        store_request(self.store, post)
        told = [attributes(span) for span in post.spans]
        steps = [(each[RUN_ID], each["runspan.step.id"]) for each in told if each.get(ROLE) == ROLE_STEP]
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


@pytest.mark.parametrize("kind", [syncing, watching])
def test_kills_leave_out_no_step_and_repeat_few(tmp_path: Path, kind: Any) -> None:
    """While runs go on, the sender is killed again and again; in the end every document is whole at the receiver, which
    keeps only what its newest revision names. Steps came twice only where a request got no answer or the sender
    died, which is far from every snapshot."""
    random = Random(SEED)
    with SqliteStore(tmp_path / "kept") as store:
        kept = Forgetful(store, Random(SEED + 1))
        with http_receiver(kept.answer) as receiver, kind(tmp_path, receiver.url) as (write, args):
            engine = Engine(write, random)
            engine.begin()
            pace = ("--follow", "--poll", "0.1s") if kind is syncing else ("--poll", "0.1s")
            with engine.at_work():
                for _ in range(KILLS):
                    before = len(kept.requests)
                    with running(*args, *pace) as child:
                        eventually(lambda before=before: len(kept.requests) > before + 6)  # type: ignore[misc]
                        time.sleep(random.uniform(0, 0.2))
                        assert child.end(signal.SIGKILL) == -signal.SIGKILL
            engine.end()
            expected = {run_id: engine.document(run_id, "completed") for run_id in engine.notes}
            finish(kind, args, pace, lambda: all(same(store, document) for document in expected.values()))
            for document in expected.values():
                assert same(store, document), document["id"]
    copies = Counter(step for request in kept.requests for step in request)
    assert copies.keys() == {(run_id, f"step_{n}") for run_id, notes in engine.notes.items() for n in range(len(notes))}
    assert engine.changed
    twice = sum(count - 1 for step, count in copies.items() if step not in engine.changed)
    assert twice < len(copies)  # with every snapshot, each of them came some ten times


def finish(kind: Any, args: tuple[object, ...], pace: tuple[object, ...], done: Callable[[], bool]) -> None:
    """Runs it once more, until all is there."""
    if kind is syncing:
        process(*args)
        return
    with running(*args, *pace) as child:
        eventually(done)
        assert child.end() == 0


def same(store: SqliteStore, document: dict[str, Any]) -> bool:
    """Whether the newest revision is whole and tells this document. White space in payloads is the writer's own."""
    found = store.document(document["id"])
    return found.incomplete == () and json.loads(found.text) == json.loads(Run.from_dict(document).text)
