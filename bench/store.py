"""Section ``store``: the embedded store at several sizes in turn: ingest, get, lists, statistics, disk, cost of fsync.

The stores of all sizes are open at once and take turns, so that a figure at one size is compared with another of the
same minute. Lists and gets are single calls in this process, without HTTP.
"""

from __future__ import annotations

import gc
import random
import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from bench.data import seed
from bench.figures import Figure, Goal, at_least, at_most, ratio, take_turns
from bench.plan import Plan
from runspan import encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.index import stats, stats_reader
from runspan.backends.sqlite.index.indexer import SCHEMA
from runspan.codec.facts import run_facts
from runspan.contracts import RunQuery, StatsQuery
from runspan.model.document import Run, sort_time
from runspan.model.span import run_ids as ids_of
from runspan.model.timestamps import parse_ns
from runspan.otlp.bulk_reader import read_request
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.storage.data_directory import INDEX_FILE
from runspan.storage.sqlite_file import open_database
from runspan.testing import generate

T = TypeVar("T")

_SECTION = 3
_GOAL_SIZE = 1_000_000
"""The ingest goal compares a million runs with a tenth of it; smaller sizes measure the caches."""

_LARGE = 100_000
"""Smaller stores have many half-empty pages, and a tenth of them has no full lists."""
_PART = 20_000
"""Runs that are made at once."""
_TOGETHER = 20
"""Runs whose pages are read before they are timed: on a virtual machine these may not be in memory a second later."""
_COLD = "get of a run not read before"
"""It shows the disk, or the host of a virtual machine, as much as the store."""
_RESOURCE = Resource()
_RUNS_A_REQUEST = 320
"""About as many as in a request of the exporter."""
_DAY = 86_400 * 10**9
_STEPS = 500
"""Of the run that grows."""
_WRITERS = 4
"""Concurrent requests, as in a server, which the store commits together."""


