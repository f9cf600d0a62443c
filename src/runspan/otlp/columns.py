"""Many runs to OTLP bytes at once, column by column: the hot path of the exporter; no I/O.

One run after the other costs interpreter's steps for every member of every span. Here each line does one thing for all
steps of a batch, and the loops run inside ``map``, ``zip`` and ``join``. What comes out is what ``encode`` and
``span_bytes`` make of the same runs, byte for byte; a run that is not as usual goes that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain, compress, repeat
from operator import add, attrgetter, eq, ge, gt, is_not, itemgetter, le, lt, methodcaller, not_
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from runspan.carry import Pairs, put_value
from runspan.document import Envelope, Step
from runspan.encode import RestOfSteps, encode, put_fault
from runspan.fields import (
    DIGEST,
    MANIFEST,
    PIECE_BYTES,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    STEP_TABLE,
    TENANT,
    Field,
    Kind,
)
from runspan.ids import run_digests
from runspan.labels import ROOT_LABELS, STEP_LABELS, Label
from runspan.otlp.wire import (
    END_TAG,
    IN_SPAN,
    PARENT_ID,
    PLAIN_END,
    SPAN_ID,
    SPANS,
    START_TAG,
    TRACE_ID,
    Heads,
    attribute_bytes,
    end_bytes,
    integer_bytes,
    label_bytes,
    shared_bytes,
    span_bytes,
    times_bytes,
    varint,
)
from runspan.projection import PIPELINE_RUN_ID, put_totals
from runspan.run import Run
from runspan.times import FRACTIONS, MINUTES, SECONDS

_BAD: Final = -(1 << 70)
"""Nanoseconds of a text that is no canonical timestamp: so low that every sum with it is negative."""
_MEMO: Final = 10_000
_ZERO: Final = bytes(8)
_step_text = msgspec.json.Encoder().encode


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


# Columns of one kind.


class _MinutesOrBad(dict[str, int]):
    """``times.MINUTES`` for a column: ``_BAD`` instead of an error."""

    def __missing__(self, prefix: str) -> int:
        try:
            ns = MINUTES[prefix]
        except KeyError:
            return _BAD
        if len(self) >= _MEMO:
            self.clear()
        self[prefix] = ns
        return ns


_MINUTES: Final = _MinutesOrBad()
_TO_MINUTE, _TO_SECOND, _TO_END = itemgetter(slice(0, 17)), itemgetter(slice(17, 19)), itemgetter(slice(19, None))


def _nanoseconds(values: Iterable[object]) -> list[int]:
    """Canonical timestamps in nanoseconds; anything negative for other values."""
    texts = [value if type(value) is str else "" for value in values]
    minutes = map(_MINUTES.__getitem__, map(_TO_MINUTE, texts))
    seconds = map(SECONDS.get, map(_TO_SECOND, texts), repeat(_BAD))
    fractions = map(FRACTIONS.get, map(_TO_END, texts), repeat(_BAD))
    return list(map(add, map(add, minutes, seconds), fractions))


def _where(flags: Iterable[object]) -> Iterator[int]:
    """The places of what is true."""
    return compress(range(1 << 62), flags)


class _TextColumn:
    """A string attribute: for each text what stands before it, and the text; nothing for an empty one."""

    def __init__(self, key: str) -> None:
        self.heads = Heads(key)
        self.heads[0] = b""

    def write(self, texts: list[bytes]) -> tuple[Iterable[bytes], ...]:
        return map(self.heads.__getitem__, map(len, texts)), texts


class _PayloadColumn(_TextColumn):
    """A member of kind PAYLOAD."""

    def read(self, values: list[Any]) -> list[bytes]:
        return list(map(bytes, values))


class _StringColumn(_TextColumn):
    """A member of kind TEXT. What does not fit makes the text too long, which the caller looks for."""

    def read(self, values: list[Any]) -> list[bytes]:
        return [
            value.encode() if type(value) is str and 0 < len(value) <= PIECE_BYTES // 4 else _TOO_LONG
            for value in values
        ]


class _IntegerColumn:
    """A member of kind INTEGER."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def read(self, values: list[Any]) -> list[bytes]:
        return list(map(bytes, values))

    def write(self, texts: list[bytes]) -> tuple[Iterable[bytes], ...]:
        return (map(self._bytes, texts),)

    def _bytes(self, text: bytes) -> bytes:
        if len(text) < 9 and text.isdigit() and (text[0] != 0x30 or len(text) == 1):
            return integer_bytes(IN_SPAN, self.field.key, int(text))
        pairs: Pairs = []
        put_value(pairs, self.field, Raw(text))
        return b"".join([attribute_bytes(key, value) for key, value in pairs])


