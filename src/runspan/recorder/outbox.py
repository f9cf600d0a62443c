"""``Outbox``: which runs the receiver lacks something of, and when the next of them is to be sent.

An engine's thread only marks a run as changed. What is sent is read from the run when its turn comes, so a slow
receiver gets fewer snapshots, never a queue of old ones; and a step stays to be sent until the receiver took it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan

from runspan.recorder.config import ExportConfig
from runspan.recorder.delta import RunExportState
from runspan.recorder.state import RunSession
from runspan.recorder.stats import Counters

ROUND: Final = 256
"""Runs read for one round of sending."""
ROUND_BYTES: Final = 8 << 20
"""Of ended runs in one round, about: while it lasts, each byte of it is there several times."""
FOREIGN_ROUND: Final = 512
"""Spans of other instrumentation in one request."""
_SHARE: Final = 0.02
"""Of a run's age: the least pause between two snapshots of it, so that their number grows with the logarithm."""
_TOO_MUCH: Final = "too much waits"
_NEVER: Final = float("inf")
_AT_WORK: Final = float("-inf")


class Outbox:
    """monotonic: seconds. on_first: called when there is something to send. on_dropped: called for a run that is given
    up here, with the reason. disabled: takes nothing from the beginning, and nothing is missed."""

    def __init__(
        self,
        counts: Counters,
        pace: ExportConfig,
        monotonic: Callable[[], float],
        on_first: Callable[[], None],
        on_dropped: Callable[[RunExportState, str], None],
        *,
        disabled: bool = False,
    ) -> None:
        self.pace = pace
        self._counts = counts
        self._monotonic = monotonic
        self._on_first = on_first
        self._on_dropped = on_dropped
        self._changed = threading.Condition()
        self._posts: dict[RunSession, RunExportState] = {}
        """Every run that has not ended, or that the receiver lacks something of."""
        self._dirty: dict[RunSession, RunExportState] = {}
        """Those that changed since they were read."""
        self._quiet: OrderedDict[RunSession, RunExportState] = OrderedDict()
        """Those that the receiver has as they stand, the one that was sent longest ago first."""
        self._sending: dict[RunSession, RunExportState] = {}
        self._foreign: deque[ReadableSpan] = deque()
        self._foreign_since = 0.0
        self._sending_foreign = 0
        self._held = 0
        self._last_ended: RunExportState | None = None
        self._hurry = 0
        self._not_before = 0.0
        self._wake_at = _AT_WORK
        self._disabled = disabled
        self.closed = disabled

    # What engines' threads do.

    def register(self, live: RunSession) -> None:
        """Knows the run from now on; calling it again changes nothing."""
        with self._changed:
            if live in self._posts or self._disabled:
                return
            # After ``close`` too: nothing is sent of it, and at its end that is told.
            self._posts[live] = RunExportState(live, self._monotonic())
            self._counts.add("runs_started")
            closed = self.closed
        if not closed:
            self._on_first()
        self.mark_dirty(live, True)

    def mark_dirty(self, live: RunSession, urgent: bool) -> None:
        """The run has changed. urgent: its own status has."""
        post = self._posts.get(live)
        ended = urgent and live.record.ended_already
        last = ended or (urgent and live.record.released)
        if post is None or (post.changed is not None and not last and (post.urgent or not urgent)):
            return  # it is to be read anyway
        with self._changed:
            if post.changed is None:
                post.changed = self._monotonic()
            post.urgent = post.urgent or urgent
            if last:
                post.not_before = 0.0  # whatever was put off or refused, this is another thing, and the last
            self._dirty[live] = post
            self._quiet.pop(live, None)
            if self._due(post) < self._wake_at:
                self._changed.notify_all()
        if ended:
            self._enforce_limit(post)

    def _enforce_limit(self, ended: RunExportState) -> None:
        """Drops ended runs, the oldest first, while they are more than may be held; after ``close`` the run itself."""
        size = ended.live.record.size()
        with self._changed:
            if ended.size:
                return
            ended.size = size
            self._held += size
            self._counts.add("runs_ended")
            self._last_ended = ended
            if self.closed:
                self._forget(ended)
            dropped, reason = (
                ([ended], "it ended after the shutdown") if self.closed else (self._evict_over_limit(), _TOO_MUCH)
            )
        for post in dropped:
            self._on_dropped(post, reason)

    def _evict_over_limit(self) -> list[RunExportState]:
        """Forgets ended runs, the oldest first, while they are more than may be held. Under the lock."""
        over = self._held - self.pace.max_held_bytes
        dropped: list[RunExportState] = []
        if over > 0:
            # What is on its way may arrive, and what has just ended was not tried yet.
            over -= sum([post.size for live, post in self._sending.items() if live in self._posts])
            for live, post in self._posts.items():
                if over <= 0:
                    break
                if post.size and post is not self._last_ended and live not in self._sending:
                    over -= post.size
                    dropped.append(post)
            for post in dropped:
                self._forget(post)
        return dropped

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

    def flush(self, timeout: float, live: RunSession | None = None) -> bool:
        """Waits until the receiver has everything, or one run, as it stands; False when it has not in time, or took a
        run that has not been given up yet, or the one that was asked for, without some of its spans."""
        deadline = self._monotonic() + timeout
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                while self._is_pending(live):
                    left = deadline - self._monotonic()
                    if left <= 0 or self.closed:
                        return False
                    self._changed.wait(left)
                return not self._is_incomplete(live)
            finally:
                self._hurry -= 1

    def _is_pending(self, live: RunSession | None) -> bool:
        if live is not None:
            return live in self._dirty or live in self._sending
        return bool(self._dirty or self._sending or self._foreign or self._sending_foreign)

    def _is_incomplete(self, live: RunSession | None) -> bool:
        if live is None:
            return any(post.damaged for post in self._posts.values())
        return live.lost or (live in self._posts and self._posts[live].damaged)

    def backlog(self) -> dict[str, int]:
        """What the receiver lacks, for the report."""
        with self._changed:
            return {
                "runs_waiting": len(self._dirty.keys() | self._sending.keys()),
                "bytes_waiting": self._held,
                "foreign_waiting": len(self._foreign) + self._sending_foreign,
            }

    def disown(self) -> None:
        """In a forked child: what the parent has in hand stays the parent's, whoever held its locks."""
        for live in self._posts:
            live.abandoned = True
            live.record.lock = threading.RLock()

    # What the sender does.

    def get_due(self) -> tuple[list[RunExportState], list[ReadableSpan]] | None:
        """Waits for what is due, and gives it out; None when there will be no more."""
        with self._changed:
            while not self.closed:
                now = self._monotonic()
                self._mark_heartbeats(now)
                due = self._due_runs(now)
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
                self._wake_at = self._next_due()
                self._changed.wait(None if self._wake_at == _NEVER else max(0.0, self._wake_at - now))
                self._wake_at = _AT_WORK
            return None

    def _due_runs(self, now: float) -> list[RunExportState]:
        """The runs that are due, as many as are read at once."""
        due: list[RunExportState] = []
        size = 0
        for post in self._dirty.values():
            if self._due(post) <= now:
                due.append(post)
                size += post.size
                if len(due) >= ROUND or size >= ROUND_BYTES:
                    break
        return due

    def ack(self, post: RunExportState, final: bool) -> None:
        """The receiver has the run as it was read. final: it will not change again."""
        with self._changed:
            post.failures, post.not_before = 0, 0.0
            if final:
                self._forget(post)
                return
            post.sent = self._monotonic()
            if post.changed is None and post.live in self._posts:
                self._quiet[post.live] = post

    def retry_later(self, post: RunExportState, wait: float) -> None:
        """The receiver does not have it; to be tried again after so many seconds, or at once when the run changed for
        the last time while it was asked."""
        now = self._monotonic()
        with self._changed:
            record = post.live.record
            is_other = post.changed is not None and (record.ended_already or record.released)
            post.not_before, post.urgent = 0.0 if is_other else now + wait, True
            if post.changed is None:
                post.changed = now
            if post.live in self._posts:
                self._dirty[post.live] = post

    def pause(self, wait: float) -> None:
        """The receiver takes nothing now: not to be asked for so many seconds."""
        with self._changed:
            self._not_before = self._monotonic() + wait

    def requeue(self, spans: list[ReadableSpan]) -> None:
        """Spans of other instrumentation that the receiver does not have; what has no room is dropped, and counted."""
        with self._changed:
            room = max(0, self.pace.max_foreign - len(self._foreign))
            self._foreign.extendleft(reversed(spans[:room]))
            self._sending_foreign = 0
        self._counts.add("foreign_dropped", len(spans) - min(room, len(spans)))

    def finish_round(self, posts: Iterable[RunExportState]) -> None:
        """Nothing that was taken is under way any more."""
        with self._changed:
            for post in posts:
                self._sending.pop(post.live, None)
            self._sending_foreign = 0
            dropped = self._evict_over_limit()
            self._changed.notify_all()
        for post in dropped:
            self._on_dropped(post, _TOO_MUCH)

    def forget(self, post: RunExportState) -> None:
        """Nothing more is sent of it."""
        with self._changed:
            self._forget(post)

    def close(self) -> None:
        """Takes nothing more and gives nothing out."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def drain(self) -> list[RunExportState]:
        """After ``close``: the runs that the receiver lacks as they stand. Of those that go on, the end is told yet."""
        with self._changed:
            left = [post for post in self._posts.values() if post.live in self._dirty or post.live in self._sending]
            for post in left:
                self._forget(post)
                if not post.size:
                    self._posts[post.live] = post
            self._sending.clear()
            self._counts.add("foreign_dropped", len(self._foreign) + self._sending_foreign)
            self._foreign.clear()
            return left

    # When. All of it under the lock.

    def _due(self, post: RunExportState) -> float:
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

    def _mark_heartbeats(self, now: float) -> None:
        """Marks the runs that did not change for a heartbeat. A suspended run rests: nobody takes it for stuck."""
        while self._quiet:
            live, post = next(iter(self._quiet.items()))
            if now < self._heartbeat_at(post):
                return
            del self._quiet[live]
            if live.record.status != "suspended":
                post.changed = now - self.pace.settle
                self._dirty[live] = post

    def _heartbeat_at(self, post: RunExportState) -> float:
        return (post.begun if post.sent is None else post.sent) + self.pace.heartbeat

    def _next_due(self) -> float:
        """When there will be something to do."""
        times = [self._due(post) for post in self._dirty.values()]
        times += [self._heartbeat_at(post) for post in islice(self._quiet.values(), 1)]
        if self._foreign:
            times.append(self._foreign_due())
        return min(times, default=_NEVER)

    def _forget(self, post: RunExportState) -> None:
        if self._posts.pop(post.live, None) is not None:
            self._held -= post.size
        self._dirty.pop(post.live, None)
        self._quiet.pop(post.live, None)
