"""``Outbox``: which runs the receiver lacks something of, and when the next of them is to be sent.

An engine's thread only marks a run as changed. What is sent is read from the run when its turn comes, so a slow
receiver gets fewer snapshots, never a queue of old ones; and a step stays to be sent until the receiver took it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

from runspan.recorder.live import LiveRun
from runspan.recorder.parcels import Post
from runspan.recorder.report import Counts

ROUND: Final = 256
"""Runs read for one round of sending."""
FOREIGN_ROUND: Final = 512
"""Spans of other instrumentation in one request."""
_SHARE: Final = 0.02
"""Of a run's age: the least pause between two snapshots of it, so that their number grows with the logarithm."""
_NEVER: Final = float("inf")
_AT_WORK: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Pace:
    """When to send, in seconds, and how much to hold.

    settle: from a change to its snapshot, and between two snapshots of a run at least; of a run that is older than
    50 times that, a fiftieth of its age, but a change of its status comes through and none waits longer than a
    heartbeat. heartbeat: between snapshots of a run that does not change. retry_first, retry_longest: bounds of the
    backoff while the receiver takes nothing. max_held_bytes: of ended runs that it lacks, beside those that are just
    being sent. max_foreign: spans of other instrumentation that it lacks.
    """

    settle: float = 0.1
    heartbeat: float = 30.0
    retry_first: float = 0.5
    retry_longest: float = 30.0
    max_held_bytes: int = 64 << 20
    max_foreign: int = 8192