class Shelf:
    """A store with runs, and what is needed to read them."""

    def __init__(self, folder: Path, size: int, number: int, *, index: bool | None = None) -> None:
        self.store = SqliteStore(folder, index=index)
        self.folder = folder
        self.size = size
        self.raw_bytes = 0
        self.ids: list[str] = []
        self.newest = 0
        for part in _filling(size, number):
            self.raw_bytes += part.raw_bytes
            self.ids += part.ids
            self.newest = max(self.newest, part.newest)
            write_all(self.store, part.bodies)

    def read_pages(self, run_ids: Iterable[str]) -> None:
        """Read runs with another connection, so that their pages are in memory, and not in the store's own cache."""
        select = "SELECT * FROM runs WHERE trace_id = ?"
        with closing(sqlite3.connect(f"{self.store.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            for run_id in run_ids:
                connection.execute(select, (ids_of(run_id, "").trace_id,)).fetchone()

    def disk_bytes(self) -> int:
        """Return the file after a checkpoint of its log."""
        with sqlite3.connect(self.store.path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.store.path.stat().st_size


class _Part(NamedTuple):
    """Some of the runs of a shelf, as requests."""

    bodies: list[bytes]
    raw_bytes: int
    ids: list[str]
    """Those of a few of the runs."""
    newest: int


def _filling(size: int, number: int) -> Iterator[_Part]:
    """Yield the runs of a shelf. Another process makes them: with ten million, both take half an hour."""
    waiting: deque[Future[_Part]] = deque()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for start in range(0, size, _PART):
            waiting.append(pool.submit(_make_part, min(_PART, size - start), number * 1_000_000 + start, 20_000 / size))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _make_part(count: int, number: int, share: float) -> _Part:
    chosen = random.Random(number)
    texts = list(generate(count, seed=number))
    runs = [Run.from_json(text) for text in texts]
    return _Part(
        bodies(runs),
        sum(map(len, texts)),
        [run.id for run in runs if chosen.random() < share],
        max(parse_ns(str(run.envelope.started_at)) or 0 for run in runs),
    )


def bodies(runs: list[Run]) -> list[bytes]:
    """Return OTLP requests like those of the exporter."""
    chunks = [runs[position : position + _RUNS_A_REQUEST] for position in range(0, len(runs), _RUNS_A_REQUEST)]
    return [
        request_bytes(_RESOURCE, chain.from_iterable([write_run(run, observed_at=1) for run in chunk]))
        for chunk in chunks
    ]


def write_all(store: SqliteStore, requests: list[bytes]) -> tuple[float, float]:
    """Return the seconds until all requests are durable, several at a time, by the clock and by processor time."""

    def write(body: bytes) -> None:
        written = store.write(read_request(body))
        if written.rejected:
            raise RuntimeError(str(written.rejected[0]))

    return _all(write, requests, _WRITERS)


def _all(work: Callable[[T], object], items: Iterable[T], threads: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - wall, time.process_time() - cpu


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    sizes = [2_000, 10_000] if plan.quick else [10_000, 100_000, 1_000_000] if plan.full else [10_000, 100_000]
    if plan.scale:
        sizes = [10_000, 10_000_000]
    if plan.runs:
        sizes = [max(plan.runs // 10, 1), plan.runs]
    rounds = plan.rounds or (3 if plan.quick else 5)
    with ExitStack() as stack:
        shelves = []
        for part, size in enumerate(sizes):
            begun = time.perf_counter()
            shelf = Shelf(plan.folder / f"store-{size}", size, seed(_SECTION, 0, part))
            stack.callback(shelf.store.close)
            shelves.append(shelf)
            plan.say(f"store of {size:,} runs filled in {time.perf_counter() - begun:.0f} s")
        figures = [_disk(shelf) for shelf in shelves]
        figures += _reads(plan, shelves, rounds)
        if plan.scale:
            return figures
        figures += _ingest(plan, shelves, rounds)
        figures += _statistics(plan, shelves[-1], rounds)
    return [*figures, *_durability(plan, rounds), _growth(plan, rounds), *_index(plan, rounds)]


def _disk(shelf: Shelf) -> Figure:
    value = shelf.disk_bytes() / shelf.raw_bytes
    goal = at_most(0.38) if shelf.size >= _LARGE else None
    return Figure("store", f"disk / raw JSON at {shelf.size:,} runs", value, goal=goal, note="indexes included")


def _reads(plan: Plan, shelves: list[Shelf], rounds: int) -> list[Figure]:
    calls = 200 if plan.quick else 500
    medians: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(rounds):
        times: dict[tuple[str, int], list[float]] = defaultdict(list)
        choose = random.Random(turn)
        chosen: dict[int, list[str]] = {}
        for _ in range(calls):
            for shelf in shelves:
                if not chosen.get(shelf.size):
                    chosen[shelf.size] = choose.choices(shelf.ids, k=_TOGETHER)
                    shelf.read_pages(chosen[shelf.size])
                for name, call in _questions(shelf, chosen[shelf.size].pop(), choose.choice(shelf.ids)):
                    begun = time.perf_counter()
                    call()
                    times[name, shelf.size].append(time.perf_counter() - begun)
        for key, each in times.items():
            medians[key].append(median(each))
    first, last = shelves[0].size, shelves[-1].size
    for (name, size), each in medians.items():
        plan.say(f"store {name} at {size:,} runs: {min(each) * 1e6:.0f} µs")
    figures = []
    for name in dict.fromkeys(name for name, _ in medians):
        most = 2.0 if name == "get" else 1.3 if plan.scale else 1.2
        goal = at_most(most) if first >= _LARGE // 10 and name != _COLD else None
        value, low, high = ratio(medians[name, last], medians[name, first])
        figures.append(Figure("store", f"{name} p50, {last:,} / {first:,} runs", value, low, high, goal=goal))
    return figures


def _questions(shelf: Shelf, run_id: str, other_id: str) -> Iterator[tuple[str, Callable[[], object]]]:
    search = shelf.store.search
    yield "get", lambda: shelf.store.document(run_id)
    yield _COLD, lambda: shelf.store.document(other_id)
    yield "list of 50", lambda: search(RunQuery())
    yield "list of 50 by workflow", lambda: search(RunQuery(workflow_id="wf_lead_enrichment"))
    yield "list of 50 by status", lambda: search(RunQuery(status="failed"))
    yield "list of 50 since 7 days", lambda: search(RunQuery(since=shelf.newest - 7 * 86_400 * 10**9))


def _ingest(plan: Plan, shelves: list[Shelf], rounds: int) -> list[Figure]:
    """Measure the ingest of new runs into the stores, and of single documents into the smallest.

    Senders send runs in the order of their time, as they end or from a file: then only the trace ids are random. At
    random times, almost every run also changes a page of its own in the other indexes of a large store.
    """
    runs = min(2560, shelves[0].size)

    def fresh(turn: int, part: int) -> list[Run]:
        return [Run.from_json(text) for text in generate(runs, seed=seed(_SECTION, turn + 1, part))]

    def newest(turn: int, part: int, shelf: Shelf) -> list[Run]:
        """Return runs of a day after all that are stored, in the order of their time."""
        start = datetime.fromtimestamp(shelf.newest // 10**9, UTC) + timedelta(days=turn + 1)
        documents = generate(runs, seed=seed(_SECTION, turn + 1, part), start=start, span_days=1)
        return sorted(map(Run.from_json, documents), key=lambda run: sort_time(run.envelope))

    def at_random(part: int, shelf: Shelf) -> Callable[[int], tuple[float, float]]:
        return lambda turn: _with_log(shelf.store, partial(write_all, shelf.store, bodies(fresh(turn, part))))

    def in_order(part: int, shelf: Shelf) -> Callable[[int], tuple[float, float]]:
        return lambda turn: _with_log(shelf.store, partial(write_all, shelf.store, bodies(newest(turn, part, shelf))))

    def put(turn: int) -> tuple[float, float]:
        store = shelves[0].store
        documents = fresh(turn, 900)
        return _with_log(store, lambda: _all(lambda run: store.put(run, observed_at=time.time_ns()), documents, 8))

    contestants = {f"at random, {shelf.size:,}": at_random(part, shelf) for part, shelf in enumerate(shelves)}
    contestants |= {f"in order, {shelf.size:,}": in_order(500 + part, shelf) for part, shelf in enumerate(shelves)}
    samples = take_turns({**contestants, "put": put}, rounds)
    for name, each in samples.items():
        wall, cpu = (min(values) / runs * 1e6 for values in zip(*each, strict=True))
        plan.say(f"store ingest {name}: {wall:.0f} µs a run, {cpu:.0f} µs of processor time")
    first, before, last = (f"{shelves[place].size:,}" for place in (0, -2, -1))
    goal = at_least(0.9) if shelves[-1].size >= _GOAL_SIZE else None
    note = f"durable OTLP requests of {_RUNS_A_REQUEST} runs, {_WRITERS} at a time, and the checkpoint of their log"
    return [
        _rate(
            f"ingest rate in order of time, {last} / {before} runs stored",
            samples[f"in order, {before}"],
            samples[f"in order, {last}"],
            goal,
            f"runs newer than all stored, as senders send them; {note}",
        ),
        _rate(
            f"ingest rate, {last} / {before} runs stored",
            samples[f"at random, {before}"],
            samples[f"at random, {last}"],
            goal,
            f"runs of random times among those stored, the worst case; {note}",
        ),
        _rate(
            "rate of single documents / OTLP",
            samples[f"at random, {first}"],
            samples["put"],
            note="durable puts, 8 at a time",
        ),
    ]


def _with_log(store: SqliteStore, write: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the seconds of a write that begins with an empty log, and of the checkpoint of what it has left in it.

    Otherwise a sample would include the checkpoint of pages that others have changed, and the best samples none.
    """
    store._writer.truncate_log()
    wall, cpu = write()
    log_wall, log_cpu = _all(lambda writer: writer.truncate_log(), [store._writer], 1)
    return wall + log_wall, cpu + log_cpu


def _rate(
    name: str,
    over: list[tuple[float, float]],
    under: list[tuple[float, float]],
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    """Return the ratio of two rates, of what took ``under`` and what took ``over``."""
    (over_wall, over_cpu), (under_wall, under_cpu) = zip(*over, strict=True), zip(*under, strict=True)
    return Figure("store", name, *ratio(over_wall, under_wall), ratio(over_cpu, under_cpu)[0], goal=goal, note=note)


def _durability(plan: Plan, rounds: int) -> list[Figure]:
    """Measure the cost of waiting for the disk: the same requests with synchronous = OFF."""
    runs = 1000 if plan.quick else 4000
    runs = min(runs, plan.runs or runs)
    with SqliteStore(plan.folder / "durable") as durable, SqliteStore(plan.folder / "unsynced") as unsynced:
        # The store has no such option, and should have none.
        unsynced._writer.submit(_unsync, alone=True)

        def into(store: SqliteStore, part: int) -> Callable[[int], tuple[float, float]]:
            def sample(turn: int) -> tuple[float, float]:
                made = [Run.from_json(text) for text in generate(runs, seed=seed(_SECTION, 100 + turn, part))]
                return write_all(store, bodies(made))

            return sample

        samples = take_turns({"durable": into(durable, 1), "unsynced": into(unsynced, 2)}, rounds)
    return [_rate("ingest rate, durable / synchronous off", samples["unsynced"], samples["durable"], at_least(0.9))]


def _index(plan: Plan, rounds: int) -> list[Figure]:
    """Measure what the index takes for runs that are stored already."""
    count = 500 if plan.quick else 5_000
    stored, indexed, shares = [], [], []
    for turn in range(rounds):
        folder = plan.folder / f"index-{turn}"
        documents = list(generate(count, seed=seed(_SECTION, 300 + turn)))
        with SqliteStore(folder) as store:
            stored.append(write_all(store, bodies([Run.from_json(text) for text in documents]))[1])
        begun = time.process_time()
        with SqliteStore(folder, index=True) as store:
            while store.search(RunQuery(order="duration", limit=1)).partial:
                pass
            indexed.append(time.process_time() - begun)
        shares.append((folder / INDEX_FILE).stat().st_size / sum(map(len, documents)))
    value, low, high = ratio(indexed, stored)
    note = "processor time, in the background of a server; texts, filters and statistics"
    return [
        Figure("store", "index a run / store it", value, low, high, note=note),
        Figure("store", "index / raw JSON", median(shares), min(shares), max(shares), note="on disk"),
    ]


def _statistics(plan: Plan, shelf: Shelf, rounds: int) -> list[Figure]:
    """Measure statistics of as many runs as the largest store has, against a list of it."""
    questions = {
        "by workflow": StatsQuery(group_by=("workflow",)),
        "by workflow in 30 days": StatsQuery(
            group_by=("workflow",), since=shelf.newest - 30 * _DAY + _DAY // 2, until=shelf.newest
        ),
        "by workflow and day in 30 days": StatsQuery(
            group_by=("workflow", "day"), since=shelf.newest - 30 * _DAY, until=shelf.newest, limit=1000
        ),
        "of one workflow by day in 90 days": StatsQuery(
            workflow_id="wf_lead_enrichment", group_by=("day",), since=shelf.newest - 90 * _DAY, until=shelf.newest
        ),
    }
    with closing(open_database(None, SCHEMA)) as connection:
        connection.execute("INSERT INTO progress VALUES (1, 0, x'', 0, 0)")
        documents = generate(shelf.size, seed=seed(_SECTION, 400))
        while chunk := list(islice(documents, 1000)):
            stats.apply(connection, [("", run_facts(Run.from_json(text)), 1) for text in chunk])
        calls: dict[str, Callable[[int], float]] = {
            name: _timed(partial(stats_reader.read, connection, query, lambda trace_id: None))
            for name, query in questions.items()
        }
        samples = take_turns({"list": _timed(partial(shelf.store.search, RunQuery())), **calls}, max(rounds, 5))
    figures = []
    for name in questions:
        plan.say(f"store statistics {name} at {shelf.size:,} runs: {min(samples[name]) * 1e3:.1f} ms")
        figure = f"statistics {name} / list of 50, {shelf.size:,} runs"
        figures.append(Figure("store", figure, *ratio(samples[name], samples["list"])))
    return figures


def _timed(call: Callable[[], object]) -> Callable[[int], float]:
    def sample(turn: int) -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    return sample


def _growth(plan: Plan, rounds: int) -> Figure:
    """Measure a run that grows by one step with each request, by processor time: its length and half of it.

    In one thread, since each request follows from the one before. The store is the same in all rounds, as in a server:
    a commit costs more as long as the file of the log still grows.
    """
    with SqliteStore(plan.folder / "growth") as store:

        def grow(steps: int) -> Callable[[int], float]:
            def sample(turn: int) -> float:
                requests = list(_versions(steps, seed(_SECTION, 200 + turn)))
                gc.collect()
                gc.freeze()  # as a server does when it starts: what other figures have made is not looked at again
                begun = time.process_time()
                for body in requests:
                    store.write(read_request(body))
                passed = time.process_time() - begun
                gc.unfreeze()
                return passed

            return sample

        samples = take_turns({"half": grow(_STEPS // 2), "whole": grow(_STEPS)}, rounds)
    note = f"{min(samples['whole']):.2f} s of processor time; one more step with each request"
    name = f"a run of {_STEPS} steps / of {_STEPS // 2}"
    return Figure("store", name, *ratio(samples["whole"], samples["half"]), goal=at_most(2.5), note=note)


def _versions(steps: int, number: int) -> Iterator[bytes]:
    """Yield the requests of a recorder whose run grows: the spans of each version that the one before does not have."""
    documents = map(Run.from_json, generate(steps, seed=number))
    pool = list(islice((step for run in documents for step in run.to_dict()["steps"]), steps))
    run: dict[str, Any] = {"id": f"run_{number}_{steps}", "workflowId": "wf", "status": "running"}
    run["startedAt"] = "2026-10-01T00:00:00.000Z"
    sent: set[bytes] = set()
    for count in range(1, steps + 1):
        version = [{**step, "id": f"step-{place}"} for place, step in enumerate(pool[:count])]
        spans = encode(Run.from_dict({**run, "steps": version}), observed_at=count * 10**9)
        new = [span for span in spans if span.span_id not in sent]
        sent.update(span.span_id for span in new)
        yield request_bytes(_RESOURCE, [scoped_bytes(span) for span in new])


def _unsync(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = OFF")
