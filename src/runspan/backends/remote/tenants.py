"""``TenantReader``: reads runs from a backend that has tenants of its own, one for each tenant of runs."""

from __future__ import annotations

from threading import Lock
from typing import Final, Protocol, Self

from runspan.backends.remote.config import RemoteConfig
from runspan.contracts import Capabilities, Document, Page, RunQuery, StatsPage, StatsQuery, TraceReader
from runspan.model.span import Span
from runspan.otlp.env import Headers

_MAX_READERS: Final = 1000


class HeaderReader(TraceReader, Protocol):
    """A reader that can send further headers."""

    def with_headers(self, headers: Headers) -> Self:
        """Return a reader that sends further headers over the same connections, and knows nothing of other responses.

        It is closed together with this one.
        """
        ...


class TenantReader:
    """A ``TraceReader`` whose requests carry the backend's tenant of the runs that are asked for.

    Each tenant has a reader of its own, so that nothing that one has learned is used for another. Raises Forbidden for
    runs without a tenant, and for those whose tenant is no name for the backend.
    """

    def __init__(self, reader: HeaderReader, config: RemoteConfig) -> None:
        self._reader = reader
        self._config = config
        self._readers: dict[str, HeaderReader] = {}
        self._lock = Lock()

    @property
    def capabilities(self) -> Capabilities:
        return self._reader.capabilities

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``."""
        return self._of(tenant).document(run_id, tenant)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``. There is no tenant that sees the spans of all."""
        return self._of(tenant or "").spans(trace_id, tenant)

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """See ``TraceReader``."""
        return self._of(tenant).run_spans(run_id, tenant)

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``."""
        return self._of(query.tenant).search(query)

    def run_stats(self, query: StatsQuery) -> StatsPage:
        """See ``TraceReader``."""
        return self._of(query.tenant).run_stats(query)

    def check(self) -> None:
        """See ``TraceReader``. It is asked without a tenant."""
        self._reader.check()

    def close(self) -> None:
        """See ``TraceReader``."""
        self._reader.close()

    def _of(self, tenant: str) -> HeaderReader:
        headers = self._config.tenant_headers(tenant)
        with self._lock:
            reader = self._readers.get(tenant)
            if reader is None:
                if len(self._readers) >= _MAX_READERS:
                    self._readers.clear()
                reader = self._readers[tenant] = self._reader.with_headers(headers)
        return reader
