"""Lists of runs as SQL statements, whose rows come from an index in the order of the list."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

from runspan import contracts
from runspan.backends.sqlite import queries
from runspan.model.document import TERMINAL_RUN_STATUSES
from runspan.model.timestamps import MAX_NS

SILENT: Final = (
    "observed_at IS NOT NULL AND observed_at"
    f" + max({contracts.HEARTBEAT_INTERVAL}, (observed_at - time) / {contracts.HEARTBEAT_SHARE}) < ?"
)
"""The condition on runs whose heartbeat was due before a time; see ``contracts.heartbeat_due``."""
_INDEXES_WITHOUT_RUN_ID: Final = ("runs_by_workflow", "runs_by_status", "runs_by_workflow_and_status")
Item = tuple[bytes, int, bytes, bytes, bytes | None, bytes | None, bytes]
"""Run id, sort time, summary, its checksum, and the columns ``incomplete``, ``superseded`` and ``digest``."""
_ENDED: Final = f"SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY runs_by_end WHERE {queries.ENDED_WITHIN} LIMIT ?)"  # noqa: S608 a constant
_MAX_SORTED: Final = 10_000
"""Runs that a list by the time of the end sorts. With more, so many of the newest runs are in it that it is read in its
own order."""


def sorted_by_run_id(rows: Iterable[Item], limit: int) -> Iterator[Item]:
    """Yield rows, which are sorted by time, with those of the same time sorted by run id: the first of these."""
    tied: list[Item] = []
    for row in rows:
        if tied and row[1] != tied[0][1]:
            yield from tied if len(tied) == 1 else _last_run_ids(tied, limit)
            tied = []
        tied.append(row)
        if len(tied) > 2 * limit:
            tied = _last_run_ids(tied, limit)
    yield from _last_run_ids(tied, limit)


def _last_run_ids(rows: list[Item], limit: int) -> list[Item]:
    return sorted(rows, key=itemgetter(0), reverse=True)[:limit]


def have_few_ended(connection: sqlite3.Connection, query: contracts.RunQuery) -> bool:
    """Return whether few enough runs have ended in the range of a query by end to be sorted."""
    count: int = connection.execute(_ENDED, (*_end_range(query) * 2, _MAX_SORTED)).fetchone()[0]
    return count < _MAX_SORTED


def _end_range(query: contracts.RunQuery) -> tuple[int, int]:
    """Return the range of the ends of the runs in a list: from, and before."""
    until = MAX_NS + 1 if query.ended_until is None else query.ended_until
    return min(query.ended_since or 0, MAX_NS), min(until, MAX_NS + 1)


Statement = tuple[str, list[Any], bool]
"""A statement, its values, and whether its rows of the same time are sorted by run id too."""


def statements(query: contracts.RunQuery, *, few_ended: bool = False) -> list[Statement]:
    """Return the statements of a list: one, or one for each of several statuses.

    The rows of each come from the index whose columns are those that the query fixes, in the order of the list.

    few_ended: whether few enough runs have ended in the range of the query to be sorted.
    """
    statuses = () if query.status is None else tuple(dict.fromkeys(query.statuses))
    if query.stuck_before is not None or few_ended or len(statuses) < 2:
        return [_statement(query, statuses, few_ended=few_ended)]
    return [_statement(query, (status,)) for status in statuses]


def _statement(query: contracts.RunQuery, statuses: Sequence[str], *, few_ended: bool = False) -> Statement:
    index, conditions, bound = "runs_by_time", ["tenant = ?"], list[Any]([utf8(query.tenant)])
    if query.workflow_id is not None:
        index = "runs_by_workflow"
        workflow_id = utf8(query.workflow_id)
        conditions.append("workflow_key = ? AND workflow_id = ?")
        bound += [queries.workflow_key(utf8(query.tenant), workflow_id), workflow_id]
    if query.is_by_end and not statuses:
        statuses = TERMINAL_RUN_STATUSES
    if len(statuses) == 1:
        status = utf8(statuses[0])
        key = queries.status_key(status)
        if key is None:
            conditions.append("status_key IS NULL AND status = ?")
            bound.append(status)
        else:
            index = "runs_by_status" if query.workflow_id is None else "runs_by_workflow_and_status"
            conditions.append("status_key = ? AND status = ?")
            bound += [key, status]
    elif statuses:
        conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
        bound += map(utf8, statuses)
    if query.stuck_before is not None:
        index = "live_runs"  # few runs can be stuck, whatever the other filters are
        conditions.append(SILENT)
        bound.append(min(query.stuck_before, MAX_NS))
    if query.is_by_end:
        index = "runs_by_end" if few_ended else index
        conditions.append(queries.ENDED_WITHIN)
        bound += _end_range(query) * 2
    if query.since is not None:
        conditions.append("time >= ?")
        bound.append(min(query.since, MAX_NS))
    if query.before is not None:
        time, run_id = query.before
        conditions.append("(time, run_id) < (?, ?)")
        bound += [min(time, MAX_NS + 1), utf8(run_id)]
    where = " AND ".join(conditions)
    select = "SELECT run_id, time, summary, checksum, incomplete, superseded, digest FROM runs"
    # Without a limit: rows are read one by one, and damaged ones are not counted.
    is_sorted = index not in _INDEXES_WITHOUT_RUN_ID
    order = "time DESC, run_id DESC" if is_sorted else "time DESC"
    return f"{select} INDEXED BY {index} WHERE {where} ORDER BY {order}", bound, is_sorted


def utf8(text: str) -> bytes:
    """Return the text as stored. No stored text contains a lone surrogate, so such a text finds nothing."""
    return text.encode("utf-8", "surrogatepass")
