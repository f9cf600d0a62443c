"""What a backend did to a run, by its spans as sent and as read, and which setting to change; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runspan.model.span import Span

DAY: Final = 86_400.0
TEMPO: Final = "tempo"
JAEGER: Final = "jaeger"

_PATH: Final = "is the endpoint the receiver of this very backend, and does a Collector between them sample or drop?"
_BLOCK_RETENTION: Final = (
    "backend_worker.compaction.block_retention: it counts from when a span ended, 336h by default, so older runs go "
    "within an hour"
)

_MAX_BYTES: Final = (
    "overrides.defaults.global.max_bytes_per_trace: what is over it, 5 MB by default, is dropped while the sender "
    "hears 200; 0 drops nothing"
)


@dataclass(frozen=True, slots=True)
class SpanDamage:
    """expected, missing: spans. cut, cut_at: attributes that came back shorter, and the bytes of the longest of them.

    changed: other attributes that came back with another value, or not at all. size: of the strings sent, in bytes.
    """

    expected: int
    missing: int = 0
    cut: int = 0
    cut_at: int = 0
    changed: int = 0
    size: int = 0

    def words(self) -> str:
        """In one line; empty when nothing is known."""
        parts = []
        if self.missing:
            parts.append(f"{self.missing} of {self.expected} spans are missing")
        if self.cut:
            parts.append(f"{self.cut} attributes are cut at {self.cut_at} bytes")
        if self.changed:
            parts.append(f"{self.changed} attributes are changed")
        return ", ".join(parts)


def span_damage(sent: Sequence[Span], found: Sequence[Span]) -> SpanDamage:
    """Compares spans by their ids. What was added on the way is no damage."""
    by_id: dict[bytes, list[Span]] = {}
    for span in found:
        by_id.setdefault(span.span_id, []).append(span)
    missing = cut = cut_at = changed = size = 0
    for span in sent:
        wanted = span.attributes()
        size += sum(len(value.encode()) for value in wanted.values() if isinstance(value, str))
        if span.span_id not in by_id:
            missing += 1
            continue
        got = by_id[span.span_id][-1].attributes()
        for key, value in wanted.items():
            there = got.get(key)
            if not isinstance(value, str) or there == value:
                continue
            # Where a character was cut in two, a replacement stands for its rest.
            kept = there.rstrip("\ufffd") if isinstance(there, str) else None
            if kept and value.startswith(kept):
                cut += 1
                cut_at = max(cut_at, len(kept.encode()))
            else:
                changed += 1
    return SpanDamage(len(sent), missing, cut, cut_at, changed, size)


def advice_on_damage(kind: str, found: SpanDamage) -> list[str]:
    """Which settings make a backend keep all of a run's spans."""
    lines = []
    if found.cut:
        lines.append(
            "distributor.max_attribute_bytes: 2048 by default, 0 cuts nothing"
            if kind == TEMPO
            else "something on the way cuts attributes: look for a limit on their length in the Collector"
        )
    if found.missing and kind == TEMPO:
        lines.append(_MAX_BYTES)
    elif found.missing:
        lines.append("the ttl of Jaeger's storage, and its limit on a span's size: spans expire one by one")
    return [*lines, _PATH] if found.missing or found.changed else lines


def advice_on_absence(kind: str, age: float) -> list[str]:
    """Which settings make a backend keep a trace at all. age: seconds since the run's end."""
    if kind == TEMPO:
        lines = [
            _MAX_BYTES,
            "overrides.defaults.ingestion.max_traces_per_user: traces over it, 10000 live ones by default, are dropped "
            "while the sender hears 200; 0 drops none",
        ]
        if age > DAY:
            lines.insert(0, _BLOCK_RETENTION)
        return [*lines, _PATH]
    if kind == JAEGER:
        return [
            "max_traces of the memory storage: the trace that arrived first leaves first; ttl.spans of Badger",
            "multi_tenancy: what comes over OTLP cannot be read back under any tenant",
            _PATH,
        ]
    return [_PATH]


def advice_on_search(kind: str, age: float) -> list[str]:
    """Which settings make a run that can be read by its id show up in lists too."""
    if kind == TEMPO:
        if age < 0:
            return ["the run lies in the future, by the clock of this machine: searches end at Tempo's present"]
        lines = ["query_frontend.query_end_cutoff: 30s by default, and what is newer is not searched; 0s"]
        if age > 2 * 60:
            lines.insert(
                0,
                "live_store.wal.ingestion_time_range_slack: 2m by default, and older runs cannot be searched; as long "
                "as runs may be old, such as 2400h (the key of this name under storage.trace.wal does nothing)",
            )
        if age > 14 * DAY:
            lines.append(_BLOCK_RETENTION)
        return [*lines, "storage.trace.blocklist_poll: 5m by default, and so long a flushed run may take to show"]
    if kind == JAEGER:
        return [
            "the service name: lists look for runs under the one that they were sent with",
            "max_traces of the memory storage, and max_span_age of Elasticsearch, 72h by default",
        ]
    return []
