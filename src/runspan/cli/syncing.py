"""A sync put together from the command's options, and ended in order by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Final

from runspan.cli.metrics import reporting
from runspan.cli.places import api_key, otlp_environment, resource_of
from runspan.cli.sync_progress import display
from runspan.delivery import DeadLetters, Delivery, OnSettled, RetryPolicy, connect, settings_from
from runspan.errors import RunspanError
from runspan.health import Health, Succession, delivered
from runspan.sources.platform import Pace, Platform, base_url
from runspan.sync import Binding, Checkpoint, Filter, Rhythm, Settings, Sync, SyncReport, numbers
from runspan.times import SECOND

KEY_VARIABLE: Final = "RUNSPAN_SYNC_API_KEY"
DAY: Final = 86_400 * SECOND
SHORTEST_POLL: Final = SECOND // 10


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command's options."""

    url: str
    endpoint: str | None
    protocol: str | None
    checkpoint: Path
    follow: bool
    since: int | None
    workflows: tuple[str, ...]
    statuses: tuple[str, ...]
    retention: float | None
    requests_per_minute: int
    concurrency: int
    poll: float
    rescan: float | None
    recheck: int | None
    resend: int | None
    heartbeat: float
    give_up_after: float
    dead_letter: Path | None
    retry_refused: bool
    source_key_file: Path | None
    workers: int
    service_name: str
    replay: bool
    tenant: str
    api_key_file: Path | None
    metrics_listen: tuple[str, int] | None
    quiet: bool
    as_json: bool

    @property
    def retention_ns(self) -> int | None:
        return None if self.retention is None else int(self.retention * DAY)

    @property
    def letters(self) -> Path:
        """The file of dead letters."""
        return self.dead_letter or self.checkpoint.with_name(self.checkpoint.name + ".dead-letters.ndjson")

    def settings(self) -> Settings:
        """What the sync does."""
        rescan = self.rescan if self.rescan is not None else 3600.0 if self.follow else 0.0
        filters = product(self.workflows or (None,), self.statuses or (None,))
        poll = max(_nanoseconds(self.poll), SHORTEST_POLL)
        return Settings(
            filters=tuple(Filter(workflow, status) for workflow, status in dict.fromkeys(filters)),
            since=self.since,
            follow=self.follow,
            poll=poll,
            rescan=_nanoseconds(rescan),
            recheck=self.recheck or 0,
            resend=self.resend or 0,
            rhythm=Rhythm(refresh=poll, heartbeat=_nanoseconds(self.heartbeat)),
            retention=self.retention_ns,
            concurrency=self.concurrency,
            give_up=self.give_up_after,
        )


def synced(options: Options) -> tuple[SyncReport, RunspanError | None]:
    """What came of it, and what made going on useless."""
    delivery = settings_from(
        otlp_environment(options.api_key_file), endpoint=options.endpoint, protocol=options.protocol
    )
    if options.replay:
        delivery = delivery.as_replay()
    resource = resource_of(options.service_name)
    workflows, statuses = tuple(set(options.workflows)), tuple(set(options.statuses))
    binding = Binding(base_url(options.url), delivery.place, options.tenant, workflows, statuses)
    halted = threading.Event()
    error: RunspanError | None = None
    with ExitStack() as opened:
        checkpoint = opened.enter_context(closing(Checkpoint(options.checkpoint, binding, delivery.receiver)))
        platform = _platform(options, halted)
        letters = opened.enter_context(DeadLetters(str(options.letters)))
        bar = opened.enter_context(display(quiet=options.quiet or options.as_json, retention=options.retention_ns))

        health = Health(time.time_ns, parts=("export", "sync"))
        deliveries = Succession()
        health.watch(deliveries.read)

        def deliver(on_settled: OnSettled) -> Delivery:
            retry = RetryPolicy(budget=options.give_up_after)
            made = connect(delivery, workers=options.workers, retry=retry, on_settled=on_settled)
            deliveries.follow(lambda: delivered(made.tally.report()))
            return made

        syncing = Sync(
            options.settings(),
            platform,
            checkpoint,
            connect=deliver,
            halt=halted.set,
            letters=letters,
            tenant=options.tenant,
            resource=resource,
            workers=options.workers,
            retry_refused=options.retry_refused,
            note=bar.note,
            on_progress=bar.tell,
        )
        health.watch(lambda: numbers(syncing.latest, options.retention_ns))
        shown = reporting(health, options.metrics_listen, service_name=options.service_name, quiet=options.quiet)
        with stopping(syncing.stop), shown:
            try:
                report = syncing.run()
            except RunspanError as failure:
                error, report = failure, syncing.report()
    kept = replace(report, kept=letters.kept, lost=letters.lost, kept_in=letters.path, keeping_failed=letters.trouble)
    return kept, error


def _platform(options: Options, halted: threading.Event) -> Platform:
    def sleep(seconds: float) -> None:
        halted.wait(seconds)

    return Platform(
        options.url,
        key=partial(api_key, options.source_key_file, variable=KEY_VARIABLE, flag="--source-key-file"),
        pace=Pace(options.requests_per_minute, sleep=sleep),
        sleep=sleep,
        halted=halted.is_set,
        connections=options.concurrency + 1,
    )


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C ends the sync in order, a second one at once. Signals reach only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * SECOND)
