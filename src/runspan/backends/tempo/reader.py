"""``TempoReader``: runs out of a Grafana Tempo, read over its HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from runspan.backends.remote.client import PROTOBUF, RemoteClient, Sleep, document_of, fetch_with_retry, trace_id_of
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.tempo.responses import read_trace
from runspan.backends.tempo.search import RunSearch, WindowSizes
from runspan.backends.tempo.verify_candidates import CandidateVerifier, VerifiedCache
from runspan.backends.tempo.window_search import SECOND, WindowSearcher
from runspan.codec.decode import VerifiedRun
from runspan.contracts import Capabilities, Document, Page, RunQuery
from runspan.errors import BackendRefused, BackendTimeout, NotFound, TraceIncomplete
from runspan.model.span import Span

LIST_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 5.0
_OTHERS: Final = frozenset({401, 403, 404, 405})
"""Answers to ``/ready`` where only the query API is let through."""


class TempoReader:
    """A ``TraceReader`` over Tempo 2.8 or later. clock: nanoseconds since 1970."""

    capabilities = Capabilities(foreign_spans=True)

    def __init__(
        self,
        settings: RemoteConfig,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._http = RemoteClient(settings)
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._searcher = WindowSearcher(self._http)
        self._proofs = VerifiedCache()
        self._paces = WindowSizes()
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="tempo")

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. A trace that Tempo does not hand over whole is asked for again, for about a second."""
        trace_id = trace_id_of(run_id, tenant)
        try:
            return document_of(self._run(trace_id, patient=True))
        except NotFound:
            hint = "it was never sent there, or is past retention"
            raise NotFound("not in this Tempo", where=f"run {run_id}", hint=hint) from None
        except TraceIncomplete as error:
            error.where = error.where or f"run {run_id}"
            raise

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``."""
        spans, _ = self._trace(trace_id)
        if not spans:
            raise NotFound("not in this Tempo", where=f"trace {trace_id.hex()}")
        return spans

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``."""
        deadline = self._monotonic() + LIST_SECONDS

        def go_on() -> None:
            if self._monotonic() > deadline:
                raise BackendTimeout(
                    where=self._http.name,
                    expected=f"the list within {LIST_SECONDS:g} seconds",
                    got="no end of it",
                    hint="ask for a later since, a workflow or a status",
                )

        judge = CandidateVerifier(query, partial(self._run, patient=False), self._proofs, self._pool)
        try:
            return RunSearch(query, self._searcher, judge, self._paces, self._clock() // SECOND, go_on).page()
        except UnicodeEncodeError:
            return Page([])  # a lone surrogate is in no stored text

    def check(self) -> None:
        """See ``TraceReader``."""
        answer = self._http.get("/ready", accept_statuses=_OTHERS, timeout=_CHECK_SECONDS)
        if answer.status in _OTHERS:
            self._http.get("/api/echo", timeout=_CHECK_SECONDS)

    def close(self) -> None:
        """See ``TraceReader``."""
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _run(self, trace_id: bytes, *, patient: bool) -> VerifiedRun:
        notes: list[str] = []

        def fetch() -> list[Span]:
            spans, note = self._trace(trace_id)
            notes[:] = [note] if note else []
            return spans

        try:
            return fetch_with_retry(fetch, self._sleep, patient=patient)
        except TraceIncomplete as error:
            if notes:
                error.hint = notes[0]
            raise

    def _trace(self, trace_id: bytes) -> tuple[list[Span], str]:
        """The spans of a trace, none when it is unknown, and what Tempo says of its being partial."""
        path = f"/api/v2/traces/{trace_id.hex()}"
        answer = self._http.get(path, accept=PROTOBUF, accept_statuses=(404,))
        if answer.status == 404:  # before 2.6 there is only the first version, which knows 404 for a trace too
            answer = self._http.get(f"/api/traces/{trace_id.hex()}", accept=PROTOBUF, accept_statuses=(404,))
            if answer.status == 404:
                return [], ""
        try:
            return read_trace(answer.content, wrapped="/v2/" in path, again=partial(self._http.get, path))
        except ValueError as error:
            raise BackendRefused(
                where=self._http.name, expected="a trace", got=str(error)[:200], hint="is this a Tempo?"
            ) from None
