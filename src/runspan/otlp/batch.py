"""Many runs to OTLP bytes at once, column by column: the hot path of the exporter; no I/O.

What comes out is what ``encode`` and ``span_bytes`` make of the same runs, byte for byte; a run that is not as usual
goes that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain, repeat
from operator import add, attrgetter, eq, ge, gt, itemgetter, le, lt, methodcaller, not_
from typing import Any, Final

import msgspec
from msgspec import UNSET

from runspan.carry import Pairs, put_times
from runspan.document import Envelope, Step
from runspan.encode import RestOfSteps, encode, put_fault
from runspan.fields import DIGEST, MANIFEST, PIECE_BYTES, RUN_ID, RUN_TABLE, STEP_COUNT, STEP_TABLE, TENANT
from runspan.ids import run_digests
from runspan.labels import ROOT_LABELS, STEP_LABELS, Label
from runspan.otlp.columns import (
    RUN_COLUMNS,
    STEP_COLUMNS,
    TextColumn,
    joined_spans,
    member_columns,
    nanoseconds,
    where_true,
)
from runspan.otlp.wire import (
    END_TAG,
    IN_SPAN,
    PARENT_ID,
    PLAIN_END,
    SPAN_ID,
    START_TAG,
    TRACE_ID,
    attribute_bytes,
    end_bytes,
    integer_bytes,
    label_bytes,
    shared_bytes,
    span_bytes,
    times_bytes,
)
from runspan.projection import PIPELINE_RUN_ID, put_totals
from runspan.run import Run

_ZERO: Final = bytes(8)
_step_text = msgspec.json.Encoder().encode
_IDENTITY, _RUN_DIGEST, _STEPS, _PIPELINE_RUN = map(TextColumn, (RUN_ID, DIGEST, MANIFEST, PIPELINE_RUN_ID))


def write_runs(runs: Sequence[Run], *, tenant: str = "", observed_at: int | None = None) -> list[list[bytes]]:
    """The spans of each run, as ``span_bytes`` writes them: steps first, the head last.

    Best for some dozens of runs at a time. tenant, observed_at: as for ``encode``.
    """
    usual = [run for run in runs if run.plain and run.finished and run.envelope.steps]
    written = dict(zip(map(id, usual), _write(usual, tenant), strict=True)) if usual else {}
    return [
        written.get(id(run)) or [span_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]
        for run in runs
    ]


def _write(runs: list[Run], tenant: str) -> list[list[bytes] | None]:
    """The spans of runs that are plain, finished, and have steps; None for one that is odd after all."""
    envelopes = [run.envelope for run in runs]
    counts = [len(envelope.steps) for envelope in envelopes]  # type: ignore[arg-type]
    starts = nanoseconds([envelope.started_at for envelope in envelopes])
    ends = nanoseconds([envelope.completed_at for envelope in envelopes])
    odd = {*where_true(map(ge, starts, ends)), *where_true(map(le, starts, repeat(0)))}
    identities = [envelope.id.encode() for envelope in envelopes]
    digests = run_digests(identities, tenant)
    traces, roots = [digest[:16] for digest in digests], [digest[16:24] for digest in digests]
    odd |= {*where_true(map(eq, roots, repeat(_ZERO))), *where_true(map(eq, traces, repeat(2 * _ZERO)))}
    for place in odd:
        starts[place] = ends[place] = 0
    labels = list(map(ROOT_LABELS.__getitem__, map(RUN_TABLE.get_labels, envelopes)))
    seeds = [
        (int.from_bytes(digest[24:], "big") ^ label.salt ^ start).to_bytes(8, "big")
        for digest, label, start in zip(digests, labels, starts, strict=True)
    ]
    ids = [TRACE_ID + trace + SPAN_ID for trace in traces]
    shared = [
        before + identity + (label.identity.wire or shared_bytes(label.identity))
        for before, identity, label in zip(*_IDENTITY.write(identities), labels, strict=True)
    ]
    each = partial(_each, counts)
    parents = [PARENT_ID + root for root in roots]
    steps = _Steps([step for envelope in envelopes for step in envelope.steps], list(each(range(len(runs)))))  # type: ignore[union-attr]
    steps.name(each(seeds))
    spans = steps.write(each(ids), each(parents), each(shared), starts, tenant)
    odd |= steps.odd_runs

    manifests = []
    place = 0
    for count in counts:
        manifests.append(b"".join(steps.span_ids[place : place + count]).hex().encode())
        place += count
    columns: list[Iterable[bytes]] = [
        ids,
        roots,
        map(times_bytes, repeat(START_TAG), starts, repeat(END_TAG), ends),
        [label.wire or label_bytes(label) for label in labels],
        shared,
        *_RUN_DIGEST.write([sha256(run.text).hexdigest().encode() for run in runs]),
        repeat(attribute_bytes(TENANT, tenant) if tenant else b""),
        map(integer_bytes, repeat(IN_SPAN), repeat(STEP_COUNT), counts),
        *_STEPS.write(manifests),
    ]
    odd |= set(where_true(map(gt, map(len, manifests), repeat(PIECE_BYTES))))
    for long, cells in member_columns(RUN_COLUMNS, envelopes):
        odd.update(long)
        columns += cells
    columns += _PIPELINE_RUN.write(identities)
    rests, closings = [b""] * len(runs), [PLAIN_END] * len(runs)
    for place in {*steps.rests, *where_true(map(attrgetter("special"), labels))} - odd:
        rests[place], closings[place] = _rest_of_head(
            envelopes[place], labels[place], ends[place], steps.rests.get(place)
        )
    heads = joined_spans([*columns, rests, closings])

    written: list[list[bytes] | None] = []
    place = 0
    for number, count in enumerate(counts):
        written.append(None if number in odd else [*spans[place : place + count], heads[number]])
        place += count
    return written


def _each(counts: list[int], values: Iterable[Any]) -> Iterator[Any]:
    """The value of each run, once for each of its steps."""
    return chain.from_iterable(map(repeat, values, counts))


def _rest_of_head(envelope: Envelope, label: Label, end: int, steps: RestOfSteps | None) -> tuple[bytes, bytes]:
    """A head's attributes after the usual ones, and what stands after all attributes."""
    own: Pairs = []
    put_totals(own, steps.usages if steps is not None else [])
    fault = put_fault(own, envelope.error, label, end, True)
    rest = b"".join([attribute_bytes(key, value) for key, value in own])
    return rest, end_bytes(fault.events, (), fault.status, fault.message)


