"""What arrives, before a look at what is stored: which spans a document is read from, what is refused; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, TracesData

from runspan.backends.sqlite.known import revision_of
from runspan.backends.sqlite.merge import HEAD_ROLES, OWN_ROLES
from runspan.fields import ROLE, ROOT_REVISION, RUN_ID, TENANT
from runspan.ids import run_ids
from runspan.otlp.received import Foreign
from runspan.otlp.wire import span_bytes
from runspan.span import Span

_LAST_REVISION = 2 * ROOT_REVISION - (1 << 32)
"""What still leaves room for revisions after it in 64 bits."""


def role_of(span: Span) -> str:
    """The role, or nothing when it is no text."""
    role = span.attributes().get(ROLE)
    return role if type(role) is str else ""


def heads_of(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if role_of(span) in HEAD_ROLES]


def rank_of(span: Span) -> int:
    """The revision of a head; above all of them for any other span, which belongs to no revision alone."""
    return revision_of(span.attributes()) if role_of(span) in HEAD_ROLES else 2 * ROOT_REVISION


def by_role(spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """The spans that the document is read from, and others: attempts, and roles that a newer runspan may write."""
    own: list[Span] = []
    beside: list[Span] = []
    for span in spans:
        (own if role_of(span) in OWN_ROLES else beside).append(span)
    return own, beside


def tenant_refusal(claimed: object, tenant: str) -> str | None:
    return None if claimed == tenant else f"the run is of tenant {claimed!r}, the sender of {tenant!r}"


def revision_refusal(revision: int) -> str | None:
    return f"revision {revision} is none that a time of observation gives" if revision > _LAST_REVISION else None


def head_refusal(spans: Sequence[Span], tenant: str) -> str | None:
    """Why these spans are not taken: a head among them tells another tenant, or a run of another trace id."""
    for head in heads_of(spans):
        attributes = head.attributes()
        reason = tenant_refusal(attributes.get(TENANT, ""), tenant) or revision_refusal(rank_of(head))
        if reason:
            return reason
        run_id = attributes.get(RUN_ID)
        if type(run_id) is not str or run_ids(run_id, tenant).trace_id != head.trace_id:
            return f"its trace id does not follow from run id {run_id!r}"
    return None


def as_foreign(span: Span, resource: bytes | None) -> Foreign:
    data = TracesData()
    outer = data.resource_spans.add()
    if resource:
        outer.resource.CopyFrom(Resource.FromString(resource))
    outer.scope_spans.append(ScopeSpans.FromString(span_bytes(span)))
    return Foreign(span.trace_id, span.span_id, data.SerializeToString(deterministic=True))
