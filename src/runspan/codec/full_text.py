"""What a text search finds in a run document, and where; no I/O.

The searchable texts of a document are the run's id and workflow, the ids, names and types of its steps, and each
string, number and key in its payloads: ``input``, ``output``, ``error``, ``retryPolicy`` and the members that the
platform does not document. Statuses, triggers, times, durations and attempts have filters of their own. Strings and
keys are compared as they read, without their JSON escapes; numbers as they are written. A document contains a text if
one of these contains it, after full case folding of both (Unicode, chapter 3.13), without normalization.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec import Raw, Struct

from runspan.model.document import Envelope, Run, Step
from runspan.model.json_scanner import members

SEARCHED: Final = "ids, names and types of steps, errors and payloads"
"""The searchable texts, in words."""
MIN_TEXT: Final = 3
"""Characters, after case folding."""
MAX_TEXT: Final = 200
"""Characters of a text that is searched for."""
SNIPPET: Final = 120
"""Characters of a snippet, about."""

_BEFORE: Final = 40
"""Characters of a snippet before the match, if there are so many."""
_CHUNK: Final = 1 << 16
"""Characters that are folded at once: Python needs twelve bytes for each."""
_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|-?[0-9][0-9.eE+-]*+')
"""A string, key or number in JSON."""
_ESCAPES: Final = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++')
"""Escapes in JSON, as many as follow one another: the two halves of a character are adjacent."""
_SHORT_ESCAPES: Final = {f"\\{letter}": json.loads(f'"\\{letter}"') for letter in '"\\/bfnrt'}
_CONTEXT: Final = re.compile(rf"(?:[^\\]|\\u....|\\.){{0,{SNIPPET}}}+", re.DOTALL)
"""Characters of JSON that do not end within an escape."""
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RUN_NAMES: Final = ("id", "workflow_id")
_RUN_PAYLOADS: Final = ("input", "output", "error")
_STEP_MEMBERS: Final = ("id", "name", "type", "input", "output", "error", "retry_policy")
_JSON_NAMES: Final = {
    name: encoded
    for document in (Envelope, Step)
    for name, encoded in zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True)
}


class Match(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where a document contains a text."""

    member: str
    """The member of the step, or of the run, as documents call it."""
    snippet: str
    """About ``SNIPPET`` characters around it, in one line: control characters are spaces."""
    start: int
    """Where the text begins in the snippet, and its length, in characters."""
    length: int
    step_index: int | None = None
    """The step's position among the steps of the run, from 0. None outside of steps."""
    step_id: str | None = None
    execution: int | None = None
    """Which execution of that step id it is, from 1."""


class _Place(NamedTuple):
    step_index: int | None
    member: str
    value: str | Raw
    """A string as it reads, or JSON."""


def fold(text: str) -> str:
    """Return a text as it is compared. Folding two texts and joining them is the same as folding them joined."""
    if text.isascii() or len(text) <= _CHUNK:
        return text.casefold()
    return "".join([text[start : start + _CHUNK].casefold() for start in range(0, len(text), _CHUNK)])


def searchable_text(run: Run) -> str:
    """Return a folded text that contains every text that the document contains. It may contain others."""
    places = list(_places(run))
    strings = [place.value for place in places if type(place.value) is str]
    payloads = b" ".join([bytes(place.value) for place in places if type(place.value) is Raw])
    # Each once, and between quotes: where two meet, there are few different trigrams.
    tokens = _unescaped('"'.join(dict.fromkeys(_TOKEN.findall(payloads.decode()))))
    return fold('"'.join([*strings, tokens]))


def find_text(run: Run, text: str) -> Match | None:
    """Return the first place in a document that contains a text, None if none does.

    First come the ids of the run, then the steps, then the run's payloads: most of what these contain is in a step too,
    and a step says more.
    """
    wanted = fold(text)
    if not _may_contain(run.text.decode(), wanted):  # faster than to look at each place
        return None
    for place in _places(run):
        value = place.value
        found = _find_in_json(value, wanted) if isinstance(value, Raw) else _find_in_string(value, wanted)
        if found is not None:
            snippet, start, length = found
            index = place.step_index
            member = place.member.encode(errors="replace").decode()  # a name may have a lone surrogate
            if index is None:
                return Match(member, snippet, start, length)
            step_id = run.steps[index].id
            execution = sum(step.id == step_id for step in run.steps[: index + 1])
            return Match(member, snippet, start, length, index, _as_str(step_id), execution)
    return None


