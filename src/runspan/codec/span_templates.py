"""Cached names, kinds and shared attributes of spans by the labels of their step or run; no I/O.

Ids, names, types and statuses of steps recur in every run of a workflow, so the span name and attributes derived from
them are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runspan.codec.attributes import Pairs, SpanContent, encode_value
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
from runspan.codec.placement import LOOP
from runspan.codec.semconv import PIPELINE_NAME, RUN_ERRORS, RUN_RESULTS, RUN_STATES, STEP_ERRORS, STEP_RESULTS
from runspan.model.document import TERMINAL_STEP_STATUSES
from runspan.model.ids import hash_parts
from runspan.model.span import INTERNAL, SERVER, Attributes

_MAX_TEMPLATES = 4096
"""Entries per cache. With names of ``_MAX_NAME_LENGTH`` characters that is a few megabytes."""
_MAX_NAME_LENGTH = 500
"""Characters of a label in span names and ``cicd.*`` attributes: at most 2000 bytes."""


class SpanTemplate:
    """The parts of a span that its labels determine."""

    __slots__ = (
        "error_type",
        "finished",
        "identity",
        "is_agent",
        "is_loop",
        "is_sub_workflow",
        "kind",
        "name",
        "pipeline",
        "salt",
        "shared",
        "special",
        "texts",
        "wire",
    )

    def __init__(
        self, name: str, kind: int, content: SpanContent, error_type: str | None, step_type: object = None
    ) -> None:
        self.name = name
        self.kind = kind
        self.shared = Attributes(content.pairs)
        self.texts = content.texts
        """Labels that are too long for an attribute."""
        self.error_type = error_type
        """The default ``error.type`` if the status is an error, else None."""
        self.is_agent = step_type == "agent"
        self.is_loop = step_type == LOOP
        self.is_sub_workflow = step_type == "sub-workflow"
        self.special = self.is_agent or self.is_sub_workflow or error_type is not None or bool(self.texts)
        """Whether the span has attributes, links or a status derived from its payloads."""
        self.finished = False
        """Whether a step has ended."""
        self.pipeline = ""
        """The workflow of a run, as span names show it."""
        self.identity = Attributes([])
        """The labels of a run that are on all of its spans."""
        self.salt = 0
        """64 bits of the digest of ``identity``."""
        self.wire: bytes | None = None
        """The OTLP bytes of name, kind and ``shared``, cached by a writer."""


class _TemplateCache(dict[tuple[Any, ...], SpanTemplate]):
    """Templates by the values of their labels, created on first use."""

    def __init__(self, create: Callable[..., SpanTemplate]) -> None:
        super().__init__()
        self._create = create

    def __missing__(self, key: tuple[Any, ...]) -> SpanTemplate:
        template = self._create(*key)
        if sum([len(value) for value in key if type(value) is str]) > _MAX_NAME_LENGTH:
            return template  # not cached, since its size has no bound
        if len(self) >= _MAX_TEMPLATES:
            self.clear()
        self[key] = template
        return template


def _create_step_template(*values: Any) -> SpanTemplate:
    content = SpanContent()
    pairs = content.pairs
    pairs.append((ROLE, ROLE_STEP))
    members: dict[str, Any] = {}
    for field, value in zip(STEP_TABLE.labels, values, strict=True):
        encode_value(content, field, value)
        members[field.member] = value
    labels = (members["name"], members["id"], "step")
    name = next(text[:_MAX_NAME_LENGTH] for text in labels if type(text) is str and text)
    kind = members["type"] if type(members["type"]) is str else None
    status = members["status"] if type(members["status"]) is str else ""
    pairs.append(("cicd.pipeline.task.name", name))
    if status in STEP_RESULTS:
        pairs.append(("cicd.pipeline.task.run.result", STEP_RESULTS[status]))
    if kind == "agent":
        pairs += [("gen_ai.operation.name", "invoke_agent"), ("gen_ai.agent.name", name)]
        name = f"invoke_agent {name}"
    if status == "skipped":
        name = f"{name} (skipped)"
    template = SpanTemplate(name, INTERNAL, content, STEP_ERRORS.get(status), kind)
    template.finished = status in TERMINAL_STEP_STATUSES
    return template


def _create_run_template(is_root: bool, *values: Any) -> SpanTemplate:
    content = SpanContent()
    content.pairs += [(ROLE, ROLE_RUN), (REVISION, ROOT_REVISION)] if is_root else [(ROLE, ROLE_REVISION)]
    members: dict[str, Any] = {}
    identity: Pairs = []
    for field, value in zip(RUN_TABLE.labels, values, strict=True):
        members[field.member] = value
        if field.key == WORKFLOW_ID and type(value) is str and 0 < len(value) <= _MAX_NAME_LENGTH:
            identity.append((field.key, value))
        else:
            encode_value(content, field, value)
    workflow = members["workflow_id"]
    status = members["status"] if type(members["status"]) is str else ""
    pipeline = workflow[:_MAX_NAME_LENGTH] if type(workflow) is str and workflow else "workflow"
    content.pairs.append((PIPELINE_NAME, pipeline))
    if status in RUN_RESULTS:
        content.pairs.append(("cicd.pipeline.result", RUN_RESULTS[status]))
    elif status in RUN_STATES:
        content.pairs.append(("cicd.pipeline.run.state", RUN_STATES[status]))
    name = f"run {pipeline}"
    kind = SERVER if is_root else INTERNAL
    template = SpanTemplate(name if is_root else f"{name} (revision)", kind, content, RUN_ERRORS.get(status))
    template.pipeline = pipeline
    template.identity = Attributes(identity)
    template.salt = hash_parts(*[part.encode() for key, value in identity for part in (key, str(value))])
    return template


STEP_TEMPLATES = _TemplateCache(_create_step_template)
"""The templates of steps by the values of ``STEP_TABLE.labels``. TypeError for ``Raw``, a non-canonical value."""
ROOT_TEMPLATES = _TemplateCache(lambda *values: _create_run_template(True, *values))
"""The templates of root spans by the values of ``RUN_TABLE.labels``. TypeError as for steps."""
_REVISION_TEMPLATES = _TemplateCache(lambda *values: _create_run_template(False, *values))


def step_template(values: tuple[Any, ...]) -> SpanTemplate:
    """Return the template of a step for the values of ``STEP_TABLE.labels``, canonical or not."""
    try:
        return STEP_TEMPLATES[values]
    except TypeError:
        return _create_step_template(*values)


def run_template(is_root: bool, values: tuple[Any, ...]) -> SpanTemplate:
    """Return the template of a revision span for the values of ``RUN_TABLE.labels``, canonical or not."""
    try:
        return (ROOT_TEMPLATES if is_root else _REVISION_TEMPLATES)[values]
    except TypeError:
        return _create_run_template(is_root, *values)
