"""The log of ``runspan serve`` on standard error: bounded, safe to look at, and never waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import Final

from runspan.cli.output import escape_control

_MOST_CHARACTERS: Final = 2000
_MOST_LINES: Final = 200
_MOST_WAITING: Final = 10_000
_LAST_RECORDS: Final = 1.0
"""Seconds for which the end of the server waits for records that are not written yet."""


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write records from INFO on to standard error during the block, in a thread of its own.

    A write blocks when standard error is a full pipe that nobody reads, and no request may block with it.
    """
    writer = logging.StreamHandler()
    writer.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler = LogQueue()
    handler.addFilter(LogLimit())
    listener = QueueListener(handler.queue, writer)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    listener.start()
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        end = time.monotonic() + _LAST_RECORDS
        while not handler.queue.empty() and time.monotonic() < end:
            time.sleep(0.01)
        if handler.queue.empty():
            listener.stop()


class LogQueue(QueueHandler):
    """Queues records for the thread that writes them. Those for which there is no room are dropped and counted in the
    next one."""

    queue: Queue[logging.LogRecord]

    def __init__(self, most: int = _MOST_WAITING) -> None:
        super().__init__(Queue(most))
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record as it is: the formatter needs its traceback, and the thread is one of this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record if there is room. ``Handler`` calls it under a lock."""
        if self._dropped and not self.queue.full():
            record.msg = f"{record.getMessage()} ({self._dropped} records before were dropped: nobody read them)"
            record.args = None
        try:
            self.queue.put_nowait(record)
        except Full:
            self._dropped += 1
        else:
            self._dropped = 0


class LogLimit(logging.Filter):
    """Drops the warnings and errors of one place in the code after some in a minute, and counts them in the next one.

    So no client can fill the disk with them. The access log has a line for each request.
    """

    def __init__(self, per_minute: int = 60, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._clock = clock
        self._places: dict[tuple[str, int], tuple[float, int]] = {}
        """When the minute of a place began, and how many records it had since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        place, now = (record.pathname, record.lineno), self._clock()
        began, count = self._places.get(place, (now, 0))
        if now - began >= 60:
            dropped = max(0, count - self._per_minute)
            if dropped:
                record.msg, record.args = f"{record.getMessage()} (and {dropped} more like this before)", None
            began, count = now, 0
        self._places[place] = began, count + 1
        return count < self._per_minute


class LogFormatter(logging.Formatter):
    """Formats a record as one line and its traceback as indented lines, bounded, with control characters escaped.

    So nothing that a client sends can steer a terminal, look like another record, or fill the disk.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _bounded(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        message, *lines = super().format(record).split("\n")
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES // 2 : -_MOST_LINES // 2] = ["…"]
        return "\n  ".join([message, *map(_bounded, lines)])


def _bounded(line: str) -> str:
    cut = f"{line[:_MOST_CHARACTERS]}… ({len(line)} characters)" if len(line) > _MOST_CHARACTERS else line
    return escape_control(cut)
