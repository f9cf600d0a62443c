"""What a step's or a run's labels decide, worked out once for all spans that share them; no I/O.

Ids, names, types and statuses of steps recur in every run of a workflow, so their attributes, the span's name and the
projection that follows from them are remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw

from runspan.codec.attributes import Pairs, encode_value
from runspan.codec.fields import (
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    ROOT_REVISION,
    RUN_TABLE,
    STEP_TABLE,
    WORKFLOW_ID,
)
from runspan.codec.semconv import RUN_ERRORS, RUN_RESULTS, STEP_ERRORS, STEP_RESULTS
from runspan.model.document import TERMINAL_STEP_STATUSES
from runspan.model.ids import hash_parts
from runspan.model.span import INTERNAL, SERVER, Attributes

_MAX_TEMPLATES = 4096
"""Labels remembered per table. They are short in all but odd documents, so a few megabytes."""
_SHOWN = 500
"""Characters of a label in the projection: at most 2000 bytes."""


class SpanTemplate:
    """name, kind: the span's. shared: its attributes, the role among them. error_type: set when its status is an error.

    identity: of a run's label, what it puts on all spans of the run; salt: 64 bits of it. wire: the OTLP bytes of
    name, kind and shared, once a writer has made them. finished: of a step's label, whether the step has ended.
    special: whether the span has more than its members tell directly (agents, sub-workflows, errors).
    """

    __slots__ = (
        "error_type",
        "finished",
        "identity",
        "is_agent",
        "is_sub_workflow",
        "kind",
        "name",
        "salt",
        "shared",
        "special",
        "wire",
    )

    def __init__(self, name: str, kind: int, pairs: Pairs, error_type: str | None, step_type: object = None) -> None:
        self.name = name
        self.kind = kind
        self.shared = Attributes(pairs)
        self.error_type = error_type
        self.is_agent = step_type == "agent"
        self.is_sub_workflow = step_type == "sub-workflow"
        self.special = self.is_agent or self.is_sub_workflow or error_type is not None
        self.finished = False
        self.identity = Attributes([])
        self.salt = 0
        self.wire: bytes | None = None


class _TemplateCache(dict[tuple[Any, ...], SpanTemplate]):
    """Labels by their members' values, made when first asked for."""

    def __init__(self, make: Callable[..., SpanTemplate]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: tuple[Any, ...]) -> SpanTemplate:
        label = self.make(*key)
        if sum([len(value) for value in key if type(value) is str]) > _SHOWN:
            return label  # odd, and the memory would have no bound
        if len(self) >= _MAX_TEMPLATES:
            self.clear()
        self[key] = label
        return label


def _make_step_template(*values: Any) -> SpanTemplate:
    pairs: Pairs = [(ROLE, ROLE_STEP)]
    members: dict[str, Any] = {}
    for field, value in zip(STEP_TABLE.labels, values, strict=True):
        encode_value(pairs, field, value)
        members[field.member] = value
    shown = next((text[:_SHOWN] for text in (members["name"], members["id"]) if type(text) is str and text), "step")
    kind = members["type"] if type(members["type"]) is str else None
    status = members["status"] if type(members["status"]) is str else ""
    pairs.append(("cicd.pipeline.task.name", shown))
    if status in STEP_RESULTS:
        pairs.append(("cicd.pipeline.task.run.result", STEP_RESULTS[status]))
    if kind == "agent":
        pairs += [("gen_ai.operation.name", "invoke_agent"), ("gen_ai.agent.name", shown)]
        shown = f"invoke_agent {shown}"
    label = SpanTemplate(shown, INTERNAL, pairs, STEP_ERRORS.get(status), kind)
    label.finished = status in TERMINAL_STEP_STATUSES
    return label


def _make_run_template(is_root: bool, *values: Any) -> SpanTemplate:
    pairs: Pairs = [(ROLE, ROLE_RUN), (REVISION, ROOT_REVISION)] if is_root else [(ROLE, ROLE_REVISION)]
    members: dict[str, Any] = {}
    identity: Pairs = []
    for field, value in zip(RUN_TABLE.labels, values, strict=True):
        encode_value(identity if field.key == WORKFLOW_ID else pairs, field, value)
        members[field.member] = value
    workflow = members["workflow_id"]
    status = members["status"] if type(members["status"]) is str else ""
    shown = workflow[:_SHOWN] if type(workflow) is str and workflow else "workflow"
    pairs.append(("cicd.pipeline.name", shown))
    if status in RUN_RESULTS:
        pairs.append(("cicd.pipeline.result", RUN_RESULTS[status]))
    name = f"run {shown}" if is_root else f"snapshot {shown}"
    label = SpanTemplate(name, SERVER if is_root else INTERNAL, pairs, RUN_ERRORS.get(status))
    label.identity = Attributes(identity)
    parts = [(key, bytes(value) if type(value) is Raw else str(value).encode()) for key, value in identity]
    label.salt = hash_parts(*[part for key, value in parts for part in (key.encode(), value)])
    return label


STEP_TEMPLATES = _TemplateCache(_make_step_template)
"""The labels of steps by the values of ``STEP_TABLE.labels``. TypeError for an odd value, which is ``Raw``."""
ROOT_TEMPLATES = _TemplateCache(lambda *values: _make_run_template(True, *values))
"""The labels of root spans by the values of ``RUN_TABLE.labels``."""
_REVISION_TEMPLATES = _TemplateCache(lambda *values: _make_run_template(False, *values))


def step_template(values: tuple[Any, ...]) -> SpanTemplate:
    """The label of a step by the values of ``STEP_TABLE.labels``, odd ones too."""
    try:
        return STEP_TEMPLATES[values]
    except TypeError:
        return _make_step_template(*values)


def run_template(is_root: bool, values: tuple[Any, ...]) -> SpanTemplate:
    """The label of a head by the values of ``RUN_TABLE.labels``, odd ones too."""
    try:
        return (ROOT_TEMPLATES if is_root else _REVISION_TEMPLATES)[values]
    except TypeError:
        return _make_run_template(is_root, *values)