_TOO_LONG: Final = bytes(PIECE_BYTES + 1)
_Column = _PayloadColumn | _StringColumn | _IntegerColumn


def _column(field: Field) -> tuple[Callable[[Any], Any], _Column]:
    kinds: dict[Kind, _Column] = {
        Kind.PAYLOAD: _PayloadColumn(field.key),
        Kind.TEXT: _StringColumn(field.key),
        Kind.INTEGER: _IntegerColumn(field),
    }
    return attrgetter(field.member), kinds[field.kind]


_STEP_COLUMNS: Final = [_column(field) for field in STEP_TABLE.values]
_RUN_COLUMNS: Final = [_column(field) for field in RUN_TABLE.values]
_IDENTITY, _RUN_DIGEST, _STEPS, _PIPELINE_RUN = map(_TextColumn, (RUN_ID, DIGEST, MANIFEST, PIPELINE_RUN_ID))


def _members(
    columns: Iterable[tuple[Callable[[Any], Any], _Column]], rows: list[Any]
) -> Iterator[tuple[list[int], tuple[Iterable[bytes], ...]]]:
    """The members of all rows, column by column: the places of those too long for one attribute, and the bytes."""
    for get, column in columns:
        values = list(map(get, rows))
        places = list(_where(map(is_not, values, repeat(UNSET))))
        if not places:
            continue
        texts = column.read(values if len(places) == len(rows) else [values[place] for place in places])
        long = [places[number] for number in _where(map(gt, map(len, texts), repeat(PIECE_BYTES)))]
        cells = column.write(texts)
        if len(places) < len(rows):
            filled = [b""] * len(rows)
            for place, cell in zip(places, map(b"".join, zip(*cells, strict=True)), strict=True):
                filled[place] = cell
            cells = (filled,)
        yield long, cells


def _spans(columns: list[Iterable[bytes]]) -> list[bytes]:
    """The rows of the columns joined, each with the tag and the length of a span."""
    contents = list(map(b"".join, zip(*columns, strict=False)))
    return list(map(add, map(_SPAN_HEADS.__getitem__, map(len, contents)), contents))


class _SpanHeads(dict[int, bytes]):
    """Tag and length of a span by its length."""

    def __missing__(self, length: int) -> bytes:
        head = SPANS + varint(length)
        if length < _REMEMBERED_LENGTHS:
            self[length] = head
        return head


_REMEMBERED_LENGTHS: Final = 16384
_SPAN_HEADS: Final = _SpanHeads()


# Runs.


def _write(runs: list[Run], tenant: str) -> list[list[bytes] | None]:
    """The spans of runs that are plain, finished, and have steps; None for one that is odd after all."""
    envelopes = [run.envelope for run in runs]
    counts = [len(envelope.steps) for envelope in envelopes]  # type: ignore[arg-type]
    starts = _nanoseconds([envelope.started_at for envelope in envelopes])
    ends = _nanoseconds([envelope.completed_at for envelope in envelopes])
    odd = {*_where(map(ge, starts, ends)), *_where(map(le, starts, repeat(0)))}
    identities = [envelope.id.encode() for envelope in envelopes]
    digests = run_digests(identities, tenant)
    traces, roots = [digest[:16] for digest in digests], [digest[16:24] for digest in digests]
    odd |= {*_where(map(eq, roots, repeat(_ZERO))), *_where(map(eq, traces, repeat(2 * _ZERO)))}
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
    odd |= set(_where(map(gt, map(len, manifests), repeat(PIECE_BYTES))))
    for long, cells in _members(_RUN_COLUMNS, envelopes):
        odd.update(long)
        columns += cells
    columns += _PIPELINE_RUN.write(identities)
    rests, closings = [b""] * len(runs), [PLAIN_END] * len(runs)
    for place in {*steps.rests, *_where(map(attrgetter("special"), labels))} - odd:
        rests[place], closings[place] = _rest_of_head(
            envelopes[place], labels[place], ends[place], steps.rests.get(place)
        )
    heads = _spans([*columns, rests, closings])

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
        unfinished = _where(map(not_, map(attrgetter("finished"), self.labels)))
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
        starts = _nanoseconds([step.started_at for step in steps])
        ends = _nanoseconds([step.completed_at for step in steps])
        unusual = {
            *_where(map(attrgetter("special"), labels)),
            *_where(map(ge, starts, ends)),
            *_where(map(lt, starts, repeat(0))),
        }
        rests, closings = [b""] * len(steps), [PLAIN_END] * len(steps)
        for place in sorted(unusual):
            owner = self.owners[place]
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
        for long, cells in _members(_STEP_COLUMNS, steps):
            self.odd_runs |= {self.owners[place] for place in long}
            columns += cells
        return _spans([*columns, rests, closings])
