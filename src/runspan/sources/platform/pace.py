"""``Pace``: how fast requests may go out, on all threads together, and until when nothing may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

_PARTS: Final = 6
_SHORTEST: Final = 0.005
_LONGEST: Final = 60.0
"""Seconds of one wait. A longer one is slept in parts, so that no caller's sleep has to take any number."""


class Pace:
    """At most ``per_minute`` requests in any 60 seconds, whenever they begin; 0: no limit.

    From 60 a minute on, the limit is kept in every ten seconds, so that a long backlog flows evenly and does not stop
    for most of each minute. sleep: waits so many seconds, or less once nobody wants to send any more.
    """

    def __init__(
        self, per_minute: int, *, sleep: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_minute = per_minute
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._held_until = float("-inf")
        self._limit: RateLimitItem | None = None
        self._window: MovingWindowRateLimiter | None = None
        if per_minute:
            self._limit = RateLimitItemPerMinute(per_minute)
            if per_minute >= 60:
                self._limit = RateLimitItemPerSecond(per_minute // _PARTS, 60 // _PARTS)
            self._window = MovingWindowRateLimiter(MemoryStorage())

    @property
    def held_for(self) -> float:
        """Seconds for which nothing is sent, because the platform asked for it; 0 when it did not."""
        with self._lock:
            return max(0.0, self._held_until - self._clock())

    def hold(self, seconds: float) -> None:
        """Nothing is sent for so long. A shorter wait asked for later does not cut it."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def take(self, halted: Callable[[], bool]) -> bool:
        """Returns True when a request may go out now, which counts it; False once ``halted()`` is true."""
        while not halted():
            pause = self._pause()
            if not pause:
                return True
            self._sleep(min(pause, _LONGEST))
        return False

    def _pause(self) -> float:
        """0 and the request is counted, or the seconds after which to ask again."""
        with self._lock:
            held = self._held_until - self._clock()
            if held > 0:
                return held
            if self._window is None or self._limit is None or self._window.hit(self._limit):
                return 0.0
            reset = self._window.get_window_stats(self._limit).reset_time - time.time()
            length = float(self._limit.get_expiry())
            if reset > length + 1:
                # The library counts on the wall clock, which was set back: the window's own end may be hours away.
                self._window.clear(self._limit)
                self._held_until = self._clock() + length
                return length
            return max(reset, _SHORTEST)
