"""When a request is sent again: after the wait asked for, or a backoff with full jitter, inside one budget of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential

from runspan.delivery.outcome import Later, Outcome


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds. budget: for one request, all attempts and waits together. first, longest: bounds of the backoff, whose
    n-th wait is drawn between 0 and ``first * 2**(n - 1)``."""

    budget: float = 300.0
    first: float = 0.5
    longest: float = 30.0


def send_until_settled(
    attempt: Callable[[], Outcome],
    policy: RetryPolicy,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    halted: Callable[[], bool],
) -> Outcome:
    """The outcome of the last attempt; ``Later`` when the budget is spent, or would be by the wait asked for.

    sleep may return early; then ``halted()`` is true, and nothing is sent any more.
    """
    deadline = clock() + policy.budget
    last = [attempt()]
    if not isinstance(last[0], Later):
        # tenacity's state refers to itself: it would keep the body of each request until the next garbage collection.
        return last[0]
    backoff = wait_random_exponential(multiplier=policy.first, max=policy.longest)
    tries = count()

    def once() -> Outcome:
        if next(tries) and not halted():
            last[0] = attempt()
        return last[0]

    def wait(state: RetryCallState) -> float:
        # The last attempt comes when the budget ends.
        return _asked(last[0]) or min(backoff(state), max(0.0, deadline - clock()))

    def stop(state: RetryCallState) -> bool:
        return halted() or clock() + _asked(last[0]) >= deadline

    retrying = Retrying(
        retry=retry_if_result(_is_later),
        wait=wait,
        stop=stop,
        sleep=sleep,
        retry_error_callback=lambda state: last[0],
    )
    return retrying(once)


def _asked(outcome: Outcome) -> float:
    """The wait that the receiver asks for, or 0; a receiver that asks for none gets the backoff, or it would be asked
    again without pause."""
    return (isinstance(outcome, Later) and outcome.delay) or 0.0


def _is_later(outcome: Outcome) -> bool:
    return isinstance(outcome, Later)
