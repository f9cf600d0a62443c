"""The columnar writer of OTLP spans for many runs at once, the hot path of the exporter; no I/O.

Reading and writing one member of all rows at once is what makes the exporter fast. The result is byte for byte that of
``encode`` and ``span_bytes``, which write the runs that do not fit the columns. The columns are joined to spans by the
C extension ``_column_loops`` if it was built, else by ``column_loops``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate, chain, repeat
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec import UNSET

from runspan.codec import fields
from runspan.codec.attributes import ROOT_TEMPLATES, STEP_TEMPLATES, SpanTemplate
from runspan.codec.encode import StepPartsBuilder, encode, set_error_status
from runspan.codec.placement import Interval, enclosing_loops, parents_first, positions
from runspan.codec.semconv import PIPELINE_RUN_ID, TASK_RUN_ID, Usage, add_counts, add_model, add_totals, read_usage
from runspan.model.document import Run, Step, summary_text, time_ns
from runspan.model.span import Pairs, run_digests, step_digest, summary_digest
from runspan.otlp.column_loops import Column
from runspan.otlp.protobuf_writer import (
    IN_SPAN,
    PARENT_ID,
    PLAIN_END,
    SPAN_ID,
    TRACE_ID,
    ScopedBytes,
    attribute_bytes,
    attributes_bytes,
    end_bytes,
    integer_bytes,
    scoped_bytes,
    shared_bytes,
    string_prefix,
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
_TOO_LONG: Final = bytes(fields.MAX_ATTRIBUTE_BYTES + 1)
_step_text = msgspec.json.Encoder().encode
_DIGEST_KEY, _SUMMARY_DIGEST_KEY, _MANIFEST_KEY, _TASK_RUN_KEY = (
    key.encode() for key in (fields.DIGEST, fields.SUMMARY_DIGEST, fields.MANIFEST, TASK_RUN_ID)
)


def write_runs(runs: Sequence[Run], *, tenant: str = "", observed_at: int | None = None) -> list[list[ScopedBytes]]:
    """Return the spans of each run as ``scoped_bytes`` writes them: steps first, the revision span last.

    Works best for some dozens of runs at a time. For ``tenant`` and ``observed_at`` see ``encode``.
    """
    candidates = [run for run in runs if run.plain and run.finished and run.envelope.steps]
    written = dict(zip(map(id, candidates), _write(candidates, tenant), strict=True)) if candidates else {}
    return [
        written.get(id(run)) or [scoped_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]
        for run in runs
    ]


def _write(runs: list[Run], tenant: str) -> list[list[ScopedBytes] | None]:
    """Return the spans of plain, finished runs with steps; None for a run that does not fit the columns."""
    envelopes = [run.envelope for run in runs]
    counts = [len(envelope.steps) for envelope in envelopes]  # type: ignore[arg-type]
    parts = [slice(last - count, last) for count, last in zip(counts, accumulate(counts), strict=True)]
    starts = nanoseconds([envelope.started_at for envelope in envelopes])
    ends = nanoseconds([envelope.completed_at for envelope in envelopes])
    run_ids = [envelope.id.encode() for envelope in envelopes]
    digests = run_digests(run_ids, tenant)
    trace_ids, root_ids = [digest[:16] for digest in digests], [digest[16:24] for digest in digests]
    excluded = {
        index
        for index, (start, end, trace_id, root_id) in enumerate(zip(starts, ends, trace_ids, root_ids, strict=True))
        if not 0 < start < end or root_id == _ZERO or trace_id == 2 * _ZERO
    }
    for index in excluded:
        starts[index] = ends[index] = 0
    templates = list(map(ROOT_TEMPLATES.__getitem__, map(fields.RUN_TABLE.get_labels, envelopes)))
    seeds = [
        int.from_bytes(digest[24:], "big") ^ template.salt ^ start
        for digest, template, start in zip(digests, templates, starts, strict=True)
    ]
    ids = [TRACE_ID + trace_id + SPAN_ID for trace_id in trace_ids]
    shared = [
        string_prefix(IN_SPAN, fields.RUN_ID, len(run_id))
        + run_id
        + string_prefix(IN_SPAN, PIPELINE_RUN_ID, len(run_id))
        + run_id
        + shared_bytes(template.identity)
        for run_id, template in zip(run_ids, templates, strict=True)
    ]

    def per_step(values: Iterable[Any]) -> list[Any]:
        """Return the value of each run, repeated for each of its steps."""
        return list(chain.from_iterable(map(repeat, values, counts)))

    parents = [PARENT_ID + root_id for root_id in root_ids]
    steps = _StepColumns([step for envelope in envelopes for step in envelope.steps], per_step(range(len(runs))))  # type: ignore[union-attr]
    steps.place(parts, starts, [time_ns(envelope.completed_at) for envelope in envelopes])
    steps.assign_ids(per_step(seeds), per_step(parents))
    spans = steps.write(per_step(ids), per_step(shared), starts, tenant)

    extra_attributes, span_ends = [b""] * len(runs), [PLAIN_END] * len(runs)
    special = {index for index, template in enumerate(templates) if template.special}
    excluded |= {index for index in special if templates[index].texts}
    for index in special | steps.usages.keys():
        own: Pairs = []
        add_totals(own, steps.usages.get(index, []))
        status = set_error_status(own, envelopes[index].error, templates[index], ends[index], True)
        extra_attributes[index] = attributes_bytes(own)
        span_ends[index] = end_bytes(status.events, (), status.code, status.message)
    columns: list[Column] = [
        ids,
        root_ids,
        (starts, ends),
        [template.wire or template_bytes(template) for template in templates],
        shared,
        (_DIGEST_KEY, [sha256(run.text).hexdigest().encode() for run in runs]),
        (
            _SUMMARY_DIGEST_KEY,
            [
                summary_digest(summary_text(envelope), tenant, fields.ROOT_REVISION, start).encode()
                for envelope, start in zip(envelopes, starts, strict=True)
            ],
        ),
        attribute_bytes(fields.TENANT, tenant) if tenant else b"",
        [integer_bytes(IN_SPAN, fields.STEP_COUNT, count) for count in counts],
        (_MANIFEST_KEY, [b"".join(steps.span_ids[part]).hex().encode() for part in parts]),
        *[member(envelopes) for member in _RUN_MEMBERS],
        extra_attributes,
        span_ends,
    ]
    revision_spans, invalid = join_span_columns(columns, len(runs), fields.MAX_ATTRIBUTE_BYTES, UNSET)
    excluded |= {*steps.excluded_runs, *invalid}

    written: list[list[ScopedBytes] | None] = []
    for index, part in enumerate(parts):
        below = zip(repeat(fields.SCOPE_STEP), spans[part], strict=False)
        written.append(None if index in excluded else [*below, (fields.SCOPE_RUN, revision_spans[index])])
    return written


@lru_cache(maxsize=256)
def _model_bytes(model: str) -> bytes:
    own: Pairs = []
    add_model(own, model)
    return attributes_bytes(own)


_ABSENT_TIMES: Final = attributes_bytes(
    [(field.key + fields.NON_CANONICAL, fields.ABSENT) for field in (fields.STEP_TABLE.start, fields.STEP_TABLE.end)]
)
"""The attributes of a skipped step's span, which has neither start nor end."""
_END_KEY: Final = fields.STEP_TABLE.end.key + fields.NON_CANONICAL
"""The key of the end time of a step without duration."""


