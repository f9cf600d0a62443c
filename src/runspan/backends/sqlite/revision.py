"""A revision of a run as the store knows it, and its spans, made again under the ids that they came with; no I/O.

Which steps have a span is the manifest's to say, and which head a revision has is the revision's: both may come from a
version of runspan for which other statuses end a step or a run, and what it sent must come back as it was.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

from runspan.codec.attributes import AttributeDecodeError, decode_text
from runspan.codec.decode import VerifiedRun
from runspan.codec.encode import RunEncoder, content_step_ids
from runspan.codec.fields import DIGEST, MANIFEST, OPEN_STEP_MARK, REVISION, ROOT_REVISION, STEP_TABLE, observed_time
from runspan.codec.span_templates import step_template
from runspan.model.document import TERMINAL_STEP_STATUSES, Step
from runspan.model.run import Run
from runspan.model.span import Span, Value

_ID_BYTES = 8
_NO_ID = bytes(_ID_BYTES)
"""In the column ``step_ids``: a step without a span. No span has this id."""


@dataclass(frozen=True)
class StoredRevision:
    """A proved revision. names: of each step the id of its span, empty for a step without."""

    run: Run
    tenant: str
    revision: int
    names: Sequence[bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document, hex."""
        return sha256(self.run.text).hexdigest()

    @cached_property
    def steps(self) -> dict[bytes, Step]:
        """The steps that have a span, by its id, in order."""
        return {name: step for name, step in zip(self.names, self.run.steps, strict=True) if name}

    def packed_span_ids(self) -> bytes | None:
        """The column ``step_ids``: None when ``encode`` gives the same, the ids alone when it gives other ids to the
        same steps, else an id or a zero for each step."""
        ids = [name for name in self.names if name]
        usual = len(ids) == len(self.names) or [bool(name) for name in self.names] == _ended(self.run)
        if not usual:
            return b"".join([name or _NO_ID for name in self.names])
        content_ids = RunEncoder(self.run, self.tenant).step_ids()
        same = all(name == content_id for name, content_id in zip(ids, content_ids, strict=True))
        return None if same else b"".join(ids)


def from_run(run: Run, tenant: str, revision: int) -> StoredRevision:
    """A revision as ``encode`` writes it."""
    return from_verified(run, tenant, revision, None)


def from_verified(run: Run, tenant: str, revision: int, step_ids: bytes | None) -> StoredRevision:
    """A revision from its columns. ValueError when the ids are not those of its steps."""
    if step_ids is None:
        ids = content_step_ids(run, tenant)
    else:
        ids = [step_ids[at : at + _ID_BYTES] for at in range(0, len(step_ids), _ID_BYTES)]
    steps = run.steps
    if len(ids) == len(steps):
        names = [b"" if name == _NO_ID else name for name in ids]
    else:
        ended = _ended(run)
        if len(ids) != sum(ended):
            raise ValueError(f"{len(ids)} step ids for {sum(ended)} of {len(steps)} steps")
        given = iter(ids)
        names = [next(given) if has_ended else b"" for has_ended in ended]
    return StoredRevision(run, tenant, revision, names)


def from_row(decoded: VerifiedRun, spans: Sequence[Span]) -> StoredRevision:
    """What was decoded. spans: its head among them."""
    known = StoredRevision(decoded.run, decoded.tenant, decoded.revision, decoded.step_ids)
    if len(known.names) == len(known.run.steps):
        return known
    return replace(known, names=_manifest(known, spans))


def to_spans(known: StoredRevision) -> list[Span]:
    """The spans that a revision was read from, the attempts that its steps tell, and the head last."""
    revision = known.revision
    encoder = RunEncoder(
        known.run, known.tenant, after_root=revision > ROOT_REVISION, is_root=revision == ROOT_REVISION
    )
    ids = [name for name in known.names if name]
    return encoder.spans(observed_time(revision), ids, [bool(name) for name in known.names])


def step_spans(known: StoredRevision, names: Container[bytes] | None = None) -> list[Span]:
    """The step spans of a revision. names: only these."""
    encoder = RunEncoder(known.run, known.tenant)
    return [
        encoder.step_span(step, name, step_template(STEP_TABLE.get_labels(step)))
        for name, step in known.steps.items()
        if names is None or name in names
    ]


def revision_of(attributes: Mapping[str, Value]) -> int:
    """The revision that a head's attributes tell; -1 when none is an integer."""
    revision = attributes.get(REVISION)
    return revision if type(revision) is int else -1


def _ended(run: Run) -> list[bool]:
    return [step.status in TERMINAL_STEP_STATUSES for step in run.steps]


def _manifest(known: StoredRevision, spans: Sequence[Span]) -> list[bytes]:
    """The names in the manifest of its head. known: with the names of the steps that have a span."""
    size = len(OPEN_STEP_MARK)
    for span in reversed(spans):
        attributes = span.attributes()
        if attributes.get(DIGEST) != known.digest or revision_of(attributes) != known.revision:
            continue
        try:
            manifest = (decode_text(attributes, MANIFEST) or b"").decode()
            parts = [manifest[at : at + size] for at in range(0, len(manifest), size)]
            names = [b"" if part == OPEN_STEP_MARK else bytes.fromhex(part) for part in parts]
        except (AttributeDecodeError, ValueError):
            continue  # another head that tells the same digest
        if len(names) == len(known.run.steps) and [name for name in names if name] == known.names:
            return names
    raise ValueError("the head that was decoded is not among the spans")
