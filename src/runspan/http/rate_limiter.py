"""``RateLimiter``: how fast a client may send requests, on all of its threads together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

_WINDOW: Final = 10
"""Seconds of the window from 60 requests a minute on."""

_MIN_SLEEP: Final = 0.005
_MAX_SLEEP: Final = 60.0
"""Seconds. A longer wait is several sleeps, so that ``halted`` is asked now and then."""


class RateLimiter:
    """Allow at most ``per_minute`` requests in any 60 seconds; 0: no limit.

    From 60 a minute on, each window of 10 seconds gets a sixth of them, so that a long backlog flows evenly instead of
    pausing for most of each minute. All methods may be called from several threads.

    sleep: Waits for so many seconds, or less once the caller's ``halted()`` is true.
    clock: Monotonic seconds.
    """

    def __init__(
        self, per_minute: int, *, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_minute = per_minute
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until = float("-inf")
        self._limit: RateLimitItem = (
            RateLimitItemPerMinute(per_minute)
            if per_minute < 60
            else RateLimitItemPerSecond(per_minute * _WINDOW // 60, _WINDOW)
        )
        self._window = MovingWindowRateLimiter(MemoryStorage())

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
            if not delay:
                return True
            self._sleep(min(delay, _MAX_SLEEP))
        return False

    def _try_acquire(self) -> float:
        """Count a request and return 0, or return the seconds after which to try again."""
        with self._lock:
            pause = self._paused_until - self._clock()
            if pause > 0:
                return pause
            if not self.per_minute or self._window.hit(self._limit):
                return 0.0
            reset = self._window.get_window_stats(self._limit).reset_time - time.time()
            length = float(self._limit.get_expiry())
            if reset > length + 1:
                # The library reads the wall clock, which was set back: the end of its window may be hours away.
                self._window.clear(self._limit)
                self._paused_until = self._clock() + length
                return length
            return max(reset, _MIN_SLEEP)
