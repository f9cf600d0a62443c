"""Many runs to OTLP bytes at once, column by column: the hot path of the exporter; no I/O.

What comes out is what ``encode`` and ``span_bytes`` make of the same runs, byte for byte; a run that is not as usual
goes that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from itertools import chain, repeat
from operator import attrgetter, eq, ge, le, lt, not_
from typing import Any, Final

import msgspec
from msgspec import UNSET

from runspan.codec.attributes import Pairs, SpanContent, encode_times
from runspan.codec.encode import StepPartsBuilder, encode, set_error_status
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    NON_CANONICAL,
    ROOT_REVISION,
    RUN_ID,
    RUN_TABLE,
    SCOPE_RUN,
    SCOPE_STEP,
    STEP_COUNT,
    STEP_TABLE,
    SUMMARY_DIGEST,
    TENANT,
)
from runspan.codec.placement import Interval, enclosing_loops, parents_first, positions
from runspan.codec.semconv import PIPELINE_RUN_ID, TASK_RUN_ID, Usage, add_counts, add_model, add_totals, read_usage
from runspan.codec.span_templates import ROOT_TEMPLATES, STEP_TEMPLATES, SpanTemplate
from runspan.model.document import Step, summary_text, time_ns
from runspan.model.ids import run_digests, step_digest, summary_digest
from runspan.model.run import Run
from runspan.otlp.bulk_columns import RUN_MEMBERS, STEP_MEMBERS, Column, join_columns, nanoseconds, true_indices
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
    ScopedBytes,
    scoped_bytes,
    template_bytes,
)

_ZERO: Final = bytes(8)
_step_text = msgspec.json.Encoder().encode
_IDENTITY: Final = KEY_PREFIXES[RUN_ID]
_PIPELINE_RUN: Final = KEY_PREFIXES[PIPELINE_RUN_ID]
_RUN_DIGEST, _RUN_SUMMARY, _STEPS, _TASK_RUN = (
    key.encode() for key in (DIGEST, SUMMARY_DIGEST, MANIFEST, TASK_RUN_ID)
)


def write_runs(runs: Sequence[Run], *, tenant: str = "", observed_at: int | None = None) -> list[list[ScopedBytes]]:
    """The spans of each run, as ``span_bytes`` writes them: steps first, the head last.

    Best for some dozens of runs at a time. tenant, observed_at: as for ``encode``.
    """
    usual = [run for run in runs if run.plain and run.finished and run.envelope.steps]
    written = dict(zip(map(id, usual), _write(usual, tenant), strict=True)) if usual else {}
    return [
        written.get(id(run)) or [scoped_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]
        for run in runs
    ]


def _write(runs: list[Run], tenant: str) -> list[list[ScopedBytes] | None]:
    """The spans of runs that are plain, finished, and have steps; None for one that is odd after all."""
    envelopes = [run.envelope for run in runs]
    counts = [len(envelope.steps) for envelope in envelopes]  # type: ignore[arg-type]
    starts = nanoseconds([envelope.started_at for envelope in envelopes])
    ends = nanoseconds([envelope.completed_at for envelope in envelopes])
    odd = {*true_indices(map(ge, starts, ends)), *true_indices(map(le, starts, repeat(0)))}
    identities = [envelope.id.encode() for envelope in envelopes]
    digests = run_digests(identities, tenant)
    traces, roots = [digest[:16] for digest in digests], [digest[16:24] for digest in digests]
    odd |= {*true_indices(map(eq, roots, repeat(_ZERO))), *true_indices(map(eq, traces, repeat(2 * _ZERO)))}
    for place in odd:
        starts[place] = ends[place] = 0
    labels = list(map(ROOT_TEMPLATES.__getitem__, map(RUN_TABLE.get_labels, envelopes)))
    seeds = [
        int.from_bytes(digest[24:], "big") ^ label.salt ^ start
        for digest, label, start in zip(digests, labels, starts, strict=True)
    ]
    ids = [TRACE_ID + trace + SPAN_ID for trace in traces]
    shared = [
        b"".join(
            (
                _IDENTITY[len(identity)],
                identity,
                _PIPELINE_RUN[len(identity)],
                identity,
                label.identity.wire or shared_bytes(label.identity),
            )
        )
        for identity, label in zip(identities, labels, strict=True)
    ]
    each = partial(_each, counts)
    parents = [PARENT_ID + root for root in roots]
    steps = _Steps([step for envelope in envelopes for step in envelope.steps], each(range(len(runs))))  # type: ignore[union-attr]
    steps.place(counts, starts, [time_ns(envelope.completed_at) for envelope in envelopes])
    steps.name(each(seeds), each(parents))
    spans = steps.write(each(ids), each(shared), starts, tenant)

    manifests = []
    place = 0
    for count in counts:
        manifests.append(b"".join(steps.span_ids[place : place + count]).hex().encode())
        place += count
    rests, closings = [b""] * len(runs), [PLAIN_END] * len(runs)
    for place in true_indices(map(attrgetter("special"), labels)):
        if labels[place].texts:
            odd.add(place)
        rests[place], closings[place] = _rest_of_failed(
            envelopes[place].error, labels[place], ends[place], steps.usages.pop(place, [])
        )
    for place, usages in steps.usages.items():
        rests[place] = _totals_bytes(usages)
    columns: list[Column] = [
        ids,
        roots,
        (starts, ends),
        [label.wire or template_bytes(label) for label in labels],
        shared,
        (_RUN_DIGEST, [sha256(run.text).hexdigest().encode() for run in runs]),
        (
            _RUN_SUMMARY,
            [
                summary_digest(summary_text(envelope), tenant, ROOT_REVISION, start).encode()
                for envelope, start in zip(envelopes, starts, strict=True)
            ],
        ),
        attribute_bytes(TENANT, tenant) if tenant else b"",
        [integer_bytes(IN_SPAN, STEP_COUNT, count) for count in counts],
        (_STEPS, manifests),
        *[member(envelopes) for member in RUN_MEMBERS],
        rests,
        closings,
    ]
    heads, unfit = join_columns(columns, len(runs))
    odd |= {*steps.odd_runs, *unfit}

    written: list[list[ScopedBytes] | None] = []
    place = 0
    for number, count in enumerate(counts):
        below = zip(repeat(SCOPE_STEP), spans[place : place + count])
        written.append(None if number in odd else [*below, (SCOPE_RUN, heads[number])])
        place += count
    return written


def _each(counts: list[int], values: Iterable[Any]) -> list[Any]:
    """The value of each run, once for each of its steps."""
    return list(chain.from_iterable(map(repeat, values, counts)))


def _rest_of_failed(error: object, label: SpanTemplate, end: int, usages: list[Usage]) -> tuple[bytes, bytes]:
    """A failed head's attributes after the usual ones, and what stands after all attributes."""
    own: Pairs = []
    add_totals(own, usages)
    fault = set_error_status(own, error, label, end, True)
    return attributes_bytes(own), end_bytes(fault.events, (), fault.code, fault.message)


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


