"""The columnar writer of OTLP spans for many runs at once, the hot path of the exporter; no I/O.

Reading and writing one member of all rows at once is what makes the exporter fast. The result is byte for byte that of
``encode`` and ``span_bytes``, which write the runs that do not fit the columns. The columns are joined to spans by the
C extension ``_column_loops`` if it was built, else by ``column_loops``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from itertools import chain, repeat
from operator import attrgetter, eq, ge, le, lt, not_
from typing import Any, Final

import msgspec
from msgspec import UNSET

from runspan.codec.attributes import ROOT_TEMPLATES, STEP_TEMPLATES, SpanTemplate, encode_times
from runspan.codec.encode import StepPartsBuilder, encode, set_error_status
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    MAX_ATTRIBUTE_BYTES,
    NON_CANONICAL,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    STEP_TABLE,
    TENANT,
    Field,
    FieldKind,
)
from runspan.codec.semconv import PIPELINE_RUN_ID, Usage, add_counts, add_model, add_totals, read_usage
from runspan.model.document import Run, Step
from runspan.model.span import Pairs, run_digests, step_digest
from runspan.otlp.column_loops import Column, true_indices
from runspan.otlp.protobuf_writer import (
    IN_SPAN,
    KEY_PREFIXES,
    PARENT_ID,
    PLAIN_END,
    SPAN_ID,
    TRACE_ID,
    attribute_bytes,
    attributes_bytes,
    end_bytes,
    integer_bytes,
    shared_bytes,
    span_bytes,
    template_bytes,
)

try:
    from runspan.otlp._column_loops import join_span_columns, nanoseconds

    COMPILED = True
except ImportError:
    from runspan.otlp.column_loops import join_span_columns, nanoseconds

    COMPILED = False
"""Whether the C extension is used."""

_ZERO: Final = bytes(8)
_TOO_LONG: Final = bytes(MAX_ATTRIBUTE_BYTES + 1)
_step_text = msgspec.json.Encoder().encode
_RUN_ID_PREFIXES: Final = KEY_PREFIXES[RUN_ID]
_DIGEST_KEY, _MANIFEST_KEY, _PIPELINE_RUN_KEY = (key.encode() for key in (DIGEST, MANIFEST, PIPELINE_RUN_ID))


def write_runs(runs: Sequence[Run], *, tenant: str = "", observed_at: int | None = None) -> list[list[bytes]]:
    """Return the spans of each run as ``span_bytes`` writes them: steps first, the revision span last.

    Works best for some dozens of runs at a time. For ``tenant`` and ``observed_at`` see ``encode``.
    """
    candidates = [run for run in runs if run.plain and run.finished and run.envelope.steps]
    written = dict(zip(map(id, candidates), _write(candidates, tenant), strict=True)) if candidates else {}
    return [
        written.get(id(run)) or [span_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]
        for run in runs
    ]


def _write(runs: list[Run], tenant: str) -> list[list[bytes] | None]:
    """Return the spans of plain, finished runs with steps; None for a run that does not fit the columns."""
    envelopes = [run.envelope for run in runs]
    counts = [len(envelope.steps) for envelope in envelopes]  # type: ignore[arg-type]
    starts = nanoseconds([envelope.started_at for envelope in envelopes])
    ends = nanoseconds([envelope.completed_at for envelope in envelopes])
    excluded = {*true_indices(map(ge, starts, ends)), *true_indices(map(le, starts, repeat(0)))}
    run_ids = [envelope.id.encode() for envelope in envelopes]
    digests = run_digests(run_ids, tenant)
    trace_ids, root_ids = [digest[:16] for digest in digests], [digest[16:24] for digest in digests]
    excluded |= {*true_indices(map(eq, root_ids, repeat(_ZERO))), *true_indices(map(eq, trace_ids, repeat(2 * _ZERO)))}
    for index in excluded:
        starts[index] = ends[index] = 0
    templates = list(map(ROOT_TEMPLATES.__getitem__, map(RUN_TABLE.get_labels, envelopes)))
    seeds = [
        int.from_bytes(digest[24:], "big") ^ template.salt ^ start
        for digest, template, start in zip(digests, templates, starts, strict=True)
    ]
    ids = [TRACE_ID + trace_id + SPAN_ID for trace_id in trace_ids]
    shared = [
        _RUN_ID_PREFIXES[len(run_id)] + run_id + (template.identity.wire or shared_bytes(template.identity))
        for run_id, template in zip(run_ids, templates, strict=True)
    ]
    per_step = partial(_repeat_per_step, counts)
    parents = [PARENT_ID + root_id for root_id in root_ids]
    steps = _StepColumns([step for envelope in envelopes for step in envelope.steps], per_step(range(len(runs))))  # type: ignore[union-attr]
    steps.assign_ids(per_step(seeds))
    spans = steps.write(per_step(ids), per_step(parents), per_step(shared), starts, tenant)

    manifests = []
    first = 0
    for count in counts:
        manifests.append(b"".join(steps.span_ids[first : first + count]).hex().encode())
        first += count
    extra_attributes, span_ends = [b""] * len(runs), [PLAIN_END] * len(runs)
    for index in true_indices(map(attrgetter("special"), templates)):
        extra_attributes[index], span_ends[index] = _failed_run_parts(
            envelopes[index].error, templates[index], ends[index], steps.usages.pop(index, [])
        )
    for index, usages in steps.usages.items():
        extra_attributes[index] = _totals_bytes(usages)
    columns: list[Column] = [
        ids,
        root_ids,
        (starts, ends),
        [template.wire or template_bytes(template) for template in templates],
        shared,
        (_DIGEST_KEY, [sha256(run.text).hexdigest().encode() for run in runs]),
        attribute_bytes(TENANT, tenant) if tenant else b"",
        [integer_bytes(IN_SPAN, STEP_COUNT, count) for count in counts],
        (_MANIFEST_KEY, manifests),
        *[member(envelopes) for member in _RUN_MEMBERS],
        (_PIPELINE_RUN_KEY, run_ids),
        extra_attributes,
        span_ends,
    ]
    revision_spans, invalid = _join(columns, len(runs))
    excluded |= {*steps.excluded_runs, *invalid}

    written: list[list[bytes] | None] = []
    first = 0
    for index, count in enumerate(counts):
        written.append(None if index in excluded else [*spans[first : first + count], revision_spans[index]])
        first += count
    return written


def _repeat_per_step(counts: list[int], values: Iterable[Any]) -> list[Any]:
    """Return the value of each run, repeated for each of its steps."""
    return list(chain.from_iterable(map(repeat, values, counts)))


def _failed_run_parts(error: object, template: SpanTemplate, end: int, usages: list[Usage]) -> tuple[bytes, bytes]:
    """Return the additional attributes of a failed run's span, and everything after the attributes."""
    own: Pairs = []
    add_totals(own, usages)
    status = set_error_status(own, error, template, end, True)
    return attributes_bytes(own), end_bytes(status.events, (), status.code, status.message)


