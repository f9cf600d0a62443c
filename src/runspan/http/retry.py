"""When a client may send: ``RetryPolicy``, ``Retry-After`` in seconds or as a date, and ``RateLimiter``."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential

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
        self, per_minute: int, *, sleep: Callable[[float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = 60.0 if per_minute < 60 else 10.0
        self._limit = int(per_minute * self._window / 60)
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[float] = deque(maxlen=self._limit)
        """The times of the last requests, as many as one window allows."""
        self._paused_until = float("-inf")

        self.asked = 0.0
        """Seconds of the longest ``pause`` that is not over, as they were asked for."""

    @property
    def paused_for(self) -> float:
        """Seconds until the end of the last ``pause``; 0 if it is over."""
        with self._lock:
            return max(0.0, self._paused_until - self._clock())

    @property
    def is_contested(self) -> bool:
        """Whether it refuses requests because others have used up a part of the limit."""
        return False

    def pause(self, seconds: float) -> None:
        """Allow no request for this long, ``MAX_RETRY_AFTER`` at most. A shorter pause does not cut a longer one."""
        with self._lock:
            until = self._clock() + min(seconds, MAX_RETRY_AFTER)
            if until > self._paused_until:
                self._paused_until, self.asked = until, seconds

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
        delay = self.paused_for
        return delay if delay > 0 else self._count(self._limit, self._window)

    def _count(self, limit: int, window: float) -> float:
        """Count a request if there were fewer than ``limit`` in the last ``window`` seconds; see ``_try_acquire``."""
        with self._lock:
            now = self._clock()
            delay = self._sent[0] + window - now if limit and len(self._sent) == limit else 0.0
            if delay <= 0:
                self._sent.append(now)
            return delay


MAX_RETRY_AFTER: Final = 3600.0
"""Seconds. A server that asks for a longer delay gets the next request after this one."""

_LARGEST_DELAY: Final = 2.0**31
"""Seconds. RFC 9111 lets a recipient take a number that it cannot represent for this one."""

T = TypeVar("T")


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry after the delay that the server asks for, else after an exponential backoff with full jitter."""

    max_time: float = 300.0
    """Seconds for all attempts and delays of one request together. 0: one attempt."""

    max_attempts: int | None = None
    """Attempts for one request; None: as many as fit into ``max_time``."""

    first_delay: float = 0.5
    """Seconds. The n-th delay is drawn between 0 and ``first_delay * 2 ** (n - 1)``."""

    max_delay: float = 30.0
    """Seconds: the upper bound of a drawn delay, not of one that the server asks for."""

    def run(
        self,
        attempt: Callable[[], T],
        delay_of: Callable[[T], float | None],
        *,
        sleep: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
        halted: Callable[[], bool] = _never,
    ) -> T:
        """Return the first result that is final, or the last one before the policy gives up.

        attempt: Sends the request once.
        delay_of: None for a final result; else the seconds that the server asks to wait, 0 if it does not say.
        sleep: Waits for so many seconds, or less once ``halted()`` is true.
        clock: Monotonic seconds.
        halted: Whether to stop retrying at once.
        """
        deadline = clock() + self.max_time
        result = attempt()
        delay = delay_of(result)
        if delay is None:
            # tenacity's state refers to itself: it would keep each request's body until the next garbage collection.
            return result
        backoff = wait_random_exponential(multiplier=self.first_delay, max=self.max_delay)
        attempts = count()

        def retry() -> float | None:
            nonlocal result, delay
            if next(attempts) and not halted():
                result = attempt()
                delay = delay_of(result)
            return delay

        def wait(state: RetryCallState) -> float:
            # The last attempt comes when the time is up.
            return min(delay or 0.0, MAX_RETRY_AFTER) or min(backoff(state), max(0.0, deadline - clock()))

        def stop(state: RetryCallState) -> bool:
            used_up = self.max_attempts is not None and state.attempt_number >= self.max_attempts
            return used_up or halted() or clock() + (delay or 0.0) >= deadline

        def pause(seconds: float) -> None:
            sleep(seconds)

        Retrying(
            retry=retry_if_result(lambda delay: delay is not None),
            wait=wait,
            stop=stop,
            sleep=pause,
            retry_error_callback=lambda state: None,
        )(retry)
        return result


def parse_retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a response asks to wait, as it says; None if it does not. Waiting is the caller's: it is
    bounded by ``MAX_RETRY_AFTER`` or less.

    headers: Looked up by lower-case names. A date counts from the response's own date, so the clocks may differ.
    now: Seconds since 1970, for a response without a date; None: the system's clock.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LARGEST_DELAY)
    until, since = _timestamp(text), _timestamp(headers.get("date", ""))
    if until is None:
        return None
    if since is None:
        since = time.time() if now is None else now
    return max(0.0, until - since)


def describe_delay(seconds: float, longest: float = MAX_RETRY_AFTER) -> str:
    """Return what a server asks for, as it said, and what it gets when that is too long."""
    asked = f"asks to wait {seconds:.15g} s"
    return asked if seconds <= longest else f"{asked}, is asked again after {longest:g} s"


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