def _places(run: Run) -> Iterator[_Place]:
    envelope = run.envelope
    yield from _members(None, envelope, _RUN_NAMES)
    for index, step in enumerate(run.steps):
        yield from _members(index, step, _STEP_MEMBERS)
        yield from _extra(index, step.extra)
    yield from _members(None, envelope, _RUN_PAYLOADS)
    yield from _extra(None, envelope.extra)


def _members(step: int | None, document: Envelope | Step, names: tuple[str, ...]) -> Iterator[_Place]:
    for name in names:
        value = getattr(document, name)
        if type(value) is str or type(value) is Raw:
            yield _Place(step, _JSON_NAMES[name], value)


def _extra(step: int | None, extra: bytes) -> Iterator[_Place]:
    if extra:
        for member in members(f"{{{extra.decode()}}}", 0):
            yield _Place(step, member.key, Raw(f"{member.key_text}:{member.value_text}".encode()))


def _may_contain(text: str, wanted: str) -> bool:
    """Return False if no string, key or number in JSON contains a folded text."""
    return wanted in fold(text) or ("\\" in text and wanted in fold(_unescaped(text)))


def _find_in_string(text: str, wanted: str) -> tuple[str, int, int] | None:
    found = _find(text, wanted)
    return None if found is None else _snippet("", text, "", *found)


def _find_in_json(raw: Raw, wanted: str) -> tuple[str, int, int] | None:
    text = bytes(raw).decode()
    if not _may_contain(text, wanted):
        return None
    before = 0
    for token in _TOKEN.finditer(text):
        content = token.group()
        is_string = content[0] == '"'
        decoded = _unescaped(content[1:-1]) if is_string else content
        found = _find(decoded, wanted)
        if found is not None:
            first, last = token.start() + is_string, token.end() - is_string
            context = _CONTEXT.match(text, last)
            after = "" if context is None else _unescaped(context.group())
            if last + SNIPPET >= len(text):
                after = after.rstrip("]} ")
            return _snippet(_unescaped(text[max(before, first - SNIPPET) : first]), decoded, after, *found)
        is_key_or_number = not is_string or text.startswith(":", token.end())
        before = token.start() if is_key_or_number else token.end()  # a string may be long
    return None


def _find(text: str, wanted: str) -> tuple[int, int] | None:
    """Return where a text contains a folded one, and the length of what does."""
    folded = fold(text)
    at = folded.find(wanted)
    if at < 0:
        return None
    if len(folded) == len(text):  # folding makes no character shorter
        return at, len(wanted)
    start = _unfolded(text, at)
    return start, _unfolded(text, at + len(wanted) - 1) + 1 - start


def _unfolded(text: str, position: int) -> int:
    """Return which character of a text is folded to the one at a position of the folded text."""
    folded = start = 0
    while (size := len(text[start : start + _CHUNK].casefold())) <= position - folded:
        folded += size
        start += _CHUNK
    while (size := len(text[start].casefold())) <= position - folded:
        folded += size
        start += 1
    return start


def _snippet(before: str, text: str, after: str, at: int, length: int) -> tuple[str, int, int]:
    """Return the characters around a match in a text, and where it is in them."""
    start = max(0, at - SNIPPET)
    end = at + length + SNIPPET
    joined = (before if start == 0 else "") + text[start:end] + (after if end >= len(text) else "")
    is_cut_before, is_cut_after = start > 0, end < len(text)
    at += len(before) if start == 0 else -start
    first = max(0, min(at - _BEFORE, len(joined) - max(SNIPPET, length)))
    last = max(first + SNIPPET, at + length)
    prefix = "…" if first or is_cut_before else ""
    suffix = "…" if last < len(joined) or is_cut_after else ""
    return prefix + _printable(joined[first:last]) + suffix, at - first + len(prefix), length


def _unescaped(text: str) -> str:
    return _ESCAPES.sub(_decoded, text) if "\\" in text else text


def _decoded(escapes: re.Match[str]) -> str:
    text = escapes.group()
    decoded: str = _SHORT_ESCAPES.get(text) or json.loads(f'"{text}"')
    return decoded


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text)


def _as_str(value: str | Raw) -> str:
    return bytes(value).decode() if type(value) is Raw else str(value)
