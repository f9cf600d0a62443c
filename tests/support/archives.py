"""What the tests of archives share: runs of an earlier year, archives of a store, and readers that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runspan import Run, encode
from runspan.archive.create import AgeRange, ArchiveRequest, ArchiveResult, create_archive
from runspan.archive.select import RetryingReader
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Capabilities, Document, Page, RunQuery, TraceReader
from runspan.model.span import Span
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.sources import documents
from runspan.testing import generate

SECOND = 1_000_000_000
NOW = 1_764_000_000 * SECOND
"""2025-11-24: after every run of ``past``."""


def past(count: int, *, seed: int = 5, unfinished: bool = False) -> dict[str, bytes]:
    """Canonical texts of generated runs by id, all of an earlier year."""
    texts = (text.replace(b'"2026-', b'"2024-') for text in generate(count, seed=seed, unfinished=unfinished))
    runs = [Run.from_json(text) for text in texts]
    assert len({run.id for run in runs}) == count
    return {run.id: run.text for run in runs}


def finished(texts: Mapping[str, bytes]) -> dict[str, bytes]:
    return {run_id: text for run_id, text in texts.items() if Run.from_json(text).finished}


def fill(store: SqliteStore, texts: Mapping[str, bytes], tenant: str = "") -> None:
    """All of them in one request."""
    spans = [span for text in texts.values() for span in encode(Run.from_json(text), tenant=tenant, observed_at=NOW)]
    received = read_protobuf(request_bytes(Resource(), map(scoped_bytes, spans)))
    assert store.write(received, tenant).rejected == ()


def make(
    reader: TraceReader,
    to: Path | str,
    *,
    part_bytes: int = 48 << 10,
    now: int = NOW,
    other: Callable[[str, str], None] | None = None,
    **request: Any,
) -> ArchiveResult:
    """Create an archive of everything, in small files. other: called with unfinished archives that are not resumed."""
    members: dict[str, Any] = {
        "tenant": "",
        "source": "sqlite",
        "source_url": "sqlite:data",
        "to": str(to),
        "ages": AgeRange(3600 * SECOND, None),
        **request,
    }
    return create_archive(
        ArchiveRequest(**members),
        RetryingReader(reader, 2, on_retry=_never),
        now=now,
        on_collected=lambda found: None,
        on_checked=lambda size: None,
        on_other=other or (lambda path, options: None),
        part_bytes=part_bytes,
    )


def held(path: Path | str) -> dict[str, bytes]:
    """The documents of an archive by id; each must be there once and intact."""
    found: dict[str, bytes] = {}
    for item in documents(str(path)):
        assert isinstance(item, Run), item
        assert item.id not in found
        found[item.id] = item.text
    return found


class Troubled:
    """A reader over a store with runs that go wrong each in its own way."""

    capabilities = Capabilities()

    def __init__(self, store: SqliteStore, trouble: dict[str, Any]) -> None:
        self._store = store
        self._trouble = trouble
        self.asked: list[str] = []

    def document(self, run_id: str, tenant: str = "") -> Document:
        self.asked.append(run_id)
        trouble = self._trouble.get(run_id)
        if isinstance(trouble, list):
            trouble = trouble.pop() if trouble else None
        if isinstance(trouble, Exception):
            raise trouble
        return trouble if isinstance(trouble, Document) else self._store.document(run_id, tenant)

    def search(self, query: RunQuery) -> Page:
        page = self._store.search(query)
        return Page(page.items, page.cursor, self._trouble.get("", ()))

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        raise AssertionError("an archive is of documents")

    def check(self) -> None: ...

    def close(self) -> None: ...


class Killed(Exception):
    """The end of the process."""


class Cut(Troubled):
    """Ends after so many documents."""

    def __init__(self, store: SqliteStore, documents: int) -> None:
        super().__init__(store, {})
        self.left = documents

    def document(self, run_id: str, tenant: str = "") -> Document:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().document(run_id, tenant)


def _never(error: str, seconds: float) -> None:
    raise AssertionError("nothing here asks to wait")
