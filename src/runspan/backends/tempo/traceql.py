"""A ``RunQuery`` as TraceQL; no I/O.

Tempo evaluates each block's fragment of a trace alone, so a condition on a status or a workflow also matches heads
that a newer one in another fragment has overtaken. The queries below therefore let in every head that could overtake
one that matches, as far as a head alone tells it, and group by revision, which makes Tempo return each of them.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from runspan.codec.attributes import Pairs, encode_value
from runspan.codec.fields import (
    DIGEST,
    MANIFEST,
    NON_CANONICAL,
    REVISION,
    ROLE,
    ROLE_REVISION,
    ROLE_RUN,
    ROLE_STEP,
    ROOT_REVISION,
    RUN_FIELDS,
    RUN_ID,
    RUN_TABLE,
    STEP_COUNT,
    TENANT,
)
from runspan.contracts import RunQuery
from runspan.model.document import SUMMARY_MEMBERS, TERMINAL_RUN_STATUSES
from runspan.model.span import to_plain

_FIELDS: Final = {field.member: field for field in RUN_FIELDS}
_SUMMARY_KEYS: Final = tuple(
    key
    for member in SUMMARY_MEMBERS
    if member != "id"
    for key in (_FIELDS[member].key, _FIELDS[member].key + NON_CANONICAL)
)
SELECTED: Final = (ROLE, REVISION, RUN_ID, TENANT, DIGEST, STEP_COUNT, MANIFEST, *_SUMMARY_KEYS)
"""The attributes that a list item is made from, and those that tell which step spans it needs."""

_HEADS: Final = f'(span.{ROLE} = "{ROLE_RUN}" || span.{ROLE} = "{ROLE_REVISION}")'
_STEPS: Final = f'{{ span.{ROLE} = "{ROLE_STEP}" }}'
OVERTAKING: Final = f"span.{REVISION} > {ROOT_REVISION}"
"""Heads of runs that changed after their end."""
_TAIL: Final = f"| by(span.{REVISION}) | select({', '.join(f'span.{key}' for key in SELECTED)}) with(most_recent=true)"
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
_BUFFER: Final = 1024
_MARGIN: Final = 16
"""A character of several bytes at the end of the buffer moves the next one's place."""

TIMELESS: Final = f"span.{RUN_TABLE.start.key}{NON_CANONICAL} != nil"
"""Heads whose document has no usable start, and which may sort elsewhere than where their span lies."""


def search_text(query: RunQuery, *conditions: str, ended: bool = True) -> str:
    """The TraceQL of the heads that the query may list, with the steps beside them, whose ids prove the run.

    conditions: further ones that every head must meet. ended: with the ends of runs that may have had the status
    before. UnicodeEncodeError when no stored text can be the one asked for.
    """
    # Runs without a tenant are told apart by the reader: Tempo finds only some of the spans where a key is ``= nil``.
    terms = [_HEADS, *([_equal(TENANT, query.tenant)] if query.tenant else ()), *conditions]
    filters = _filters(query, ended=ended)
    if filters:
        terms.append(f"({filters} || {OVERTAKING})")
    heads = f"{{ {' && '.join(terms)} }}"
    return padded(f"({heads} || ({heads} && {_STEPS})) {_TAIL}")


def padded(text: str) -> str:
    """The text with white space wherever Tempo's lexer fills its buffer.

    The lexer looks ahead with a copy of itself. When the copy fills the buffer, what it read is lost to the lexer, and
    the query seems to end there. Inside a string, it does not look ahead.
    """
    parts: list[str] = []
    length = 0
    for token in _TOKEN.findall(text):
        size, place = len(token.encode()), length % _BUFFER
        if token[0] != '"':
            pad = 0
            if place + size + _MARGIN > _BUFFER:
                pad = _BUFFER - place + _MARGIN
            elif place < _MARGIN and length > _MARGIN:
                pad = _MARGIN - place
            parts.append(" " * pad)
            length += pad
        parts.append(token + " ")
        length += size + 1
    return "".join(parts)


def _filters(query: RunQuery, *, ended: bool) -> str:
    workflow = "" if query.workflow_id is None else _member("workflow_id", query.workflow_id)
    if not query.statuses:
        return workflow
    terms = [_member("status", status) for status in query.statuses]
    status = terms[0] if len(terms) == 1 else f"({' || '.join(terms)})"
    both = f"({workflow} && {status})" if workflow else status
    if not ended or not may_have_ended(query):
        return both
    end = f'span.{ROLE} = "{ROLE_RUN}"'
    return f"{both} || ({workflow} && {end})" if workflow else f"{both} || {end}"


def may_have_ended(query: RunQuery) -> bool:
    """Whether heads of the status asked for are overtaken as a rule: a run leaves it when it goes on or ends."""
    return any(status not in TERMINAL_RUN_STATUSES for status in query.statuses)


def _member(member: str, value: str) -> str:
    """The condition that a head carries this value, in whichever attributes the table puts it."""
    pairs: Pairs = []
    encode_value(pairs, _FIELDS[member], value)
    terms = [_equal(key, to_plain(carried)) for key, carried in pairs]
    return terms[0] if len(terms) == 1 else f"({' && '.join(terms)})"


def _equal(key: str, value: object) -> str:
    return f"span.{key} = {quoted(value) if isinstance(value, str) else value}"


def quoted(text: str) -> str:
    """The text as a TraceQL string. JSON's escapes are Go's; a byte order mark must not stand bare in a Go source."""
    return msgspec.json.encode(text).decode().replace("\ufeff", "\\ufeff")
