"""``RateLimiter``: how fast a client may send requests, on all of its threads together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_MAX_SLEEP: Final = 60.0
"""Seconds. A longer wait is several sleeps, so that ``halted`` is asked now and then."""


class RateLimiter:
    """Allow at most ``per_minute`` requests in any 60 seconds; 0: no limit. Thread-safe.

    From 60 a minute on, any 10 seconds get a sixth of them, so that a long backlog flows evenly instead of pausing for
    most of each minute.

    sleep: Waits for so many seconds, or less once the caller's ``halted()`` is true.
    clock: Monotonic seconds.
    """

    def __init__(
        self, per_minute: int, *, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = 60.0 if per_minute < 60 else 10.0
        self._limit = int(per_minute * self._window / 60)
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[float] = deque(maxlen=self._limit)
        """The times of the last requests, as many as one window allows."""
        self._paused_until = float("-inf")

    @property
    def paused_for(self) -> float:
        """Seconds until the end of the last ``pause``; 0 if it is over."""
        with self._lock:
            return max(0.0, self._paused_until - self._clock())

    def pause(self, seconds: float) -> None:
        """Allow no request for this long. A shorter pause does not cut a longer one."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def acquire(self, halted: Callable[[], bool]) -> bool:
        """Wait until a request may be sent, and count it. Return False once ``halted()`` is true."""
        while not halted():
            delay = self._try_acquire()
            if delay <= 0:
                return True
            self._sleep(min(delay, _MAX_SLEEP))
        return False

    def _try_acquire(self) -> float:
        """Count a request and return 0, or return the seconds after which to try again."""
        with self._lock:
            now = self._clock()
            delay = self._paused_until - now
            if self._limit and len(self._sent) == self._limit:
                delay = max(delay, self._sent[0] + self._window - now)
            if delay <= 0:
                self._sent.append(now)
            return delay