def _no_times() -> bytes:
    """What stands on the span of a step that was skipped: it has neither start nor end."""
    own: Pairs = []
    put_times(own, STEP_TABLE, UNSET, UNSET, 1)
    return b"".join([attribute_bytes(key, value) for key, value in own])


_NO_TIMES: Final = _no_times()


class _Steps:
    """All steps of a batch. owners: the place of each step's run.

    odd_runs: places of runs with a step that has not ended, or with two steps of one id, or with a long one.
    rests: by place of the run, what worked out the rest of its unusual steps.
    """

    def __init__(self, steps: list[Step], owners: list[int]) -> None:
        self.steps = steps
        self.owners = owners
        self.texts = list(map(_step_text, steps))
        self.labels: list[Label] = list(map(STEP_LABELS.__getitem__, map(STEP_TABLE.get_labels, steps)))
        self.odd_runs: set[int] = set()
        self.rests: dict[int, RestOfSteps] = {}
        self.span_ids: list[bytes] = []

    def name(self, seeds: Iterable[bytes]) -> None:
        """Gives the spans their ids, as ``ids.step_span_id`` does."""
        digests = map(methodcaller("digest"), map(sha256, map(add, seeds, self.texts)))
        self.span_ids = list(map(itemgetter(slice(0, 8)), digests))
        owners = self.owners
        unfinished = where_true(map(not_, map(attrgetter("finished"), self.labels)))
        self.odd_runs = {owners[place] for place in unfinished}
        if len(set(self.span_ids)) < len(self.span_ids) or _ZERO in self.span_ids:
            seen: set[tuple[int, bytes]] = set()
            for owner, span_id in zip(owners, self.span_ids, strict=True):
                if (owner, span_id) in seen or span_id == _ZERO:
                    self.odd_runs.add(owner)
                seen.add((owner, span_id))

    def write(
        self,
        ids: Iterable[bytes],
        parents: Iterable[bytes],
        shared: Iterable[bytes],
        fallbacks: Sequence[int],
        tenant: str,
    ) -> list[bytes]:
        """The spans of all steps; those of odd runs are of no use. fallbacks: the start of each run."""
        steps, labels = self.steps, self.labels
        starts = nanoseconds([step.started_at for step in steps])
        ends = nanoseconds([step.completed_at for step in steps])
        unusual = {
            *where_true(map(attrgetter("special"), labels)),
            *where_true(map(ge, starts, ends)),
            *where_true(map(lt, starts, repeat(0))),
        }
        rests, closings = [b""] * len(steps), [PLAIN_END] * len(steps)
        for place in sorted(unusual):
            owner = self.owners[place]
            if steps[place].started_at is UNSET and steps[place].completed_at is UNSET and not labels[place].special:
                starts[place], ends[place] = fallbacks[owner], fallbacks[owner] + 1
                rests[place] = _NO_TIMES
                continue
            of_run = self.rests.get(owner)
            if of_run is None:
                of_run = self.rests[owner] = RestOfSteps(tenant, fallbacks[owner])
            own, starts[place], ends[place], fault, links = of_run.of(steps[place], labels[place])
            if own:
                rests[place] = b"".join([attribute_bytes(key, value) for key, value in own])
            closings[place] = end_bytes(fault.events, links, fault.status, fault.message)
        columns: list[Iterable[bytes]] = [
            ids,
            self.span_ids,
            parents,
            map(times_bytes, repeat(START_TAG), starts, repeat(END_TAG), ends),
            [label.wire or label_bytes(label) for label in labels],
            shared,
        ]
        for long, cells in member_columns(STEP_COLUMNS, steps):
            self.odd_runs |= {self.owners[place] for place in long}
            columns += cells
        return joined_spans([*columns, rests, closings])