def _totals_bytes(usages: list[Usage]) -> bytes:
    own: Pairs = []
    add_totals(own, usages)
    return attributes_bytes(own)


def _usage_bytes(usage: Usage) -> bytes:
    own: Pairs = []
    add_counts(own, usage)
    return _model_bytes(usage.model) + attributes_bytes(own)


@lru_cache(maxsize=256)
def _model_bytes(model: str) -> bytes:
    own: Pairs = []
    add_model(own, model)
    return attributes_bytes(own)


def _absent_times_bytes() -> bytes:
    own: Pairs = []
    encode_times(own, STEP_TABLE, UNSET, UNSET, 1)
    return attributes_bytes(own)


_ABSENT_TIMES: Final = _absent_times_bytes()
"""The attributes of a skipped step's span, which has neither start nor end."""
_END_PREFIX: Final = KEY_PREFIXES[STEP_TABLE.end.key + NON_CANONICAL][len('"2024-01-15T09:00:01.200Z"')] + b'"'
"""The bytes before the end time in the attribute of a step without duration."""


def _member_column(field: Field) -> Callable[[list[Any]], Column]:
    """Return a function that returns the column of a member for a list of runs or steps."""
    get, key = attrgetter(field.member), field.key.encode()
    if field.kind is FieldKind.PAYLOAD:
        # The payloads stay ``Raw`` and are copied once, when the span is joined.
        return lambda rows: (key, list(map(get, rows)))
    if field.kind is FieldKind.TEXT:
        return lambda rows: (key, list(map(_text, map(get, rows))))
    return lambda rows: (list(map(get, rows)), key)


def _text(value: Any) -> Any:
    """Return the bytes of a member of kind TEXT, or ``_TOO_LONG`` for a value that is not canonical."""
    if value is UNSET:
        return value
    return value.encode() if type(value) is str and 0 < len(value) <= MAX_ATTRIBUTE_BYTES // 4 else _TOO_LONG


