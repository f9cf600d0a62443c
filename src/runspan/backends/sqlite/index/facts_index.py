"""The rows of the index: what runs are filtered and sorted by."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import zstandard

from runspan.backends.sqlite.index import stats, text
from runspan.codec.facts import RunFacts, RunOutcome, run_facts
from runspan.codec.full_text import searchable_text
from runspan.contracts import RunQuery
from runspan.errors import QueryUnsupported
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES, Run
from runspan.model.timestamps import MAX_NS, MILLISECOND

MODEL, STEP_TYPE, TRIGGER, ERROR_CODE, WORKFLOW, STATUS = range(6)
"""The kinds of ``run_values``."""
NONE: Final = -1
"""The duration or cost of a run that has none, so that it is sorted behind all others."""
_NAME_BYTES: Final = 200
_MAX_NAMES: Final = 20_000
_FEW: Final = 20_000
"""Runs that are sorted by a query. If each of its filters matches more, many of the first runs in the order of the list
are in it."""
_FEW_READ: Final = 500
"""Runs whose documents are read in a tenth of a second: a text is looked for in these rather than in the text index if
all that meet a filter are fewer. With more, most of a page is found among the first candidates of that."""
_CHUNK: Final = 256
"""Runs with a text whose other filters are compared at once."""
NO_RUN: Final = b""
"""The trace id of a candidate that is no run, but the progress of a text search among the runs of other tenants."""
_WITHOUT_TEXT: Final = (
    "SELECT id FROM indexed_runs INDEXED BY runs_without_text WHERE tenant = ? AND text_row IS NULL AND id < ?"
    " ORDER BY id DESC"
)
_BY_DURATION: Final = "indexed_runs AS runs INDEXED BY runs_by_duration"
_COLUMNS: Final = {TRIGGER: "trigger_type", ERROR_CODE: "error_code", WORKFLOW: "workflow_id", STATUS: "status"}
"""The kinds of values of which a run has one, with their column."""
_INSERT: Final = f"INSERT INTO indexed_runs VALUES ({', '.join('?' * 13)})"  # noqa: S608 a constant
_NEXT_ID: Final = """
    SELECT id + 1 FROM indexed_runs NOT INDEXED WHERE id >= ? AND id + 1 NOT IN (SELECT id FROM indexed_runs)
    ORDER BY id LIMIT 1
