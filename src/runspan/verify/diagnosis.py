"""What a backend did to a run, by its spans as sent and as read, and which of its settings to change; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runspan.codec.fields import TEXT_KEY, TEXT_NUMBER
from runspan.model.span import Span, Value, to_plain

DAY: Final = 86_400.0
TEMPO: Final = "tempo"
JAEGER: Final = "jaeger"

_PATH: Final = "is the endpoint the receiver of this very backend, and does a Collector between them sample or drop?"
_BLOCK_RETENTION: Final = (
    "backend_worker.compaction.block_retention: counted from the end of a span, 336h by default, so older runs are "
    "deleted within an hour"
)
MAX_NESTED_OBJECTS: Final = 10_000
"""Of a document, by default, in Elasticsearch and OpenSearch: Jaeger stores each attribute of a span as one."""
_NESTED_OBJECTS: Final = (
    "index.mapping.nested_objects.limit of Elasticsearch or OpenSearch, 10000 by default: a span with more attributes "
    "is dropped although the sender gets status 200"
)
MAX_DOC_COUNT: Final = 10_000
"""Spans that Jaeger reads of a trace at once, by default, in Elasticsearch and OpenSearch."""
_DOC_COUNT: Final = (
    "max_doc_count of Elasticsearch and OpenSearch: of a trace with more spans, 10000 by default, some that start at "
    "the same time are left out; set it, and index.max_result_window of the indices, to more than the largest run has"
)
_ALIASES: Final = (
    "rollover aliases of Elasticsearch and OpenSearch: without jaeger-es-rollover init before the first span, nothing "
    "that is written can be read"
)
_SPAN_AGE: Final = (
    "max_span_age of Elasticsearch and OpenSearch: a trace is read by its id from the days of this age only, 72h by "
    "default; as long as runs are kept"
)
_LOOKBACK: Final = (
    "RUNSPAN_BACKEND_LOOKBACK_DAYS: lists over Elasticsearch and OpenSearch reach from tomorrow back to then"
)
_MAX_BYTES: Final = (
    "overrides.defaults.global.max_bytes_per_trace: what exceeds it, 5 MB by default, is dropped although the sender "
    "gets status 200; 0: no limit"
)


@dataclass(frozen=True, slots=True)
class SpanDamage:
    """The difference between the spans that were sent and those that were read."""

    expected: int
    """Spans that were sent."""
    missing: int = 0
    cut: int = 0
    """Attributes that came back shorter."""
    cut_at: int = 0
    """The bytes of the longest of them."""
    changed: int = 0
    """Attributes that came back with another value, or not at all."""
    nested_objects: int = 0
    """What the largest missing span has; see ``count_nested_objects``."""

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{self.missing} of {self.expected} spans are missing")
        if self.cut:
            parts.append(f"{self.cut} attributes are cut at {self.cut_at} bytes")
        if self.changed:
            parts.append(f"{self.changed} attributes are changed")
        return ", ".join(parts)


def _values(span: Span) -> dict[tuple[object, ...], Value]:
    """Return the attributes of a span, and those of the events that hold its long texts: each piece by its place."""
    values: dict[tuple[object, ...], Value] = {(key,): value for key, value in span.attributes().items()}
    for event in span.events:
        attributes = {key: to_plain(value) for key, value in event.attributes}
        if TEXT_KEY in attributes:
            place = attributes[TEXT_KEY], attributes.get(TEXT_NUMBER)
            values |= {(*place, key): value for key, value in attributes.items()}
    return values


def span_damage(sent: Sequence[Span], found: Sequence[Span]) -> SpanDamage:
    """Compare spans by their ids. Additional spans and attributes are no damage."""
    by_id = {span.span_id: span for span in found}
    missing = cut = cut_at = changed = nested_objects = 0
    for span in sent:
        if span.span_id not in by_id:
            missing += 1
            nested_objects = max(nested_objects, count_nested_objects(span))
            continue
        values = _values(by_id[span.span_id])
        for key, value in _values(span).items():
            got = values.get(key)
            if not isinstance(value, str) or got == value:
                continue
            # A character that was cut in two ends in a replacement character.
            kept = got.rstrip("\ufffd") if isinstance(got, str) else ""
            if kept and value.startswith(kept):
                cut += 1
                cut_at = max(cut_at, len(kept.encode()))
            else:
                changed += 1
    return SpanDamage(len(sent), missing, cut, cut_at, changed, nested_objects)


def count_nested_objects(span: Span) -> int:
    """Return how many nested objects Jaeger makes of a span in Elasticsearch and OpenSearch, but for a few.

    These are its attributes, its events with their names and attributes, and its links.
    """
    return len(span.attributes()) + sum(2 + len(event.attributes) for event in span.events) + len(span.links)


def advice_on_damage(kind: str, damage: SpanDamage) -> tuple[str, ...]:
    """Return which settings let a backend keep all spans of a run unchanged."""
    lines = []
    if damage.cut and kind == TEMPO:
        lines.append("distributor.max_attribute_bytes: 2048 by default; 0: no limit")
    elif damage.cut:
        lines.append("attributes are cut on the way: look for a limit on their length in the Collector")
    if damage.missing and kind == TEMPO:
        lines.append(_MAX_BYTES)
    elif damage.missing and damage.nested_objects > MAX_NESTED_OBJECTS:
        lines.append(_NESTED_OBJECTS)
    elif damage.missing and damage.expected > MAX_DOC_COUNT:
        lines.append(_DOC_COUNT)
    elif damage.missing:
        lines.append("the ttl of Jaeger's storage, and its limit on a span's size: spans expire one by one")
    if damage.missing or damage.changed:
        lines.append(_PATH)
    return tuple(lines)


def advice_on_absence(kind: str, age: float, nested_objects: int = 0) -> tuple[str, ...]:
    """Return which settings let a backend keep a trace at all.

    age: Seconds since the run's end. nested_objects: Of its largest span; see ``count_nested_objects``.
    """
    lines: list[str] = []
    if kind == TEMPO:
        if age > DAY:
            lines.append(_BLOCK_RETENTION)
        lines += [
            _MAX_BYTES,
            "overrides.defaults.ingestion.max_traces_per_user: traces that exceed it, 10000 live ones by default, are "
            "dropped although the sender gets status 200; 0: no limit",
        ]
    elif kind == JAEGER:
        if nested_objects > MAX_NESTED_OBJECTS:
            lines.append(_NESTED_OBJECTS)
        lines += [
            "max_traces of the memory storage: the oldest trace is removed first; ttl.spans of Badger",
            *([_SPAN_AGE] if age > DAY else []),
            _ALIASES,
            "multi_tenancy: what is received over OTLP cannot be read by any tenant",
        ]
    return (*lines, _PATH)


def advice_on_unreadable_trace(kind: str) -> tuple[str, ...]:
    """Return which settings let a backend find the trace of a run by its id, if the run comes back the same without."""
    return (_SPAN_AGE,) if kind == JAEGER else ()


def advice_on_search(kind: str, age: float) -> tuple[str, ...]:
    """Return which settings let lists contain a run that can be read by its id. age: Seconds since the run's end."""
    if kind == JAEGER:
        return (
            "the service name: lists look for runs under the one that they were sent with",
            "max_traces of the memory storage",
            *([_LOOKBACK] if abs(age) > DAY else []),
        )
    if kind != TEMPO:
        return ()
    if age < 0:
        return ("the run lies in the future, by the clock of this machine: searches end at Tempo's present",)
    lines = []
    if age > 2 * 60:
        lines.append(
            "live_store.wal.ingestion_time_range_slack: 2m by default, and older runs cannot be searched; as long as "
            "runs may be old, such as 2400h (the key of this name under storage.trace.wal has no effect)"
        )
    lines.append("query_frontend.query_end_cutoff: 30s by default, and newer runs are not searched; 0s")
    if age > 14 * DAY:
        lines.append(_BLOCK_RETENTION)
    return (*lines, "storage.trace.blocklist_poll: 5m by default, until a flushed run is found")
