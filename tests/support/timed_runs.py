"""Generated runs whose times, loops, skipped steps and attempts are usual, unusual or impossible."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from runspan import Run
from runspan.model.timestamps import MILLISECOND, canonical_text

START = 1_760_000_000_000_000_000
MINUTE = 60_000
"""Milliseconds."""

UNUSUAL_TIMES = [
    "0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999Z",
    "1970-01-01T00:00:00.000Z",
    "2016-12-31T23:59:60Z",
    "2025-10-09T08:53:30.5Z",
    "2025-10-09T10:53:30.123456789+02:00",
    "2262-04-11T23:47:16.854775803Z",
    "2262-04-11T23:47:16.854775804Z",
    "2262-04-11T23:47:16.854775805Z",
    "2262-04-11T23:47:16.854775807Z",
    "2262-04-11T23:47:17Z",
    "9999-12-31T23:59:59Z",
    "yesterday",
    "",
    None,
    0,
]


def at(milliseconds: int) -> str:
    """Return the time so many milliseconds after ``START``."""
    return canonical_text(START + milliseconds * MILLISECOND) or ""


inside = st.integers(0, MINUTE).map(at)
"""Times of the minute after ``START``."""
times = st.one_of(inside, inside, st.integers(-MINUTE, 2 * MINUTE).map(at), st.sampled_from(UNUSUAL_TIMES))


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not ...}


def _ordered(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return two times in order, if they are texts of the same form."""
    first, second = pair
    return (min(pair), max(pair)) if isinstance(first, str) and isinstance(second, str) else pair


def _steps(time: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    pairs = st.tuples(time, time).map(_ordered)
    attempts = st.lists(
        pairs.map(lambda pair: {"status": "failed", "startedAt": pair[0], "completedAt": pair[1]}), max_size=2
    )
    timed = st.builds(
        lambda name, kind, status, pair, tries: _present(
            {
                "id": name,
                "type": kind,
                "status": status,
                "startedAt": pair[0],
                "completedAt": ... if status == "running" else pair[1],
                "attempts": tries or ...,
            }
        ),
        st.sampled_from("abc"),
        st.sampled_from(["loop", "loop", "action", "agent"]),
        st.sampled_from(["completed", "completed", "completed", "failed", "running"]),
        pairs,
        attempts,
    )
    skipped = st.sampled_from("abc").map(lambda name: {"id": name, "status": "skipped"})
    return st.lists(st.one_of(timed, timed, skipped), max_size=10)


def _run(status: str, started: Any, completed: Any, created: Any, steps: list[dict[str, Any]]) -> Run:
    members = {"id": "r", "workflowId": "wf", "status": status, "startedAt": started, "completedAt": completed}
    return Run.from_dict(_present(members | {"createdAt": created, "steps": steps}))


any_times = st.one_of(times, st.just(...))
timed_runs = st.builds(
    _run, st.sampled_from(["completed", "failed", "running", "pending"]), any_times, any_times, any_times, _steps(times)
)
"""Runs with any times."""

inside_runs = st.builds(
    _run, st.sampled_from(["completed", "failed"]), st.just(at(0)), st.just(at(MINUTE)), st.just(...), _steps(inside)
)
"""Finished runs whose steps and attempts lie inside them."""
