"""``Pace``: when a recorder sends, and how much it holds back meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """When to send, in seconds, and how much to hold.

    settle: from a change to its snapshot, and between two snapshots of a run at least; of a run that is older than
    50 times that, a fiftieth of its age, but a change of its status comes through and none waits longer than a
    heartbeat. heartbeat: between snapshots of a run that does not change. retry_first, retry_longest: bounds of the
    backoff while the receiver takes nothing. max_held_bytes: of ended runs that it lacks, beside those that are just
    being sent, a few of them at a time. max_foreign: spans of other instrumentation that it lacks.
    """

    settle: float = 0.1
    heartbeat: float = 30.0
    retry_first: float = 0.5
    retry_longest: float = 30.0
    max_held_bytes: int = 64 << 20
    max_foreign: int = 8192