def _no_times() -> bytes:
    """What stands on the span of a step that was skipped: it has neither start nor end."""
    content = SpanContent()
    encode_times(content, STEP_TABLE, UNSET, UNSET, 1)
    return attributes_bytes(content.pairs)


_NO_TIMES: Final = _no_times()
_NO_LENGTH: Final = KEY_PREFIXES[STEP_TABLE.end.key + NON_CANONICAL][len('"2024-01-15T09:00:01.200Z"')] + b'"'
"""What stands on the span of a step that ended when it began, before that time."""


class _Steps:
    """All steps of a batch. owners: the place of each step's run.

    odd_runs: places of runs with a step that has not ended, or with two steps of one id, or with a long one.
    usages: by place of the run, what its agent steps used, in their order.
    """

    def __init__(self, steps: list[Step], owners: list[int]) -> None:
        self.steps = steps
        self.owners = owners
        self.texts = list(map(_step_text, steps))
        self.labels: list[SpanTemplate] = list(map(STEP_TEMPLATES.__getitem__, map(STEP_TABLE.get_labels, steps)))
        self.odd_runs: set[int] = set()
        self.usages: dict[int, list[Usage]] = {}
        self.span_ids: list[bytes] = []
        self.parents: list[bytes] = []
        self.starts = nanoseconds([step.started_at for step in steps])
        self.ends = nanoseconds([step.completed_at for step in steps])
        self.positions: dict[int, int] = {}
        self.loops: dict[int, int] = {}

    def place(self, counts: Iterable[int], firsts: Sequence[int], lasts: Sequence[int | None]) -> None:
        """Find the positions of steps without times and the loops around steps, as ``codec.encode`` does.

        counts: the number of steps of each run. firsts, lasts: the bounds of each run.
        """
        timeless = [at for at in true_indices(map(lt, self.ends, repeat(0))) if self.starts[at] < 0]
        loops = true_indices(map(attrgetter("is_loop"), self.labels))
        wanted = {self.owners[at] for at in timeless} | (looping := {self.owners[at] for at in loops})
        begin = 0
        for owner, count in enumerate(counts):
            if owner in wanted:
                place = range(begin, begin + count)
                steps = [self.steps[at] for at in place]
                intervals = [
                    Interval(
                        self.starts[at] if self.starts[at] >= 0 else time_ns(step.started_at),
                        self.ends[at] if self.ends[at] >= 0 else time_ns(step.completed_at),
                    )
                    for at, step in zip(place, steps, strict=True)
                ]
                found = positions(intervals, firsts[owner], lasts[owner])
                self.positions.update({begin + at: position for at, position in found.items()})
                if owner in looping:
                    within = enclosing_loops(steps, intervals, found, [True] * count)
                    self.loops.update({begin + at: begin + loop for at, loop in within.items()})
            begin += count

    def name(self, seeds: list[int], parents: list[bytes]) -> None:
        """Gives the spans their ids, as ``model.ids.step_span_id`` does, and their parents."""
        for at, position in self.positions.items():
            seeds[at] ^= position
        self.span_ids = list(map(step_digest, self.texts, seeds))
        self.parents = parents
        for at in parents_first(len(self.steps), self.loops) if self.loops else ():
            loop = self.loops.get(at)
            if loop is not None:
                parent = self.span_ids[loop]
                self.span_ids[at] = step_digest(self.texts[at], seeds[at] ^ int.from_bytes(parent, "big"))
                parents[at] = PARENT_ID + parent
        owners = self.owners
        unfinished = true_indices(map(not_, map(attrgetter("finished"), self.labels)))
        self.odd_runs = {owners[place] for place in unfinished}
        if len(set(self.span_ids)) < len(self.span_ids) or _ZERO in self.span_ids:
            seen: set[tuple[int, bytes]] = set()
            for owner, span_id in zip(owners, self.span_ids, strict=True):
                if (owner, span_id) in seen or span_id == _ZERO:
                    self.odd_runs.add(owner)
                seen.add((owner, span_id))

    def write(self, ids: list[bytes], shared: list[bytes], fallbacks: Sequence[int], tenant: str) -> list[bytes]:
        """The spans of all steps; those of odd runs are of no use. fallbacks: the start of each run."""
        steps, labels, starts, ends = self.steps, self.labels, self.starts, self.ends
        unusual = {
            *true_indices(map(attrgetter("special"), labels)),
            *true_indices(map(ge, starts, ends)),
            *true_indices(map(lt, starts, repeat(0))),
        }
        rests, closings = [b""] * len(steps), [PLAIN_END] * len(steps)
        for place in sorted(unusual):
            step, label, owner = steps[place], labels[place], self.owners[place]
            position = self.positions.get(place, fallbacks[owner])
            if label.special:
                if label.is_agent and label.error_type is None and not label.texts and 0 <= starts[place] < ends[place]:
                    usage = read_usage(step.output)
                    if usage is not None:
                        self.usages.setdefault(owner, []).append(usage)
                        rests[place] = _usage_bytes(usage)
                    continue
                if label.texts:
                    self.odd_runs.add(owner)
            elif step.started_at is UNSET and step.completed_at is UNSET:
                starts[place], ends[place] = position, position + 1
                rests[place] = _NO_TIMES
                continue
            elif 0 <= starts[place] == ends[place]:
                ends[place] += 1
                rests[place] = _NO_LENGTH + step.completed_at.encode() + b'"'  # type: ignore[union-attr]
                continue
            usages = self.usages.setdefault(owner, []) if label.is_agent else []
            rest = StepPartsBuilder(tenant, usages=usages).build(step, label, position)
            if rest.content.texts:
                self.odd_runs.add(owner)
            starts[place], ends[place] = rest.start, rest.end
            rests[place] = attributes_bytes(rest.content.pairs)
            closings[place] = end_bytes(rest.status.events, rest.links, rest.status.code, rest.status.message)
        columns: list[Column] = [
            ids,
            self.span_ids,
            self.parents,
            (starts, ends),
            [label.wire or template_bytes(label) for label in labels],
            shared,
            (_TASK_RUN, [span_id.hex().encode() for span_id in self.span_ids]),
            *[member(steps) for member in STEP_MEMBERS],
            rests,
            closings,
        ]
        spans, unfit = join_columns(columns, len(steps))
        self.odd_runs |= {self.owners[place] for place in unfit}
        return spans
