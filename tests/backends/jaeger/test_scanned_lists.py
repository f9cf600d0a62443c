"""Lists by what Jaeger cannot search for: all runs of their time are read, a page after the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from uuid import uuid4

import pytest

from conformance.harness import SECOND, T0, ids, make_run
from conformance.jaeger import jaeger_by_otlp
from runspan.backends.jaeger import JaegerReader
from runspan.backends.jaeger.reader import LIST_SECONDS, SCAN_SECONDS
from runspan.backends.remote.config import remote_config
from runspan.contracts import Cursor, RunQuery
from support.servers.jaeger import Jaeger


@pytest.mark.parametrize("width", [SECOND // 1000, 60 * SECOND, 86_400 * SECOND])
def test_a_list_that_takes_long_ends_early_and_goes_on_with_the_next_page(jaeger_memory: Jaeger, width: int) -> None:
    """Each page says where it ended, and all together have each run once, also many of the same moment."""
    harness, tenant = jaeger_by_otlp(jaeger_memory), uuid4().hex
    runs = [make_run(f"run-{number:02}", T0 + number // 3 * width, durationMs=number) for number in range(40)]
    harness.send(*runs, tenant=tenant)
    expected = ids(harness.reader.search(RunQuery(tenant)))
    harness.close()
    pages: list[list[str]] = []
    positions: list[Cursor] = []
    query = RunQuery(tenant, min_duration=0, limit=7)
    early = 0
    while True:
        # The list has begun; ever after, the time of a scan is over, and that of a list is not.
        times = chain([0.0], repeat((SCAN_SECONDS + LIST_SECONDS) / 2))
        reader = JaegerReader(
            remote_config(f"jaeger+{jaeger_memory.url}", {}), monotonic=lambda times=times: next(times)
        )
        page = reader.search(query)
        reader.close()
        pages.append(ids(page))
        early += any("the search was stopped" in note for note in page.partial)
        if page.cursor is None:
            break
        assert Cursor.parse(page.cursor.token()) == page.cursor
        assert all((page.cursor.time, page.cursor.run_id) < (last.time, last.run_id) for last in positions)
        positions.append(page.cursor)
        query = replace(query, cursor=page.cursor)
    assert list(chain.from_iterable(pages)) == expected
    assert early