class Outbox:
    """monotonic: seconds. on_first: called when there is something to send. on_dropped: called for a run that was
    dropped because too much is held."""

    def __init__(
        self,
        counts: Counts,
        pace: Pace,
        monotonic: Callable[[], float],
        on_first: Callable[[], None],
        on_dropped: Callable[[Post], None],
    ) -> None:
        self.pace = pace
        self._counts = counts
        self._monotonic = monotonic
        self._on_first = on_first
        self._on_dropped = on_dropped
        self._changed = threading.Condition()
        self._posts: dict[LiveRun, Post] = {}
        """Every run that has not ended, or that the receiver lacks something of."""
        self._dirty: dict[LiveRun, Post] = {}
        """Those that changed since they were read."""
        self._quiet: OrderedDict[LiveRun, Post] = OrderedDict()
        """Those that the receiver has as they stand, the one that was sent longest ago first."""
        self._sending: dict[LiveRun, Post] = {}
        self._foreign: deque[ReadableSpan] = deque()
        self._foreign_since = 0.0
        self._sending_foreign = 0
        self._held = 0
        self._hurry = 0
        self._not_before = 0.0
        self._wake_at = _AT_WORK
        self.closed = False

    # What engines' threads do.

    def begin(self, live: LiveRun) -> None:
        """Knows the run from now on; calling it again changes nothing."""
        with self._changed:
            if live in self._posts or self.closed:
                return
            self._posts[live] = Post(live, self._monotonic())
            self._counts.add("runs_started")
        self._on_first()
        self.mark(live, True)

    def mark(self, live: LiveRun, urgent: bool) -> None:
        """The run has changed. urgent: its own status has."""
        post = self._posts.get(live)
        ended = urgent and live.record.ended_already
        if post is None or (post.changed is not None and not ended and (post.urgent or not urgent)):
            return  # it is to be read anyway
        with self._changed:
            if post.changed is None:
                post.changed = self._monotonic()
            post.urgent = post.urgent or urgent
            self._dirty[live] = post
            self._quiet.pop(live, None)
            if self._due(post) < self._wake_at:
                self._changed.notify_all()
        if ended:
            self._bound(post)

    def _bound(self, ended: Post) -> None:
        """Drops ended runs, the oldest first, while they are more than may be held."""
        size = ended.live.record.size()
        dropped = []
        with self._changed:
            if ended.size:
                return
            ended.size = size
            self._held += size
            self._counts.add("runs_ended")
            if self._held > self.pace.max_held_bytes:
                # What is on its way may arrive, and what has just ended was not tried yet.
                over = self._held - self.pace.max_held_bytes - sum([post.size for post in self._sending.values()])
                for post in [post for post in self._dirty.values() if post.size and post is not ended]:
                    if over <= 0:
                        break
                    if post.live not in self._sending:
                        over -= post.size
                        self._forget(post)
                        dropped.append(post)
        for post in dropped:
            self._on_dropped(post)

    def add_foreign(self, span: ReadableSpan) -> None:
        """A span of other instrumentation; dropped, and counted, when too many wait."""
        with self._changed:
            if len(self._foreign) >= self.pace.max_foreign or self.closed:
                self._counts.add("foreign_dropped")
                return
            self._foreign.append(span)
            if len(self._foreign) == 1:
                self._foreign_since = self._monotonic()
            if self._foreign_due() < self._wake_at:
                self._changed.notify_all()
        self._on_first()

    def flush(self, timeout: float, live: LiveRun | None = None) -> bool:
        """Waits until the receiver has everything, or one run, as it stands; False when it has not in time."""
        deadline = self._monotonic() + timeout
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                while self._lacks(live):
                    left = deadline - self._monotonic()
                    if left <= 0 or self.closed:
                        return False
                    self._changed.wait(left)
                return True
            finally:
                self._hurry -= 1

    def _lacks(self, live: LiveRun | None) -> bool:
        if live is not None:
            return live in self._dirty or live in self._sending
        return bool(self._dirty or self._sending or self._foreign or self._sending_foreign)

    def waiting(self) -> dict[str, int]:
        """What the receiver lacks, for the report."""
        with self._changed:
            return {
                "runs_waiting": len(self._dirty.keys() | self._sending.keys()),
                "bytes_waiting": self._held,
                "foreign_waiting": len(self._foreign) + self._sending_foreign,
            }

    def abandon(self) -> None:
        """In a forked child: what the parent has in hand stays the parent's, whoever held its locks."""
        for live in self._posts:
            live.abandoned = True
            live.record.lock = threading.RLock()

    # What the sender does.

    def take(self) -> tuple[list[Post], list[ReadableSpan]] | None:
        """Waits for what is due, and gives it out; None when there will be no more."""
        with self._changed:
            while not self.closed:
                now = self._monotonic()
                self._beat(now)
                due = [post for post in self._dirty.values() if self._due(post) <= now][:ROUND]
                foreign: list[ReadableSpan] = []
                if self._foreign and self._foreign_due() <= now:
                    foreign = [self._foreign.popleft() for _ in range(min(len(self._foreign), FOREIGN_ROUND))]
                if due or foreign:
                    self._sending_foreign = len(foreign)
                    for post in due:
                        # It is read after this: what changes from here on is for the next time.
                        post.changed, post.urgent = None, False
                        del self._dirty[post.live]
                        self._sending[post.live] = post
                    return due, foreign
                self._wake_at = self._next()
                self._changed.wait(None if self._wake_at == _NEVER else max(0.0, self._wake_at - now))
                self._wake_at = _AT_WORK
            return None

    def done(self, post: Post, final: bool) -> None:
        """The receiver has the run as it was read. final: it will not change again."""
        with self._changed:
            post.failures, post.not_before = 0, 0.0
            if final:
                self._forget(post)
                return
            post.sent = self._monotonic()
            if post.changed is None and post.live in self._posts:
                self._quiet[post.live] = post

    def later(self, post: Post, wait: float) -> None:
        """The receiver does not have it; to be tried again after so many seconds."""
        now = self._monotonic()
        with self._changed:
            post.not_before, post.urgent = now + wait, True
            if post.changed is None:
                post.changed = now
            if post.live in self._posts:
                self._dirty[post.live] = post

    def rest(self, wait: float) -> None:
        """The receiver takes nothing now: not to be asked for so many seconds."""
        with self._changed:
            self._not_before = self._monotonic() + wait

    def put_back(self, spans: list[ReadableSpan]) -> None:
        """Spans of other instrumentation that the receiver does not have; what has no room is dropped, and counted."""
        with self._changed:
            room = max(0, self.pace.max_foreign - len(self._foreign))
            self._foreign.extendleft(reversed(spans[:room]))
            self._sending_foreign = 0
        self._counts.add("foreign_dropped", len(spans) - min(room, len(spans)))

    def round_over(self, posts: Iterable[Post]) -> None:
        """Nothing that was taken is under way any more."""
        with self._changed:
            for post in posts:
                self._sending.pop(post.live, None)
            self._sending_foreign = 0
            self._changed.notify_all()

    def forget(self, post: Post) -> None:
        """Nothing more is sent of it."""
        with self._changed:
            self._forget(post)

    def close(self) -> None:
        """Takes nothing more and gives nothing out."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def left(self) -> list[Post]:
        """After ``close``: the runs that the receiver does not have as they stand, and no more of them."""
        with self._changed:
            left = [post for post in self._posts.values() if post.live in self._dirty or post.live in self._sending]
            for post in left:
                self._forget(post)
            self._sending.clear()
            self._counts.add("foreign_dropped", len(self._foreign) + self._sending_foreign)
            self._foreign.clear()
            return left

    # When. All of it under the lock.

    def _due(self, post: Post) -> float:
        """When a changed run is to be sent, in monotonic seconds."""
        due = 0.0 if post.changed is None else post.changed
        if not (self._hurry or post.live.record.ended_already):
            due += self.pace.settle
            if post.sent is not None:
                pause = self.pace.settle
                if not post.urgent:
                    pause = min(max(pause, (post.sent - post.begun) * _SHARE), self.pace.heartbeat)
                due = max(due, post.sent + pause)
        return max(due, post.not_before, self._not_before)

    def _foreign_due(self) -> float:
        """When spans of other instrumentation are to be sent: together, unless there are many."""
        at_once = self._hurry or len(self._foreign) >= FOREIGN_ROUND
        return max(self._foreign_since + (0.0 if at_once else self.pace.settle), self._not_before)

    def _beat(self, now: float) -> None:
        """Marks the runs that did not change for a heartbeat. A suspended run rests: nobody takes it for stuck."""
        while self._quiet:
            live, post = next(iter(self._quiet.items()))
            if now < self._beats_at(post):
                return
            del self._quiet[live]
            if live.record.status != "suspended":
                post.changed = now - self.pace.settle
                self._dirty[live] = post

    def _beats_at(self, post: Post) -> float:
        return (post.begun if post.sent is None else post.sent) + self.pace.heartbeat

    def _next(self) -> float:
        """When there will be something to do."""
        times = [self._due(post) for post in self._dirty.values()]
        times += [self._beats_at(post) for post in islice(self._quiet.values(), 1)]
        if self._foreign:
            times.append(self._foreign_due())
        return min(times, default=_NEVER)

    def _forget(self, post: Post) -> None:
        if self._posts.pop(post.live, None) is not None:
            self._held -= post.size
        self._dirty.pop(post.live, None)
        self._quiet.pop(post.live, None)