_STEP_MEMBERS: Final = [_member_column(field) for field in STEP_TABLE.values]
_RUN_MEMBERS: Final = [_member_column(field) for field in RUN_TABLE.values]


def _join(columns: list[Column], count: int) -> tuple[list[bytes], list[int]]:
    """Return ``count`` spans, and the indices of the invalid ones, with a value that does not fit one attribute."""
    return join_span_columns(columns, count, MAX_ATTRIBUTE_BYTES, UNSET)


class _StepColumns:
    """The step spans of a batch of runs."""

    def __init__(self, steps: list[Step], runs: list[int]) -> None:
        self.steps = steps
        self.runs = runs
        """The index of each step's run."""
        self.texts = list(map(_step_text, steps))
        self.templates: list[SpanTemplate] = list(map(STEP_TEMPLATES.__getitem__, map(STEP_TABLE.get_labels, steps)))
        self.excluded_runs: set[int] = set()
        """The indices of runs with open steps, equal steps or steps that do not fit the columns."""
        self.usages: dict[int, list[Usage]] = {}
        """The token usage of agent steps in order, by index of the run."""
        self.span_ids: list[bytes] = []

    def assign_ids(self, seeds: Iterable[int]) -> None:
        """Assign the span ids as ``model.span.step_span_id`` does."""
        self.span_ids = list(map(step_digest, self.texts, seeds))
        runs = self.runs
        open_steps = true_indices(map(not_, map(attrgetter("finished"), self.templates)))
        self.excluded_runs = {runs[index] for index in open_steps}
        if len(set(self.span_ids)) < len(self.span_ids) or _ZERO in self.span_ids:
            seen: set[tuple[int, bytes]] = set()
            for run, span_id in zip(runs, self.span_ids, strict=True):
                if (run, span_id) in seen or span_id == _ZERO:
                    self.excluded_runs.add(run)
                seen.add((run, span_id))

    def write(
        self,
        ids: list[bytes],
        parents: list[bytes],
        shared: list[bytes],
        fallbacks: Sequence[int],
        tenant: str,
    ) -> list[bytes]:
        """Return the spans of all steps; those of ``excluded_runs`` are invalid.

        ``fallbacks``: the start of each run in nanoseconds since 1970.
        """
        steps, templates = self.steps, self.templates
        starts = nanoseconds([step.started_at for step in steps])
        ends = nanoseconds([step.completed_at for step in steps])
        unusual = {
            *true_indices(map(attrgetter("special"), templates)),
            *true_indices(map(ge, starts, ends)),
            *true_indices(map(lt, starts, repeat(0))),
        }
        extra_attributes, span_ends = [b""] * len(steps), [PLAIN_END] * len(steps)
        for index in sorted(unusual):
            step, template, run = steps[index], templates[index], self.runs[index]
            if template.special:
                if template.is_agent and template.error_type is None and 0 <= starts[index] < ends[index]:
                    usage = read_usage(step.output)
                    if usage is not None:
                        self.usages.setdefault(run, []).append(usage)
                        extra_attributes[index] = _usage_bytes(usage)
                    continue
            elif step.started_at is UNSET and step.completed_at is UNSET:
                starts[index], ends[index] = fallbacks[run], fallbacks[run] + 1
                extra_attributes[index] = _ABSENT_TIMES
                continue
            elif 0 <= starts[index] == ends[index]:
                ends[index] += 1
                extra_attributes[index] = _END_PREFIX + step.completed_at.encode() + b'"'  # type: ignore[union-attr]
                continue
            usages = self.usages.setdefault(run, []) if template.is_agent else []
            parts = StepPartsBuilder(tenant, fallbacks[run], usages=usages).build(step, template)
            starts[index], ends[index] = parts.start, parts.end
            extra_attributes[index] = attributes_bytes(parts.own)
            status = parts.status
            span_ends[index] = end_bytes(status.events, parts.links, status.code, status.message)
        columns: list[Column] = [
            ids,
            self.span_ids,
            parents,
            (starts, ends),
            [template.wire or template_bytes(template) for template in templates],
            shared,
            *[member(steps) for member in _STEP_MEMBERS],
            extra_attributes,
            span_ends,
        ]
        spans, invalid = _join(columns, len(steps))
        self.excluded_runs |= {self.runs[index] for index in invalid}
        return spans
