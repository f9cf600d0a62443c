"""The fast reader of OTLP requests with finished runs, for ingestion; no I/O.

Native code reads and verifies a run if all of its spans are in the request and have only attributes, events and fields
that the exporter or a Collector writes. The names and kinds of attributes are passed to it here. All other spans are
read by ``protobuf_reader`` and ``codec.decode``, as are all requests where the package was built without native code:
they would return the same document for the runs that are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from runspan.codec import fields, semconv
from runspan.codec.attributes import MAX_NAME_LENGTH
from runspan.codec.placement import LOOP
from runspan.model.document import (
    MAX_PLAIN_ID_BYTES,
    SUMMARY_MEMBERS,
    TERMINAL_RUN_STATUSES,
    TERMINAL_STEP_STATUSES,
    Envelope,
    Step,
)
from runspan.model.span import DOMAIN
from runspan.model.timestamps import LATEST_END_NS, MAX_NS
from runspan.otlp.protobuf_reader import (
    MAX_PARTS,
    ParsedRequest,
    ReceivedRun,
    default_max_spans,
    is_small,
    read_protobuf,
)

try:
    from runspan._native import Reader
except ImportError:
    COMPILED = False
else:
    COMPILED = True
"""Whether the native reader is used."""


def read_request(body: bytes) -> ParsedRequest:
    """Return the contents of an ExportTraceServiceRequest: ``runs``, and the spans of all other traces.

    Raises the errors of ``protobuf_reader.read_protobuf``.
    """
    found = _READER.read(body, default_max_spans(len(body))) if _READER is not None and is_small(body) else None
    if found is None:
        return read_protobuf(body)
    total, traces, contents, rows = found
    if not rows:
        return read_protobuf(body)
    try:
        resources = [Resource.FromString(content).SerializeToString(deterministic=True) for content in contents]
    except DecodeError:
        return read_protobuf(body)
    runs = [ReceivedRun(*row, resources[place]) for row, place in rows]
    received = ParsedRequest(total=total)
    if len(runs) < traces:
        received = read_protobuf(body, without={run.trace_id for run in runs})
    received.runs, received.body = runs, body
    return received


@dataclass(frozen=True, slots=True)
class Rules:
    """What the native reader has to know besides names."""

    terminal_run_statuses: tuple[str, ...] = TERMINAL_RUN_STATUSES
    terminal_step_statuses: tuple[str, ...] = TERMINAL_STEP_STATUSES
    loop_type: str = LOOP
    id_domain: bytes = DOMAIN
    max_run_id_bytes: int = MAX_PLAIN_ID_BYTES
    max_pipeline_bytes: int = MAX_NAME_LENGTH
    max_parts: int = MAX_PARTS
    own_prefix: str = "runspan."
    latest_start: int = MAX_NS
    latest_end: int = LATEST_END_NS
    is_hashed: bool = True
    """Whether the digest of a document is its SHA-256; else it is zero, so that tests see what it would hide."""


_IGNORED: Final = (
    *(fields.SUMMARY_DIGEST, *fields.LABEL_SETS),
    *(semconv.COST, semconv.CHILD_RUN_ID, *semconv.RUN_TOTALS),
)
"""Attributes of runspan on spans of finished runs that the decoder does not read there."""


def _rows(table: fields.Table, kind: type[Envelope] | type[Step]) -> list[tuple[str, str, str, str, bool]]:
    """Return the members that a span carries, in the order of the document.

    Each has the key of its attribute, its name in the document class and in the document, the name of its kind, and
    whether a list item has it.
    """
    found = {field.member: field for field in table.fields}
    return [
        (found[item.name].key, item.name, item.encode_name, found[item.name].kind.name, item.name in SUMMARY_MEMBERS)
        for item in msgspec.structs.fields(kind)
        if item.name in found
    ]


def new_reader(rules: Rules) -> Reader:
    """Return a native reader of the format that ``codec.fields`` describes."""
    return Reader(fields, rules, _rows(fields.RUN_TABLE, Envelope), _rows(fields.STEP_TABLE, Step), _IGNORED)


_READER: Final = new_reader(Rules()) if COMPILED else None
