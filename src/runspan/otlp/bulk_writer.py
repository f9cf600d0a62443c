"""The fast writer of OTLP spans, the hot path of the exporter; no I/O.

``SpanWriter`` in ``native/src/writer.rs`` writes the spans of a finished run from the canonical text of its document.
The result is byte for byte that of ``encode`` and ``span_bytes``, which write the runs that do not have the common
form, and all runs where the native part was not built. The format is in one place: the writer is created with the table
of ``codec.fields``, and asks ``_Details`` for templates and for what depends on payloads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from runspan.codec import fields
from runspan.codec.attributes import ROOT_TEMPLATES, STEP_TEMPLATES, SpanTemplate
from runspan.codec.encode import StepPartsBuilder, encode, set_run_status
from runspan.codec.semconv import (
    COST,
    ERROR_TYPE,
    EXCEPTION_EVENT,
    EXCEPTION_MESSAGE,
    EXCEPTION_TYPE,
    INPUT_TOKENS,
    MESSAGE_LENGTH,
    MODEL,
    OUTPUT_TOKENS,
    PIPELINE_RUN_ID,
    PROVIDER,
    PROVIDERS,
    RUN_COST,
    RUN_INPUT,
    RUN_OUTPUT,
    TASK_RUN_ID,
    Usage,
    add_totals,
)
from runspan.model.document import SUMMARY_MEMBERS, Envelope, Run, Step, str_or_none
from runspan.model.span import ERROR, Pairs, run_ids_prefix, summary_prefix
from runspan.otlp.protobuf_writer import (
    FLAGS,
    PLAIN_END,
    ScopedBytes,
    attribute_bytes,
    attributes_bytes,
    end_bytes,
    scoped_bytes,
    shared_bytes,
    template_bytes,
)

try:
    from runspan._native import SpanWriter
except ImportError:
    if not TYPE_CHECKING:
        SpanWriter = None

COMPILED: Final = SpanWriter is not None
"""Whether the native part is used."""


def write_run(run: Run, *, tenant: str = "", observed_at: int | None = None) -> list[ScopedBytes]:
    """Return the spans of a run: steps first, the revision span last.

    For ``tenant`` and ``observed_at`` see ``encode``.
    """
    if COMPILED and run.plain:
        spans = _writer(tenant).write(run.text, _Details(run, tenant))
        if spans is not None:
            return [*spans]
    return [scoped_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]


_ABSENT_TIMES: Final = attributes_bytes(
    [(field.key + fields.NON_CANONICAL, fields.ABSENT) for field in (fields.STEP_TABLE.start, fields.STEP_TABLE.end)]
)

_USAGE_KEYS: Final = {
    "input_tokens": INPUT_TOKENS.encode(),
    "output_tokens": OUTPUT_TOKENS.encode(),
    "cost": COST.encode(),
    "model": MODEL.encode(),
    "provider": PROVIDER.encode(),
    "providers": PROVIDERS,
    "max_model_bytes": MESSAGE_LENGTH,
    "total_input_tokens": RUN_INPUT.encode(),
    "total_output_tokens": RUN_OUTPUT.encode(),
    "total_cost": RUN_COST.encode(),
}
"""See ``Keys`` in ``usage.rs``."""

_ERROR_KEYS: Final = {
    "error_type": ERROR_TYPE.encode(),
    "event_name": EXCEPTION_EVENT.encode(),
    "event_type": EXCEPTION_TYPE.encode(),
    "event_message": EXCEPTION_MESSAGE.encode(),
    "status": ERROR,
    "span_end": FLAGS,
    "max_bytes": MESSAGE_LENGTH,
}
"""See ``Keys`` in ``error.rs``."""


@lru_cache(maxsize=16)
def _writer(tenant: str) -> SpanWriter:
    common = {
        "run_id_prefix": run_ids_prefix(tenant),
        "summary_prefix": summary_prefix(tenant),
        "tenant": attribute_bytes(fields.TENANT, tenant) if tenant else b"",
        "run_id_keys": [fields.RUN_ID.encode(), PIPELINE_RUN_ID.encode()],
        "task_run_key": TASK_RUN_ID.encode(),
        "digest_key": fields.DIGEST.encode(),
        "summary_digest_key": fields.SUMMARY_DIGEST.encode(),
        "label_set_keys": [key.encode() for key in fields.LABEL_SETS],
        "many_labels": fields.MANY.encode(),
        "step_count_key": fields.STEP_COUNT.encode(),
        "manifest_key": fields.MANIFEST.encode(),
        "end_key": (fields.STEP_TABLE.end.key + fields.NON_CANONICAL).encode(),
        "absent_times": _ABSENT_TIMES,
        "plain_end": PLAIN_END,
        "revision": fields.ROOT_REVISION,
        "max_attribute_bytes": fields.MAX_ATTRIBUTE_BYTES,
        "usage_keys": _USAGE_KEYS,
        "error_keys": _ERROR_KEYS,
        "step_scope": fields.SCOPE_STEP,
        "run_scope": fields.SCOPE_RUN,
    }
    return SpanWriter(common, _members(Envelope, fields.RUN_TABLE), _members(Step, fields.STEP_TABLE))


def _members(document: type[Envelope | Step], table: fields.Table) -> list[tuple[bytes, bytes, str, bool]]:
    """Return name, key and kind of each member in the order of the canonical text, and whether a list shows it."""
    rows = {field.member: (field.key, field.kind.name) for field in table.fields}
    rows = {"id": (fields.RUN_ID, "ID"), "steps": (fields.MANIFEST, "STEPS")} | rows
    names = zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True)
    return [
        (f'"{encoded}":'.encode(), rows[member][0].encode(), rows[member][1], member in SUMMARY_MEMBERS)
        for member, encoded in names
    ]


_Template = dict[str, object]
"""See ``Template`` in ``writer.rs``."""


def _template(template: SpanTemplate, is_common: bool, step_type: str = "") -> _Template:
    return {
        "source": template,
        "is_common": is_common and not template.texts,
        "is_agent": template.is_agent,
        "is_loop": template.is_loop,
        "is_sub_workflow": template.is_sub_workflow,
        "error_type": template.error_type,
        "step_type": step_type,
        "wire": template.wire or template_bytes(template),
        "identity": shared_bytes(template.identity),
        "salt": template.salt,
    }


class _Parts(NamedTuple):
    """See ``Parts`` in ``writer.rs``."""

    start: int
    end: int
    attributes: bytes
    rest: bytes


_parse_step: Final = msgspec.json.Decoder(Step).decode


class _Details:
    """What the writer asks about one run and its steps, in their order. A step is given by its canonical text."""

    __slots__ = ("_run", "_tenant", "_usages")

    def __init__(self, run: Run, tenant: str) -> None:
        self._run = run
        self._tenant = tenant
        self._usages: list[Usage] = []

    def run_template(self) -> _Template:
        return _template(ROOT_TEMPLATES[fields.RUN_TABLE.get_labels(self._run.envelope)], self._run.finished)

    def step_template(self, text: bytes) -> _Template:
        step = _parse_step(text)
        template = STEP_TEMPLATES[fields.STEP_TABLE.get_labels(step)]
        return _template(template, template.finished, str_or_none(step.type) or "")

    def step_parts(self, text: bytes, template: SpanTemplate, position: int) -> _Parts | None:
        """Return what an unusual step span has beside the attributes of its members; None for texts in events."""
        builder = StepPartsBuilder(self._tenant, usages=self._usages)
        content, start, end, status, links = builder.build(_parse_step(text), template, position)
        if content.texts:
            return None
        rest = end_bytes(status.events, links, status.code, status.message)
        return _Parts(start, end, attributes_bytes(content.pairs), rest)

    def run_parts(
        self, template: SpanTemplate, end: int, usages: list[tuple[int, int, float]]
    ) -> tuple[bytes, bytes, list[str]]:
        """Return the attributes of the run span beside the members', what follows them, and the models asked about.

        ``usages``: prompt tokens, completion tokens and cost of the agent steps that were not asked about.
        """
        own: Pairs = []
        add_totals(own, self._usages + [Usage(prompt, completion, "", cost) for prompt, completion, cost in usages])
        status = set_run_status(own, self._run.envelope.error, template, end, True)
        rest = end_bytes(status.events, (), status.code, status.message)
        return attributes_bytes(own), rest, [usage.model for usage in self._usages]
