"""A sync from its start to its end: one that follows begins again after an error, where its state says."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Final, Self

from runspan.errors import RunspanError, StateUnreachable, item_error
from runspan.sync.context import SyncTotals
from runspan.sync.engine import SyncEngine
from runspan.sync.report import SyncProgress, SyncReport

_FIRST_DELAY: Final = 1.0
_MAX_DELAY: Final = 300.0

Start = Callable[[SyncTotals], AbstractContextManager[SyncEngine]]
"""Opens the state, the platform and the receiver for one ``SyncEngine``."""


class SyncService:
    """Run engines until one ends, or until ``stop``. Each begins where the state says, as after a kill.

    What is wrong from the start raises an error, also of a sync that follows: an option, the state, the address of the
    platform, its key. Once the platform has worked, a sync that follows ends only when it is stopped.

    - ``start``: see ``Start``. The first engine is started at once.
    - ``retry_max_time``: seconds for which one that does not follow waits for the database with the state.
    - ``log``: shows a line to the user.
    """

    def __init__(self, start: Start, *, follow: bool, retry_max_time: float, log: Callable[[str], None]) -> None:
        self._start = start
        self._follow = follow
        self._retry_max_time = retry_max_time
        self._log = log
        self._totals = SyncTotals()
        self._stops: SimpleQueue[None] = SimpleQueue()  # a signal handler may put, which it may not with an Event
        self._resources = ExitStack()
        self._engine = self._resources.enter_context(start(self._totals))
        self._report = self._engine.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def latest(self) -> SyncProgress:
        """The progress of a moment ago, for any thread."""
        return self._engine.latest

    def stop(self) -> None:
        """End the sync; see ``SyncEngine.stop``."""
        self._stops.put(None)
        self._engine.stop()

    def run(self) -> tuple[SyncReport, RunspanError | None]:
        """Return the report and, if the sync did not end as it should, the reason. Raise any other exception."""
        failures, away = 0, 0.0
        while True:
            began = time.monotonic()
            try:
                return self._engine.run(), None
            except Exception as error:
                is_away = isinstance(error, StateUnreachable)
                if not (is_away or (self._follow and self._engine.known_to_work)):
                    if isinstance(error, RunspanError):
                        return replace(self._last_report(), stopped=str(error)), error
                    raise
                reason: RunspanError | None = item_error(error, "sync")
            if time.monotonic() - began > _MAX_DELAY:
                failures, away = 0, 0.0
            # It is as much away if it can be connected, and then takes nothing: its disk may be full.
            report, failed_at = self._last_report(), time.monotonic() - away
            while reason is not None:
                failures += 1
                delay = min(2.0 ** (failures - 1), _MAX_DELAY)
                if not self._follow:
                    left = failed_at + self._retry_max_time - time.monotonic()
                    if left <= 0 or not isinstance(reason, StateUnreachable):
                        return replace(report, stopped=str(reason)), reason
                    delay = min(delay, left)
                self._log(f"{reason}; beginning again in {delay:g} s, where the state says")
                if self._is_stopped_within(delay):
                    return replace(report, stopped="" if self._follow else "interrupted"), None
                reason = self._restart()
            away = time.monotonic() - failed_at

    def _restart(self) -> RunspanError | None:
        """Start another engine in place of one that has failed. Return why that is not possible now."""
        self._resources.close()
        try:
            self._engine = self._resources.enter_context(self._start(self._totals))
        except Exception as error:
            return item_error(error, "sync")
        if not self._stops.empty():
            self._engine.stop()
        return None

    def _is_stopped_within(self, seconds: float) -> bool:
        try:
            self._stops.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _last_report(self) -> SyncReport:
        """Return the report of an engine that has failed, or the one before if its state cannot be read."""
        with suppress(Exception):
            self._report = self._engine.report()
        return self._report
