"""What is remembered of acknowledged spans: never more than the receiver has, and for a bounded time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run
from runspan.delivery import RunSpans, exporter_config
from runspan.export import ObservedRun
from runspan.storage.span_acks import KEEP, SIZE, TABLES, SpanAcks
from runspan.sync.checkpoint import Checkpoint, sync_binding
from runspan.watch.state_db import WatchState

NOW = 1_764_000_000 * 10**9


def names(*numbers: int) -> list[bytes]:
    return [sha256(bytes([number])).digest()[:SIZE] for number in numbers]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        for statement in TABLES:
            made.execute(statement)
        yield made


@pytest.fixture
def spans(connection: sqlite3.Connection) -> SpanAcks:
    return SpanAcks(connection.execute)


def test_only_what_every_later_version_names_stays(spans: SpanAcks) -> None:
    """A span that a version leaves out may be gone at the receiver from then on, though it is named again later."""
    spans.add(b"run", names(1, 2), NOW)
    spans.retain_only(b"run", names(1, 2, 3))
    assert not spans.has_removed
    assert spans.get(b"run", NOW) == set(names(1, 2))
    spans.retain_only(b"run", names(2, 3))
    assert spans.has_removed
    spans.retain_only(b"run", names(1, 2, 3))
    assert spans.get(b"run", NOW) == set(names(2))
    spans.add(b"run", names(1, 2, 3), NOW + 1)
    assert spans.get(b"run", NOW + 1) == set(names(1, 2, 3))
    assert spans.get(b"other", NOW) == set()
    spans.add(b"other", names(9), NOW)
    spans.forget(b"run")
    assert (spans.get(b"run", NOW), spans.get(b"other", NOW)) == (set(), set(names(9)))


def test_what_is_sent_of_a_version(spans: SpanAcks) -> None:
    """What the receiver has is left out, and not recorded anew. If nothing is, a run span is written with others."""
    step = {"id": "a", "type": "action", "status": "completed"}
    going, ended = (Run.from_dict({"id": "run", "status": status, "steps": [step]}) for status in ("running", "failed"))
    snapshot, end, correction = ObservedRun(going, 5), ObservedRun(ended, 6), ObservedRun(ended, 7, after_root=True)
    assert snapshot.without_acked(spans, b"run", "", NOW) == snapshot.encode("")
    assert end.without_acked(spans, b"run", "", NOW) is ended
    assert correction.without_acked(spans, b"run", "", NOW) == correction.encode("")
    known, *others = snapshot.encode("").step_digests
    spans.add(b"run", [known, *names(1)], NOW)
    left = snapshot.without_acked(spans, b"run", "", NOW)
    assert isinstance(left, RunSpans)
    assert (len(left.spans), [*left.step_digests]) == (1 + len(others), others)
    assert spans.get(b"run", NOW) == {known}


def test_a_span_counts_as_there_for_a_day(spans: SpanAcks, connection: sqlite3.Connection) -> None:
    """From its own acknowledgement on; then its place is free again."""
    spans.add(b"run", names(1), NOW)
    spans.add(b"run", names(1, 2), NOW + KEEP // 2)
    assert spans.get(b"run", NOW + KEEP - 1) == set(names(1, 2))
    assert spans.get(b"run", NOW + KEEP) == set(names(2))
    spans.add(b"run", names(1, 2), NOW + KEEP)
    assert connection.execute("SELECT count(*) FROM spans").fetchone() == (2,)
    assert spans.get(b"run", NOW + KEEP + KEEP // 2) == set(names(1))
    assert connection.execute("SELECT count(*) FROM spans").fetchone() == (1,)
    spans.expire(NOW + 3 * KEEP)
    assert connection.execute("SELECT count(*) FROM spans").fetchone() == (0,)


def test_a_run_of_ten_thousand_steps_is_remembered_in_little_space(
    spans: SpanAcks, connection: sqlite3.Connection
) -> None:
    """Sixteen bytes a span, each once, however many snapshots there were."""
    ids = [number.to_bytes(SIZE, "big") for number in range(10_000)]
    for count in range(100, 10_001, 100):
        spans.retain_only(b"run", ids[:count])
        assert not spans.has_removed
        spans.add(b"run", ids[:count], NOW + count)
    assert len(spans.get(b"run", NOW + 10_000)) == 10_000
    assert connection.execute("SELECT count(*), sum(length(digests)) FROM spans").fetchone() == (100, 160_000)
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    assert pages * size < 400_000


def test_another_receiver_has_nothing(spans: SpanAcks) -> None:
    """A change of endpoint, login, tenant or protocol forgets everything; a replay is not another receiver."""

    def receiver(endpoint: str = "http://a", headers: str = "x-scope-orgid=one,authorization=Bearer%20abc") -> bytes:
        return exporter_config({"OTEL_EXPORTER_OTLP_HEADERS": headers}, endpoint=endpoint).identity

    spans.bind_receiver(receiver())
    for other in (
        receiver("http://b"),
        receiver("http://a/v1/traces?account=2"),
        receiver(headers="x-scope-orgid=two,authorization=Bearer%20abc"),
        receiver(headers="x-scope-orgid=one,authorization=Bearer%20def"),
        receiver(headers=""),
        exporter_config({}, endpoint="a:4317", protocol="grpc").identity,
    ):
        spans.bind_receiver(receiver())
        spans.add(b"run", names(1), NOW)
        spans.bind_receiver(receiver())
        assert spans.get(b"run", NOW)
        spans.bind_receiver(other)
        assert not spans.get(b"run", NOW)
    replay = exporter_config({}, endpoint="http://a").as_replay()
    assert replay.identity == receiver(headers="") == receiver(headers="x-runspan-replay=yes")


def test_no_secret_is_stored(tmp_path: Path) -> None:
    """Neither as it is nor as a plain hash, which a guessed password would be compared with at once."""
    config = exporter_config({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2"}, endpoint="http://a")
    with closing(Checkpoint(tmp_path / "cp", sync_binding("a", "b"))) as state:
        state.spans.bind_receiver(config.identity)
        state.commit()
    with closing(WatchState(tmp_path / "state", "a", "")) as state:
        state.spans.bind_receiver(config.identity)
        state.commit()
    for name in ("cp", "state"):
        content = (tmp_path / name).read_bytes()
        assert b"hunter2" not in content
        assert sha256(config.identity).digest() not in content
    with closing(sqlite3.connect(tmp_path / "cp")) as one, closing(sqlite3.connect(tmp_path / "state")) as two:
        rows = [connection.execute("SELECT salt, hash FROM receiver").fetchone() for connection in (one, two)]
    assert rows[0][0] != rows[1][0]
    assert rows[0][1] != rows[1][1]


def test_what_was_taken_out_is_on_the_disk_before_it_is_sent(tmp_path: Path) -> None:
    """A power cut may undo the last commits of a watch, but none that removed a span: the file alone, without the log
    next to it that is not synced, contains it."""
    path = tmp_path / "state"
    with closing(WatchState(path, "t", "")) as state:
        for number in range(3):
            state.spans.add(bytes([number]), names(1, 2), NOW)
        state.commit()
        state.spans.retain_only(b"\x01", names(1, 2, 3))
        state.commit()
        assert _alone(path, tmp_path / "before") is None
        state.spans.retain_only(b"\x01", names(2))
        state.commit()
        assert _alone(path, tmp_path / "after") == b"".join(names(2))


def _alone(path: Path, copy: Path) -> bytes | None:
    """The digests of run 1 in the file without its log."""
    copy.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        row = connection.execute("SELECT digests FROM spans WHERE run = x'01'").fetchone()
        return None if row is None else bytes(row[0])


Versions = st.lists(
    st.tuples(
        st.frozensets(st.integers(0, 5), max_size=6),
        st.sampled_from(["acknowledged", "arrived", "lost", "killed before", "killed after"]),
        st.sampled_from([1, KEEP // 3, KEEP, -1, -KEEP // 3, -3 * KEEP]),
    ),
    max_size=14,
)


def test_what_did_not_count_once_never_counts_again(spans: SpanAcks) -> None:
    """The clock was ahead, then set right, then ahead again: in between a version may have gone without the span."""
    for later in (NOW - 1, NOW + KEEP):
        spans.add(b"run", names(1), NOW)
        assert spans.get(b"run", later) == set()
        assert spans.get(b"run", NOW) == set()


@given(Versions)
def test_nothing_is_left_out_that_a_receiver_lacks(versions: list[tuple[frozenset[int], str, int]]) -> None:
    """A receiver that keeps only what the newest version that arrived names can rebuild every version that arrives,
    though answers and requests get lost, spans go and come back, the sender is killed before or after sending, and the
    clock is set at any time."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in TABLES:
            connection.execute(statement)
        spans, now = SpanAcks(connection.execute), NOW
        kept: set[bytes] = set()
        for steps, outcome, pause in versions:
            now += pause
            named = set(names(*steps))
            connection.execute("BEGIN")
            there = spans.get(b"run", now)
            if there:
                spans.retain_only(b"run", named)
            if outcome == "killed before":
                connection.execute("ROLLBACK")
                continue
            connection.execute("COMMIT")
            if outcome == "lost":
                continue
            assert kept | (named - there) >= named
            kept = named
            if outcome == "arrived":
                continue
            connection.execute("BEGIN")
            spans.add(b"run", named, now)
            connection.execute("COMMIT" if outcome == "acknowledged" else "ROLLBACK")