def _member_column(field: fields.Field) -> Callable[[list[Any]], Column]:
    """Return a function that returns the column of a member for a list of runs or steps."""
    get, key = attrgetter(field.member), field.key.encode()
    if field.kind is fields.FieldKind.PAYLOAD:
        # The payloads stay ``Raw`` and are copied once, when the span is joined.
        return lambda rows: (key, list(map(get, rows)))
    if field.kind is fields.FieldKind.TEXT:
        return lambda rows: (key, list(map(_text, map(get, rows))))
    return lambda rows: (list(map(get, rows)), key)


def _text(value: Any) -> Any:
    """Return the bytes of a member of kind TEXT, or ``_TOO_LONG`` for a value that is not canonical."""
    if value is UNSET:
        return value
    return value.encode() if type(value) is str and 0 < len(value) <= fields.MAX_ATTRIBUTE_BYTES // 4 else _TOO_LONG


_STEP_MEMBERS: Final = [_member_column(field) for field in fields.STEP_TABLE.values]
_RUN_MEMBERS: Final = [_member_column(field) for field in fields.RUN_TABLE.values]


class _StepColumns:
    """The step spans of a batch of runs."""

    def __init__(self, steps: list[Step], runs: list[int]) -> None:
        self.steps = steps
        self.runs = runs
        """The index of each step's run."""
        self.texts = list(map(_step_text, steps))
        self.templates: list[SpanTemplate] = list(
            map(STEP_TEMPLATES.__getitem__, map(fields.STEP_TABLE.get_labels, steps))
        )
        self.excluded_runs: set[int] = set()
        """The indices of runs with open steps, equal steps or steps that do not fit the columns."""
        self.usages: dict[int, list[Usage]] = {}
        """The token usage of agent steps in order, by index of the run."""
        self.span_ids: list[bytes] = []
        self.parents: list[bytes] = []
        self.starts = nanoseconds([step.started_at for step in steps])
        self.ends = nanoseconds([step.completed_at for step in steps])
        self._positions: dict[int, int] = {}
        self._loops: dict[int, int] = {}

    def place(self, parts: Iterable[slice], firsts: Sequence[int], lasts: Sequence[int | None]) -> None:
        """Find the positions of steps without times and the loops around steps, as ``encode`` does.

        - ``parts``: the steps of each run.
        - ``firsts``, ``lasts``: the bounds of each run in nanoseconds since 1970.
        """
        starts, ends, runs = self.starts, self.ends, self.runs
        timeless = {run for run, start, end in zip(runs, starts, ends, strict=True) if start < 0 and end < 0}
        looping = {run for run, template in zip(runs, self.templates, strict=True) if template.is_loop}
        for run, part in enumerate(parts):
            if run in timeless or run in looping:
                steps, first = self.steps[part], part.start
                times = zip(steps, starts[part], ends[part], strict=True)
                intervals = [
                    Interval(
                        start if start >= 0 else time_ns(step.started_at),
                        end if end >= 0 else time_ns(step.completed_at),
                    )
                    for step, start, end in times
                ]
                found = positions(intervals, firsts[run], lasts[run])
                self._positions.update((first + index, position) for index, position in found.items())
                if run in looping:
                    loops = enclosing_loops(steps, intervals, found, [True] * len(steps))
                    self._loops.update((first + index, first + loop) for index, loop in loops.items())

    def assign_ids(self, seeds: list[int], parents: list[bytes]) -> None:
        """Assign the span ids as ``model.span.step_span_id`` does, and the parents."""
        for index, position in self._positions.items():
            seeds[index] ^= position
        self.span_ids = list(map(step_digest, self.texts, seeds))
        self.parents = parents
        for index in parents_first(self._loops):
            loop_id = self.span_ids[self._loops[index]]
            self.span_ids[index] = step_digest(self.texts[index], seeds[index] ^ int.from_bytes(loop_id, "big"))
            parents[index] = PARENT_ID + loop_id
        self.excluded_runs = {
            run for run, template in zip(self.runs, self.templates, strict=True) if not template.finished
        }
        if len(set(self.span_ids)) < len(self.span_ids) or _ZERO in self.span_ids:
            seen: set[tuple[int, bytes]] = set()
            for run, span_id in zip(self.runs, self.span_ids, strict=True):
                if (run, span_id) in seen or span_id == _ZERO:
                    self.excluded_runs.add(run)
                seen.add((run, span_id))

    def write(self, ids: list[bytes], shared: list[bytes], fallbacks: Sequence[int], tenant: str) -> list[bytes]:
        """Return the spans of all steps; those of ``excluded_runs`` are invalid.

        ``fallbacks``: the start of each run in nanoseconds since 1970.
        """
        steps, templates, starts, ends = self.steps, self.templates, self.starts, self.ends
        unusual = [
            index
            for index, (template, start, end) in enumerate(zip(templates, starts, ends, strict=True))
            if template.special or not 0 <= start < end
        ]
        extra_attributes, span_ends = [b""] * len(steps), [PLAIN_END] * len(steps)
        for index in unusual:
            step, template, run = steps[index], templates[index], self.runs[index]
            position = self._positions.get(index, fallbacks[run])
            if template.texts:
                self.excluded_runs.add(run)
            if template.special:
                if template.is_agent and template.error_type is None and 0 <= starts[index] < ends[index]:
                    usage = read_usage(step.output)
                    if usage is not None:
                        self.usages.setdefault(run, []).append(usage)
                        own: Pairs = []
                        add_counts(own, usage)
                        extra_attributes[index] = _model_bytes(usage.model) + attributes_bytes(own)
                    continue
            elif step.started_at is UNSET and step.completed_at is UNSET:
                starts[index], ends[index] = position, position + 1
                extra_attributes[index] = _ABSENT_TIMES
                continue
            elif 0 <= starts[index] == ends[index]:
                ends[index] += 1
                extra_attributes[index] = attribute_bytes(_END_KEY, f'"{step.completed_at}"')
                continue
            usages = self.usages.setdefault(run, []) if template.is_agent else []
            parts = StepPartsBuilder(tenant, usages=usages).build(step, template, position)
            if parts.content.texts:
                self.excluded_runs.add(run)
            starts[index], ends[index] = parts.start, parts.end
            extra_attributes[index] = attributes_bytes(parts.content.pairs)
            status = parts.status
            span_ends[index] = end_bytes(status.events, parts.links, status.code, status.message)
        columns: list[Column] = [
            ids,
            self.span_ids,
            self.parents,
            (starts, ends),
            [template.wire or template_bytes(template) for template in templates],
            shared,
            (_TASK_RUN_KEY, [span_id.hex().encode() for span_id in self.span_ids]),
            *[member(steps) for member in _STEP_MEMBERS],
            extra_attributes,
            span_ends,
        ]
        spans, invalid = join_span_columns(columns, len(steps), fields.MAX_ATTRIBUTE_BYTES, UNSET)
        self.excluded_runs |= {self.runs[index] for index in invalid}
        return spans