"""

_ENDED: Final = frozenset(map(str.encode, TERMINAL_RUN_STATUSES))
_UNFINISHED: Final = frozenset(map(str.encode, RUN_STATUSES)) - _ENDED
"""Runs in these statuses are few, and change often: a search for a text reads their documents."""
_MAX_TEXT: Final = 1 << 20
"""Bytes of a document in the text index. They take a second there, which delays the runs of other tenants; larger ones
are read, like unfinished ones, by the searches of their own tenant."""

_Facts = TypeVar("_Facts")
_log = logging.getLogger("runspan.index")
_pack = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RunFacts).decode
_decode_outcome = msgspec.msgpack.Decoder(RunOutcome).decode


class StoredRun(NamedTuple):
    """A run of the store, its document still compressed."""

    trace_id: bytes
    tenant: bytes
    run_id: bytes
    status: bytes | None
    time: int
    ended: int
    document: bytes


STORED_RUN: Final = f"SELECT {', '.join(StoredRun._fields)} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant


class Candidate(NamedTuple):
    """A run that may be in a list."""

    id: int
    trace_id: bytes
    """Or ``NO_RUN``."""
    time: int
    value: int
    """What the list is sorted by."""
    run_id: bytes


_CANDIDATE: Final = "runs.id, runs.trace_id, runs.time, {0}, runs.run_id"


class FactsWriter:
    """Writes the rows of runs, on the one connection that writes the index, within its transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        self._names: dict[bytes, int] = {}
        self._taken = (0, 0)
        """A long range of ids that are all taken, so that the next free one is not looked for run by run."""
        self._counted: list[tuple[str, RunFacts, int]] = []
        """What statistics have not counted yet, see ``stats.apply``."""
        self.has_removed_text = False
        """Whether texts were removed, which are still in the file."""

    def has(self, trace_id: bytes) -> bool:
        """Return whether there is anything of a run."""
        sql = "SELECT 1 FROM indexed_runs WHERE trace_id = ? UNION ALL SELECT 1 FROM damaged_runs WHERE trace_id = ?"
        return self._connection.execute(sql, (trace_id, trace_id)).fetchone() is not None

    def put(self, stored: StoredRun, run: Run | None) -> None:
        """Write what a run has now in place of what it had; None for a document that cannot be read."""
        self.remove(stored.trace_id)
        content = None if run is None else _content(stored, run)
        if content is None:
            row = (stored.trace_id, self._name(stored.tenant), stored.run_id)
            self._connection.execute("INSERT INTO damaged_runs VALUES (?, ?, ?)", row)
        else:
            self._add(stored, *content)

    def remove(self, trace_id: bytes) -> None:
        """Delete what there is of a run."""
        execute = self._connection.execute
        execute("DELETE FROM damaged_runs WHERE trace_id = ?", (trace_id,))
        select = (
            "SELECT runs.id, runs.tenant, text_row, names.name, facts FROM indexed_runs AS runs"
            " LEFT JOIN names ON names.id = tenant LEFT JOIN counted_facts ON counted_facts.id = runs.id"
            " WHERE trace_id = ?"
        )
        row = execute(select, (trace_id,)).fetchone()
        if row is None:
            return
        row_id, tenant, text_row, name, packed = row
        try:
            facts, owner = unpack(packed), name.decode()
        except (AttributeError, UnicodeDecodeError) as error:
            raise sqlite3.DatabaseError(f"the tenant of a run cannot be read: {error}") from None
        self._counted.append((owner, facts, -1))
        for kind, value in values_of(facts):
            execute(
                "DELETE FROM run_values WHERE tenant = ? AND kind = ? AND value = ? AND run = ?",
                (tenant, kind, self._name(value), row_id),
            )
        if text_row is not None:
            text.remove(self._connection, text_row)
            self.has_removed_text = True
        execute("DELETE FROM counted_facts WHERE id = ?", (row_id,))
        execute("DELETE FROM indexed_runs WHERE id = ?", (row_id,))

    def move_text(self, row: int, run_row: int, stored: StoredRun | None, run: Run | None) -> None:
        """Add the text that a run has now to the text index, and remove the row that had it."""
        text.remove(self._connection, row)
        content = None if stored is None or run is None else _content(stored, run)
        # A run without a text is read by searches, until the feed says what has become of it.
        moved = text.add(self._connection, run_row, content[1]) if content is not None and content[1] else None
        self._connection.execute("UPDATE indexed_runs SET text_row = ? WHERE id = ?", (moved, run_row))

    def count(self) -> None:
        """Let statistics count what the transaction has written, all at once. Called before it is committed."""
        stats.apply(self._connection, self._counted)
        self._counted.clear()

    def forget(self) -> None:
        """Forget what is known of the transaction that was rolled back."""
        self._counted.clear()
        self._names.clear()
        self._taken = (0, 0)

    def _add(self, stored: StoredRun, facts: RunFacts, content: str) -> None:
        tenant = self._name(stored.tenant)
        row_id = self._free_id(stored.time // MILLISECOND)
        duration, cost, *values = columns_of(facts)
        names = [None if value is None else self._name(value) for value in values]
        ended = stored.ended if stored.status in _ENDED else None
        text_row = text.add(self._connection, row_id, content) if content else None
        row = (row_id, stored.trace_id, tenant, stored.time, ended, *names, duration, cost, text_row, stored.run_id)
        self._connection.execute(_INSERT, row)
        self._connection.execute(
            "INSERT INTO counted_facts VALUES (?, ?)", (row_id, self._compressor.compress(_pack(facts)))
        )
        rows = [(tenant, kind, self._name(value), row_id) for kind, value in values_of(facts)]
        self._connection.executemany("INSERT INTO run_values VALUES (?, ?, ?, ?)", rows)
        self._counted.append((stored.tenant.decode(), facts, 1))

    def _free_id(self, milliseconds: int) -> int:
        """Return the id of a run at this time, which no other run has."""
        first, end = self._taken
        is_taken = first <= milliseconds < end
        row_id = end if is_taken else milliseconds
        if self._connection.execute("SELECT 1 FROM indexed_runs WHERE id = ?", (row_id,)).fetchone() is not None:
            row_id = self._connection.execute(_NEXT_ID, (row_id,)).fetchone()[0]
        if row_id > milliseconds:
            if is_taken or row_id - milliseconds > end - first:
                self._taken = (first if is_taken else milliseconds), row_id + 1
            displacement = "UPDATE progress SET displacement = max(displacement, ?)"
            self._connection.execute(displacement, (row_id - milliseconds,))
        return row_id

    def _name(self, name: bytes) -> int:
        """Return the id of a name, which is made if there is none."""
        found = self._names.get(name)
        if found is None:
            self._connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            found = int(self._connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()[0])
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[name] = found
        return found


def _content(stored: StoredRun, run: Run) -> tuple[RunFacts, str] | None:
    """Return the facts of a run and what the text index has of it, which is nothing of some.

    Return None if that fails: no other run waits for this one.
    """
    try:
        facts = run_facts(run, stored.time)
        if stored.status in _UNFINISHED or len(run.text) > _MAX_TEXT:
            return facts, ""
        return facts, searchable_text(run)
    except Exception:
        _log.exception("a run cannot be indexed: trace %s", stored.trace_id.hex())
        return None


def unpack(packed: bytes) -> RunFacts:
    """Return what statistics have counted of a run, see ``counted_facts``."""
    return _unpacked(packed, _decode)


def unpack_outcome(packed: bytes) -> RunOutcome:
    """Return the part that does not depend on the number of steps, in a fraction of the time."""
    return _unpacked(packed, _decode_outcome)


def _unpacked(packed: bytes, decode: Callable[[bytes], _Facts]) -> _Facts:
    try:
        return decode(zstandard.decompress(packed))
    except (zstandard.ZstdError, msgspec.MsgspecError, MemoryError, TypeError) as error:
        raise sqlite3.DatabaseError(f"the facts of a run cannot be read: {error}") from None


def columns_of(facts: RunFacts) -> tuple[int, int, bytes | None, bytes | None, bytes | None, bytes | None]:
    """Return duration, cost, and the names of workflow, status, trigger and error."""
    names = (facts.workflow_id, facts.status, facts.trigger, facts.error_code)
    workflow_id, status, trigger, code = [None if value is None else _as_name(value) for value in names]
    duration = NONE if facts.duration is None else facts.duration
    return duration, facts.cost if facts.models else NONE, workflow_id, status, trigger, code


def values_of(facts: RunFacts) -> set[tuple[int, bytes]]:
    """Return kind and name of what a run is found by."""
    single = {TRIGGER: facts.trigger, ERROR_CODE: facts.error_code, WORKFLOW: facts.workflow_id, STATUS: facts.status}
    found = {(kind, _as_name(value)) for kind, value in single.items() if value is not None}
    found |= {(MODEL, _as_name(model)) for model in facts.model_names}
    return found | {(STEP_TYPE, _as_name(step_type)) for step_type in facts.step_types}


# Reading.


def damaged_run_ids(connection: sqlite3.Connection, tenant: str) -> list[bytes]:
    """Return the ids of the runs of a tenant whose document cannot be read."""
    sql = "SELECT run_id FROM damaged_runs WHERE tenant = ?"
    return [run_id for (run_id,) in connection.execute(sql, (find_tenant(connection, tenant),))]


def candidates(connection: sqlite3.Connection, query: RunQuery, is_late: Callable[[], bool]) -> Iterator[Candidate]:
    """Yield the runs that may be in a list: by descending id if it is sorted by their start, else in its order.

    is_late: whether there is no time left for those that have to be found, and sorted, before the first one is yielded.

    Every run of the list is among them, unless it has changed since the index read it. Names are compared by a prefix
    only, and when a heartbeat was due is not compared at all.
    """
    tenant = find_tenant(connection, query.tenant)
    chosen = _chosen(connection, query)
    if tenant is None or not all(chosen.values()):
        return iter(())
    if query.text is not None and not _is_any_rare(connection, query, tenant, chosen):
        conditions, bound = _conditions(connection, query, chosen)
        ids = _ids_with_text(connection, query, tenant)
        return _among(connection, query, ids, ["runs.tenant = ?", *conditions], [tenant, *bound], is_late)
    source, values, row_id = _source(connection, query, tenant, chosen)
    conditions, bound = _conditions(connection, query, chosen, row_id)
    order = f"{row_id} DESC" if query.order == "start" else f"runs.{query.order} DESC, runs.run_id DESC"
    columns = _CANDIDATE.format("0" if query.order == "start" else f"runs.{query.order}")
    where = " AND ".join(["runs.tenant = ?", *conditions])
    sql = f"SELECT {columns} FROM {source} {where} ORDER BY {order}"  # noqa: S608
    return map(_candidate, connection.execute(sql, [*values, tenant, *bound]))


def _ids_with_text(connection: sqlite3.Connection, query: RunQuery, tenant: int) -> Iterator[int]:
    """Yield the ids of runs that may contain the text of a query, the greatest first; of all of those that are not in
    the text index."""
    connection.execute("BEGIN")  # the tables of the text index stay while they are read
    until = MAX_NS if query.before is None else query.before[0]
    before = first_id(connection, until)
    since = 0 if query.since is None else min(query.since, MAX_NS) // MILLISECOND
    others = (row_id for (row_id,) in connection.execute(_WITHOUT_TEXT, (tenant, before)))
    for row_id in merge(text.candidates(connection, query.text or "", before), others, reverse=True):
        if row_id < since:
            return
        yield row_id


def _among(
    connection: sqlite3.Connection,
    query: RunQuery,
    ids: Iterator[int],
    conditions: list[str],
    values: list[Any],
    is_late: Callable[[], bool],
) -> Iterator[Candidate]:
    """Yield those of the runs that meet the conditions, in the order of ``candidates``."""
    of_ids = (
        "FROM indexed_runs AS runs NOT INDEXED"  # noqa: S608
        f" WHERE runs.id IN (SELECT value FROM json_each(?)) AND {' AND '.join(conditions)}"
    )
    chunks = iter(lambda: list(islice(ids, _CHUNK)), [])
    if query.order == "start":
        sql = f"SELECT {_CANDIDATE.format('0')} {of_ids} ORDER BY runs.id DESC"
        for chunk in chunks:
            yield from map(_candidate, connection.execute(sql, [str(chunk), *values]))
            yield Candidate(chunk[-1], NO_RUN, 0, 0, b"")
        return
    found: list[int] = []
    for chunk in chunks:
        # The text index has the runs of all tenants: only those of this one may count.
        found += [row_id for (row_id,) in connection.execute(f"SELECT runs.id {of_ids}", [str(chunk), *values])]
        if len(found) > _FEW or is_late():
            raise QueryUnsupported(
                where="sort",
                expected=f"a text that at most {_FEW} runs may contain, all of which are found in time",
                got="one that more may contain",
                hint="sort by the start, or narrow the time range",
            )
    sql = f"SELECT {_CANDIDATE.format(f'runs.{query.order}')} {of_ids} ORDER BY 4 DESC, runs.run_id DESC"
    yield from map(_candidate, connection.execute(sql, [str(found), *values]))


def _candidate(row: tuple[object, ...]) -> Candidate:
    found = Candidate(*row)  # type: ignore[arg-type]
    if tuple(map(type, found)) != (int, bytes, int, int, bytes):
        raise sqlite3.DatabaseError("a row has values of other types")
    return found


def first_id(connection: sqlite3.Connection, time: int) -> int:
    """Return an id before which all runs are that start before a time, or at it."""
    (displacement,) = connection.execute("SELECT displacement FROM progress").fetchone()
    return min(time, MAX_NS) // MILLISECOND + int(displacement) + 1


def _chosen(connection: sqlite3.Connection, query: RunQuery) -> dict[int, list[int]]:
    """Return the ids of the values that runs must have one of, by their kind; none for those that no run has."""
    wanted = {
        MODEL: (query.model,),
        STEP_TYPE: (query.step_type,),
        TRIGGER: (query.trigger,),
        ERROR_CODE: (query.error_code,),
        WORKFLOW: (query.workflow_id,),
        STATUS: query.statuses or (TERMINAL_RUN_STATUSES if query.is_by_end else ()),
    }
    named = {kind: [value for value in values if value is not None] for kind, values in wanted.items()}
    return {
        kind: [found for value in values if (found := find_name(connection, value)) is not None]
        for kind, values in named.items()
        if values
    }


def _conditions(
    connection: sqlite3.Connection, query: RunQuery, chosen: dict[int, list[int]], row_id: str = "runs.id"
) -> tuple[list[str], list[Any]]:
    """Return the conditions on the rows of runs, except for that on the tenant, and their values.

    row_id: the column of the ids.
    """
    conditions, bound = [], list[Any]()
    for kind, values in chosen.items():
        marks = ", ".join("?" * len(values))
        if kind in _COLUMNS:
            conditions.append(f"runs.{_COLUMNS[kind]} IN ({marks})")
            bound += values
        else:
            conditions.append(
                "EXISTS (SELECT 1 FROM run_values WHERE tenant = runs.tenant AND kind = ?"
                " AND value = ? AND run = runs.id)"
            )
            bound += [kind, *values]
    ranges = {
        "runs.duration >= ?": query.min_duration,
        "runs.ended >= ?": query.ended_since,
        "runs.ended < ?": query.ended_until,
        "runs.time >= ?": query.since,
        "runs.time < ?": query.until,
    }
    for condition, edge in ranges.items():
        if edge is not None:
            conditions.append(condition)
            bound.append(min(edge, MAX_NS + 1))
    if query.since is not None:
        conditions.append(f"{row_id} >= ?")
        bound.append(min(query.since, MAX_NS) // MILLISECOND)
    if query.before is not None:
        conditions.append(f"{row_id} < ?")
        bound.append(first_id(connection, query.before[0]))
    if query.cursor is not None:
        column = "time" if query.order == "start" else query.order
        conditions.append(f"(runs.{column}, runs.run_id) < (?, ?)")
        bound += [min(query.cursor.time, MAX_NS + 1), _utf8(query.cursor.run_id)]
    return conditions, bound


def _source(
    connection: sqlite3.Connection, query: RunQuery, tenant: int, chosen: dict[int, list[int]]
) -> tuple[str, list[Any], str]:
    """Return where the rows come from, up to the keyword for the first condition, its values, and the column of ids.

    That is a filter whose runs are in the order of the list, or few enough to be sorted; else the order of the list.
    """
    is_by_start = query.order == "start"
    most = max(1, _FEW // 10) if is_by_start else _FEW  # by start, a filter that more runs match is in order too
    counts = _counts(connection, tenant, chosen, most)
    usable = [kind for kind in counts if counts[kind] < most or (is_by_start and len(chosen[kind]) == 1)]
    rarest = min(usable, key=counts.__getitem__, default=None)
    few = most if rarest is None else min(most, counts[rarest])
    is_long = query.min_duration is not None and query.order != "duration"
    if is_long and _count_longer(connection, tenant, query.min_duration or 0, most) < few:
        return f"{_BY_DURATION} WHERE", [], "runs.id"
    if rarest is not None:
        values = chosen[rarest]
        one_of = "= ?" if len(values) == 1 else f"IN ({', '.join('?' * len(values))})"
        among = f"found.tenant = ? AND found.kind = ? AND found.value {one_of}"
        source = f"run_values AS found CROSS JOIN indexed_runs AS runs ON runs.id = found.run WHERE {among} AND"
        return source, [tenant, rarest, *values], "found.run"
    if is_by_start:
        return "indexed_runs AS runs NOT INDEXED WHERE", [], "runs.id"
    if query.since is not None or query.until is not None:
        since, until = query.since or 0, MAX_NS if query.until is None else query.until
        edges = since // MILLISECOND, first_id(connection, until)
        if _count(connection, most, "indexed_runs NOT INDEXED WHERE id >= ? AND id < ?", *edges) < most:
            return "indexed_runs AS runs NOT INDEXED WHERE", [], "runs.id"
    return f"indexed_runs AS runs INDEXED BY runs_by_{query.order} WHERE", [], "runs.id"


def _is_any_rare(connection: sqlite3.Connection, query: RunQuery, tenant: int, chosen: dict[int, list[int]]) -> bool:
    """Return whether fewer than ``_FEW_READ`` runs meet one of the filters."""
    counts = list(_counts(connection, tenant, chosen, _FEW_READ).values())
    if query.min_duration is not None:
        counts.append(_count_longer(connection, tenant, query.min_duration, _FEW_READ))
    return min(counts, default=_FEW_READ) < _FEW_READ


def _counts(connection: sqlite3.Connection, tenant: int, chosen: dict[int, list[int]], most: int) -> dict[int, int]:
    """Return how many runs have one of the chosen values of each kind, about so many at most."""
    of_value = "run_values WHERE tenant = ? AND kind = ? AND value = ?"
    return {
        kind: sum(_count(connection, most, of_value, tenant, kind, value) for value in values)
        for kind, values in chosen.items()
    }


def _count_longer(connection: sqlite3.Connection, tenant: int, duration: int, most: int) -> int:
    """Return how many runs took this long or longer, at most so many."""
    longer = f"{_BY_DURATION} WHERE runs.tenant = ? AND runs.duration >= ?"
    return _count(connection, most, longer, tenant, min(duration, MAX_NS))


def _count(connection: sqlite3.Connection, most: int, rows: str, *values: int) -> int:
    """Return how many rows there are, at most so many."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT {most})"  # noqa: S608 constants
    return int(connection.execute(sql, values).fetchone()[0])


def find_name(connection: sqlite3.Connection, name: str) -> int | None:
    """Return the id of a name, None if no run has or had it."""
    return _id_of_name(connection, _as_name(name))


def find_tenant(connection: sqlite3.Connection, tenant: str) -> int | None:
    """Return the id of a tenant's name, which is never cut; None if no run is or was the tenant's."""
    return _id_of_name(connection, _utf8(tenant))


def _id_of_name(connection: sqlite3.Connection, name: bytes) -> int | None:
    row = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _as_name(value: str) -> bytes:
    return _utf8(value)[:_NAME_BYTES]


def _utf8(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")
