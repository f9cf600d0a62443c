"""``TempoReader``: runs out of a Grafana Tempo, read over its HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any, Final

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessages
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from runspan.backends.remote.client import (
    MISSING_DELAYS,
    PROTOBUF,
    RemoteClient,
    Sleep,
    document_of,
    fetch_with_retry,
    trace_id_of,
)
from runspan.backends.remote.config import RemoteConfig
from runspan.backends.remote.filters import check_order
from runspan.backends.tempo.search import CandidateVerifier, RunSearch, WindowHint
from runspan.backends.tempo.search_api import CHECK_SECONDS, SEARCHES, WindowSearcher, check_ready
from runspan.contracts import Capabilities, Document, Page, RunQuery, StatsPage, StatsQuery, stats_unsupported
from runspan.errors import BackendRefused, BackendTimeout, NotFound, PayloadError, TraceIncomplete
from runspan.http.client import Response
from runspan.model.span import Span
from runspan.model.timestamps import SECOND
from runspan.otlp.env import Headers
from runspan.otlp.json import PROTOBUF_JSON_ERRORS
from runspan.otlp.protobuf_reader import all_spans, read_spans

LIST_SECONDS: Final = 60.0
"""How long all searches of one list may take together."""


class TempoReader:
    """A ``TraceReader`` over Tempo 2.8 or later.

    clock: nanoseconds since 1970.
    monotonic, sleep: seconds.
    """

    capabilities = Capabilities(foreign_spans=True, searches=SEARCHES)

    def __init__(
        self,
        config: RemoteConfig,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._http = RemoteClient(config)
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._searcher = WindowSearcher(self._http)
        self._hints: dict[object, WindowHint] = {}
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="tempo")

    def with_headers(self, headers: Headers) -> TempoReader:
        """See ``remote.tenants.HeaderReader``."""
        other = copy(self)
        other._http = self._http.with_headers(headers)
        other._searcher = WindowSearcher(other._http)
        other._hints = {}
        return other

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``TraceReader``. Retry an incomplete trace for about a second.

        The run of a trace is the one asked for, because its trace id is derived from its id and tenant.
        """
        trace_id = trace_id_of(run_id, tenant)
        damage = ""

        def fetch() -> list[Span]:
            nonlocal damage
            spans, damage = self._trace(trace_id)
            return spans

        try:
            verified = fetch_with_retry(fetch, self._sleep)
        except NotFound:
            hint = "it was never sent there, or is past retention"
            raise NotFound("not in this Tempo", where=f"run {run_id}", hint=hint) from None
        except TraceIncomplete as error:
            error.where = error.where or f"run {run_id}"
            error.hint = damage or error.hint
            raise
        return document_of(verified)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``TraceReader``."""
        spans, _ = self._existing_trace(trace_id)
        return spans

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """See ``TraceReader``."""
        spans, damage = self._existing_trace(trace_id_of(run_id, tenant))
        if damage == PARTIAL:
            got = ("which of its revisions is the newest cannot be known",)
            raise TraceIncomplete("spans of the run are missing", where=f"run {run_id}", missing=got, hint=PARTIAL)
        return spans

    def search(self, query: RunQuery) -> Page:
        """See ``TraceReader``. Raise BackendTimeout when the list takes longer than ``LIST_SECONDS``."""
        check_order(query, self._http.name)
        deadline = self._monotonic() + LIST_SECONDS

        def check_deadline() -> None:
            if self._monotonic() > deadline:
                raise BackendTimeout(
                    where=self._http.name,
                    expected=f"the list within {LIST_SECONDS:g} seconds",
                    got="a search that takes longer",
                    hint="ask for a later time, a workflow or a status",
                )

        verifier = CandidateVerifier(query, self.spans, self._pool)
        now = self._clock() // SECOND
        try:
            return RunSearch(query, self._searcher, verifier, self._hints, now, check_deadline).page()
        except UnicodeEncodeError:
            return Page([])  # no stored text contains a lone surrogate

    def run_stats(self, query: StatsQuery) -> StatsPage:
        """See ``TraceReader``. Raises QueryUnsupported."""
        raise stats_unsupported(self._http.name)

    def check(self) -> None:
        """See ``TraceReader``."""
        if not check_ready(self._http):
            self._http.get("/api/echo", timeout=CHECK_SECONDS)

    def close(self) -> None:
        """See ``TraceReader``."""
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _existing_trace(self, trace_id: bytes) -> tuple[list[Span], str]:
        """Return what ``_trace`` does. Raises NotFound only after retries."""
        for delay in (*MISSING_DELAYS, None):
            spans, damage = self._trace(trace_id)
            if spans:
                return spans, damage
            if delay is not None:
                self._sleep(delay)
        raise NotFound("not in this Tempo", where=f"trace {trace_id.hex()}")

    def _trace(self, trace_id: bytes) -> tuple[list[Span], str]:
        """Return the spans of a trace, none when it is unknown, and how Tempo damaged it, "" when it did not."""
        path = f"/api/v2/traces/{trace_id.hex()}"
        response = self._http.get(path, accept=PROTOBUF, accept_statuses=(404, 500))
        if response.status == 500:
            check_ready(self._http)
            response = self._http.get(path, accept=PROTOBUF, accept_statuses=(404,))
        try:
            fetch_json = partial(self._http.get, path)
            spans, damage = ([], "") if response.status == 404 else read_trace(response.content, fetch_json)
        except ValueError as error:
            raise BackendRefused(
                where=self._http.name, expected="a trace", got=str(error)[:200], hint="is this a Tempo?"
            ) from None
        if not spans:
            # The caller asks again, so that the last response without spans comes from a server that is ready.
            check_ready(self._http)
        for span in spans:
            if span.trace_id != trace_id:
                raise BackendRefused(
                    where=self._http.name,
                    expected=f"spans of trace {trace_id.hex()}",
                    got=f"one of trace {span.trace_id.hex()}",
                    hint="does a proxy or a cache in between return the responses of other requests?",
                )
        return spans, damage


PARTIAL: Final = "Tempo returns this trace in part: raise overrides.defaults.global.max_bytes_per_trace"
CUT: Final = "Tempo has cut attributes of this trace: set distributor.max_attribute_bytes to 0"

_FIELDS: Final = [
    FieldDescriptorProto(name="trace", number=1, type=FieldDescriptorProto.TYPE_BYTES),
    FieldDescriptorProto(name="status", number=3, type=FieldDescriptorProto.TYPE_INT32),
]
_FILE: Final = FileDescriptorProto(
    name="runspan/tempo.proto",
    package="runspan.tempo",
    syntax="proto3",
    message_type=[DescriptorProto(name="TraceByIDResponse", field=_FIELDS)],
)
_TraceResponse: Final = GetMessages([_FILE])["runspan.tempo.TraceByIDResponse"]
"""Tempo's message of that name, with the serialized trace."""
_STATUS_PARTIAL: Final = 1


class _TraceJson(msgspec.Struct):
    trace: msgspec.Raw = msgspec.Raw(b"{}")


def read_trace(body: bytes, fetch_json: Callable[[], Response]) -> tuple[list[Span], str]:
    """Return the spans of a ``TraceByIDResponse``, and ``PARTIAL`` or ``CUT`` when Tempo damaged the trace, else "".

    fetch_json: requests the same trace as JSON. An attribute cut inside a character makes the complete protobuf message
    unreadable; JSON has a replacement character there, and all other spans unchanged.

    Raise ValueError when the body is no trace.
    """
    try:
        response: Any = _TraceResponse.FromString(body)
    except DecodeError as error:
        raise ValueError(f"not a TraceByIDResponse: {error}") from None
    try:
        return read_spans(response.trace), PARTIAL if response.status == _STATUS_PARTIAL else ""
    except PayloadError:
        content = fetch_json().content
    try:
        text = bytes(msgspec.json.decode(content, type=_TraceJson).trace)
        return all_spans(json_format.Parse(text, TracesData(), ignore_unknown_fields=True)), CUT
    except PROTOBUF_JSON_ERRORS as error:
        raise ValueError(f"neither protobuf nor JSON can be read: {error}") from None
